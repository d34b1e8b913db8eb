"""Fine-tuning for nodes."""

from maskcl.compat.begin.factory import trainer
from maskcl.compat.begin.methods import BARE
from maskcl.compat.begin.trainers.nodes import NCMinibatchTrainer, NCTrainer

__all__ = [
    "NCTaskILBareTrainer",
    "NCClassILBareTrainer",
    "NCDomainILBareTrainer",
    "NCTimeILBareTrainer",
    "NCClassILBareMinibatchTrainer",
]

NCTaskILBareTrainer = trainer(__name__, NCTrainer, BARE, "task")
NCClassILBareTrainer = trainer(__name__, NCTrainer, BARE, "class")
NCDomainILBareTrainer = trainer(__name__, NCTrainer, BARE, "domain")
NCTimeILBareTrainer = trainer(__name__, NCTrainer, BARE, "time")
NCClassILBareMinibatchTrainer = trainer(__name__, NCMinibatchTrainer, BARE, "class")
