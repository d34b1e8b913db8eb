"""BeGin's models, where BeGin has them: ``from begin.utils.models import GCNNode``."""

from maskcl.compat.begin.utils.classifier import AdaptiveLinear
from maskcl.compat.begin.utils.gcn_conv import GCNConv
from maskcl.compat.begin.utils.gcn_graph import GCNGraph
from maskcl.compat.begin.utils.gcn_link import GCNLink
from maskcl.compat.begin.utils.gcn_node import GCNNode
from maskcl.compat.begin.utils.graph_model import GraphModel

__all__ = ["AdaptiveLinear", "GCNConv", "GCNGraph", "GCNLink", "GCNNode", "GraphModel"]
