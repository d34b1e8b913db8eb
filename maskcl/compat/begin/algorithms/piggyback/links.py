"""Piggyback for links."""

from maskcl.compat.begin.algorithms.own_classes import ClassesOfTasks
from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import PIGGYBACK_UNIT
from maskcl.compat.begin.trainers.links import LCTrainer

__all__ = ["LCTaskILPiggybackTrainer"]

LCTaskILPiggybackTrainer = trainer(__name__, LCTrainer, PIGGYBACK_UNIT, "task", ClassesOfTasks)
