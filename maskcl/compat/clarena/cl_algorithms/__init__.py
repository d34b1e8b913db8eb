"""CLArena's algorithms HAT and AdaHAT: ``clarena.cl_algorithms``."""

from maskcl.compat.clarena.cl_algorithms import adahat, hat, regularisers, regularizers
from maskcl.compat.clarena.cl_algorithms.adahat import AdaHAT
from maskcl.compat.clarena.cl_algorithms.base import CLAlgorithm
from maskcl.compat.clarena.cl_algorithms.hat import HAT

__all__ = ["CLAlgorithm", "HAT", "AdaHAT", "regularizers", "regularisers", "hat", "adahat"]
