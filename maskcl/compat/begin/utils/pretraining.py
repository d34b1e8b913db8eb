"""BeGin's pretraining methods, where BeGin has them: ``from begin.utils.pretraining import *``."""

from maskcl.compat.begin.utils.graph_contrast import DGI, DGISubgraphCL, InfoGraph, SubgraphCL
from maskcl.compat.begin.utils.light_gcl import LightGCL
from maskcl.compat.begin.utils.pretraining_method import PretrainingMethod

__all__ = ["DGI", "DGISubgraphCL", "InfoGraph", "LightGCL", "PretrainingMethod", "SubgraphCL"]
