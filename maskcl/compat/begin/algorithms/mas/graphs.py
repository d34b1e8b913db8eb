"""MAS for graphs."""

from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import MAS_UNIT
from maskcl.compat.begin.trainers.graphs import GCTrainer

__all__ = [
    "GCTaskILMASTrainer",
    "GCClassILMASTrainer",
    "GCDomainILMASTrainer",
    "GCTimeILMASTrainer",
]

GCTaskILMASTrainer = trainer(__name__, GCTrainer, MAS_UNIT, "task")
GCClassILMASTrainer = trainer(__name__, GCTrainer, MAS_UNIT, "class")
GCDomainILMASTrainer = trainer(__name__, GCTrainer, MAS_UNIT, "domain")
GCTimeILMASTrainer = trainer(__name__, GCTrainer, MAS_UNIT, "time")
