"""MAS for nodes."""

from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import MAS_UNIT
from maskcl.compat.begin.trainers.nodes import NCMinibatchTrainer, NCTrainer

__all__ = [
    "NCTaskILMASTrainer",
    "NCClassILMASTrainer",
    "NCDomainILMASTrainer",
    "NCTimeILMASTrainer",
    "NCClassILMASMinibatchTrainer",
]

NCTaskILMASTrainer = trainer(__name__, NCTrainer, MAS_UNIT, "task")
NCClassILMASTrainer = trainer(__name__, NCTrainer, MAS_UNIT, "class")
NCDomainILMASTrainer = trainer(__name__, NCTrainer, MAS_UNIT, "domain")
NCTimeILMASTrainer = trainer(__name__, NCTrainer, MAS_UNIT, "time")
NCClassILMASMinibatchTrainer = trainer(__name__, NCMinibatchTrainer, MAS_UNIT, "class")
