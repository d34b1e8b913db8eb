"""BeGin's models, under its names."""

from maskcl.compat.begin.utils.classifier import AdaptiveLinear
from maskcl.compat.begin.utils.models import GCNGraph, GCNLink, GCNNode, GraphModel

__all__ = ["AdaptiveLinear", "GCNGraph", "GCNLink", "GCNNode", "GraphModel"]
