"""MAS for links."""

from maskcl.compat.begin.algorithms.mas.names import MASNames
from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import MAS_UNIT
from maskcl.compat.begin.trainers.links import LCTrainer, LPTrainer

__all__ = [
    "LCTaskILMASTrainer",
    "LCClassILMASTrainer",
    "LCTimeILMASTrainer",
    "LPTimeILMASTrainer",
    "LPDomainILMASTrainer",
]

LCTaskILMASTrainer = trainer(__name__, LCTrainer, MAS_UNIT, "task", MASNames)
LCClassILMASTrainer = trainer(__name__, LCTrainer, MAS_UNIT, "class", MASNames)
LCTimeILMASTrainer = trainer(__name__, LCTrainer, MAS_UNIT, "time", MASNames)
LPTimeILMASTrainer = trainer(__name__, LPTrainer, MAS_UNIT, "time", MASNames)
LPDomainILMASTrainer = trainer(__name__, LPTrainer, MAS_UNIT, "domain", MASNames)
