"""HAT for links."""

from maskcl.compat.begin.algorithms.hat.names import HATNamesOfLinks
from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import HAT_UNIT
from maskcl.compat.begin.trainers.links import LCTrainer

__all__ = ["LCTaskILHATTrainer"]

LCTaskILHATTrainer = trainer(__name__, LCTrainer, HAT_UNIT, "task", HATNamesOfLinks)
