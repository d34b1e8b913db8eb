"""HAT for nodes, links and graphs."""

from maskcl.compat.begin.algorithms.hat.graphs import GCTaskILHATTrainer
from maskcl.compat.begin.algorithms.hat.links import LCTaskILHATTrainer
from maskcl.compat.begin.algorithms.hat.nodes import NCTaskILHATTrainer

__all__ = ["NCTaskILHATTrainer", "LCTaskILHATTrainer", "GCTaskILHATTrainer"]
