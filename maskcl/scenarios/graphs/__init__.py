"""Scenarios of graphs: nodes, links and whole graphs, cut into tasks."""
