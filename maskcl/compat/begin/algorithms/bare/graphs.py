"""Fine-tuning for graphs."""

from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import BARE
from maskcl.compat.begin.trainers.graphs import GCTrainer

__all__ = [
    "GCTaskILBareTrainer",
    "GCClassILBareTrainer",
    "GCDomainILBareTrainer",
    "GCTimeILBareTrainer",
]

GCTaskILBareTrainer = trainer(__name__, GCTrainer, BARE, "task")
GCClassILBareTrainer = trainer(__name__, GCTrainer, BARE, "class")
GCDomainILBareTrainer = trainer(__name__, GCTrainer, BARE, "domain")
GCTimeILBareTrainer = trainer(__name__, GCTrainer, BARE, "time")
