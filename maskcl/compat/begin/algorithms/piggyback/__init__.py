"""Piggyback for nodes, links and graphs."""

from maskcl.compat.begin.algorithms.piggyback.graphs import GCTaskILPiggybackTrainer
from maskcl.compat.begin.algorithms.piggyback.links import LCTaskILPiggybackTrainer
from maskcl.compat.begin.algorithms.piggyback.nodes import NCTaskILPiggybackTrainer

__all__ = ["NCTaskILPiggybackTrainer", "LCTaskILPiggybackTrainer", "GCTaskILPiggybackTrainer"]
