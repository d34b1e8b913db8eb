"""Fine-tuning for nodes, links and graphs."""

from maskcl.compat.begin.algorithms.bare.graphs import (
    GCClassILBareTrainer,
    GCDomainILBareTrainer,
    GCTaskILBareTrainer,
    GCTimeILBareTrainer,
)
from maskcl.compat.begin.algorithms.bare.links import (
    LCClassILBareTrainer,
    LCTaskILBareTrainer,
    LCTimeILBareTrainer,
    LPDomainILBareTrainer,
    LPTimeILBareTrainer,
)
from maskcl.compat.begin.algorithms.bare.nodes import (
    NCClassILBareMinibatchTrainer,
    NCClassILBareTrainer,
    NCDomainILBareTrainer,
    NCTaskILBareTrainer,
    NCTimeILBareTrainer,
)

__all__ = [
    "NCTaskILBareTrainer",
    "NCClassILBareTrainer",
    "NCDomainILBareTrainer",
    "NCTimeILBareTrainer",
    "NCClassILBareMinibatchTrainer",
    "LCTaskILBareTrainer",
    "LCClassILBareTrainer",
    "LCTimeILBareTrainer",
    "LPTimeILBareTrainer",
    "LPDomainILBareTrainer",
    "GCTaskILBareTrainer",
    "GCClassILBareTrainer",
    "GCDomainILBareTrainer",
    "GCTimeILBareTrainer",
]
