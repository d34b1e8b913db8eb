"""HAT for nodes."""

from maskcl.compat.begin.algorithms.hat.names import HATNames
from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import HAT_UNIT
from maskcl.compat.begin.trainers.nodes import NCTrainer

__all__ = ["NCTaskILHATTrainer"]

NCTaskILHATTrainer = trainer(__name__, NCTrainer, HAT_UNIT, "task", HATNames)
