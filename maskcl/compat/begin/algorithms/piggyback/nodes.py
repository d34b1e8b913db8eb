"""Piggyback for nodes."""

from maskcl.compat.begin.algorithms.own_classes import ClassesOfTasks
from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import PIGGYBACK_UNIT
from maskcl.compat.begin.trainers.nodes import NCTrainer

__all__ = ["NCTaskILPiggybackTrainer"]

NCTaskILPiggybackTrainer = trainer(__name__, NCTrainer, PIGGYBACK_UNIT, "task", ClassesOfTasks)
