"""EWC for graphs."""

from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import EWC_UNIT
from maskcl.compat.begin.trainers.graphs import GCTrainer

__all__ = [
    "GCTaskILEWCTrainer",
    "GCClassILEWCTrainer",
    "GCDomainILEWCTrainer",
    "GCTimeILEWCTrainer",
]

GCTaskILEWCTrainer = trainer(__name__, GCTrainer, EWC_UNIT, "task")
GCClassILEWCTrainer = trainer(__name__, GCTrainer, EWC_UNIT, "class")
GCDomainILEWCTrainer = trainer(__name__, GCTrainer, EWC_UNIT, "domain")
GCTimeILEWCTrainer = trainer(__name__, GCTrainer, EWC_UNIT, "time")
