"""Unit masks (HAT): layers, the network, its topology and what finished tasks protect."""
