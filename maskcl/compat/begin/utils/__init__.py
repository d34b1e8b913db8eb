"""BeGin's models and pretraining methods, under its names."""

from maskcl.compat.begin.utils.models import (
    AdaptiveLinear,
    GCNConv,
    GCNGraph,
    GCNLink,
    GCNNode,
    GraphModel,
)
from maskcl.compat.begin.utils.pretraining import (
    DGI,
    DGISubgraphCL,
    InfoGraph,
    LightGCL,
    PretrainingMethod,
    SubgraphCL,
)

__all__ = [
    "DGI",
    "AdaptiveLinear",
    "DGISubgraphCL",
    "GCNConv",
    "GCNGraph",
    "GCNLink",
    "GCNNode",
    "GraphModel",
    "InfoGraph",
    "LightGCL",
    "PretrainingMethod",
    "SubgraphCL",
]
