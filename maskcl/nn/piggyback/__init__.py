"""Weight masks (Piggyback): layers, the network and its bits."""
