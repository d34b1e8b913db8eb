"""HAT for graphs."""

from maskcl.compat.begin.algorithms.hat.names import HATNamesOfGraphs
from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import HAT_UNIT
from maskcl.compat.begin.trainers.graphs import GCTrainer

__all__ = ["GCTaskILHATTrainer"]

GCTaskILHATTrainer = trainer(__name__, GCTrainer, HAT_UNIT, "task", HATNamesOfGraphs)
