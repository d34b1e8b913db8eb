"""Piggyback for graphs."""

from maskcl.compat.begin.algorithms.own_classes import ClassesOfTasks
from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import PIGGYBACK_UNIT
from maskcl.compat.begin.trainers.graphs import GCTrainer

__all__ = ["GCTaskILPiggybackTrainer"]

GCTaskILPiggybackTrainer = trainer(__name__, GCTrainer, PIGGYBACK_UNIT, "task", ClassesOfTasks)
