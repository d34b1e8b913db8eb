"""Fine-tuning for links."""

from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import BARE
from maskcl.compat.begin.trainers.links import LCTrainer, LPTrainer

__all__ = [
    "LCTaskILBareTrainer",
    "LCClassILBareTrainer",
    "LCTimeILBareTrainer",
    "LPTimeILBareTrainer",
    "LPDomainILBareTrainer",
]

LCTaskILBareTrainer = trainer(__name__, LCTrainer, BARE, "task")
LCClassILBareTrainer = trainer(__name__, LCTrainer, BARE, "class")
LCTimeILBareTrainer = trainer(__name__, LCTrainer, BARE, "time")
LPTimeILBareTrainer = trainer(__name__, LPTrainer, BARE, "time")
LPDomainILBareTrainer = trainer(__name__, LPTrainer, BARE, "domain")
