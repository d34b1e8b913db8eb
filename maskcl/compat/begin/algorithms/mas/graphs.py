"""MAS for graphs."""

from maskcl.compat.begin.algorithms.mas.names import MASNames
from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import MAS_UNIT
from maskcl.compat.begin.trainers.graphs import GCTrainer

__all__ = [
    "GCTaskILMASTrainer",
    "GCClassILMASTrainer",
    "GCDomainILMASTrainer",
    "GCTimeILMASTrainer",
]

GCTaskILMASTrainer = trainer(__name__, GCTrainer, MAS_UNIT, "task", MASNames)
GCClassILMASTrainer = trainer(__name__, GCTrainer, MAS_UNIT, "class", MASNames)
GCDomainILMASTrainer = trainer(__name__, GCTrainer, MAS_UNIT, "domain", MASNames)
GCTimeILMASTrainer = trainer(__name__, GCTrainer, MAS_UNIT, "time", MASNames)
