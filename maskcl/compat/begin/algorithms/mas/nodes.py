"""MAS for nodes."""

from maskcl.compat.begin.algorithms.mas.names import MASNames
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

NCTaskILMASTrainer = trainer(__name__, NCTrainer, MAS_UNIT, "task", MASNames)
NCClassILMASTrainer = trainer(__name__, NCTrainer, MAS_UNIT, "class", MASNames)
NCDomainILMASTrainer = trainer(__name__, NCTrainer, MAS_UNIT, "domain", MASNames)
NCTimeILMASTrainer = trainer(__name__, NCTrainer, MAS_UNIT, "time", MASNames)
NCClassILMASMinibatchTrainer = trainer(__name__, NCMinibatchTrainer, MAS_UNIT, "class", MASNames)
