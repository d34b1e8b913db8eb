"""EWC for nodes."""

from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import EWC_UNIT
from maskcl.compat.begin.trainers.nodes import NCMinibatchTrainer, NCTrainer

__all__ = [
    "NCTaskILEWCTrainer",
    "NCClassILEWCTrainer",
    "NCDomainILEWCTrainer",
    "NCTimeILEWCTrainer",
    "NCClassILEWCMinibatchTrainer",
]

NCTaskILEWCTrainer = trainer(__name__, NCTrainer, EWC_UNIT, "task")
NCClassILEWCTrainer = trainer(__name__, NCTrainer, EWC_UNIT, "class")
NCDomainILEWCTrainer = trainer(__name__, NCTrainer, EWC_UNIT, "domain")
NCTimeILEWCTrainer = trainer(__name__, NCTrainer, EWC_UNIT, "time")
NCClassILEWCMinibatchTrainer = trainer(__name__, NCMinibatchTrainer, EWC_UNIT, "class")
