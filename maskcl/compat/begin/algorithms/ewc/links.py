"""EWC for links."""

from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import EWC_OF_PAIRS, EWC_UNIT
from maskcl.compat.begin.trainers.links import LCTrainer, LPTrainer

__all__ = [
    "LCTaskILEWCTrainer",
    "LCClassILEWCTrainer",
    "LCTimeILEWCTrainer",
    "LPTimeILEWCTrainer",
    "LPDomainILEWCTrainer",
]

LCTaskILEWCTrainer = trainer(__name__, LCTrainer, EWC_UNIT, "task")
LCClassILEWCTrainer = trainer(__name__, LCTrainer, EWC_UNIT, "class")
LCTimeILEWCTrainer = trainer(__name__, LCTrainer, EWC_UNIT, "time")
LPTimeILEWCTrainer = trainer(__name__, LPTrainer, EWC_OF_PAIRS, "time")
LPDomainILEWCTrainer = trainer(__name__, LPTrainer, EWC_OF_PAIRS, "domain")
