"""MAS for nodes, links and graphs."""

from maskcl.compat.begin.algorithms.mas.graphs import (
    GCClassILMASTrainer,
    GCDomainILMASTrainer,
    GCTaskILMASTrainer,
    GCTimeILMASTrainer,
)
from maskcl.compat.begin.algorithms.mas.links import (
    LCClassILMASTrainer,
    LCTaskILMASTrainer,
    LCTimeILMASTrainer,
    LPDomainILMASTrainer,
    LPTimeILMASTrainer,
)
from maskcl.compat.begin.algorithms.mas.nodes import (
    NCClassILMASMinibatchTrainer,
    NCClassILMASTrainer,
    NCDomainILMASTrainer,
    NCTaskILMASTrainer,
    NCTimeILMASTrainer,
)

__all__ = [
    "NCClassILMASMinibatchTrainer",
    "NCClassILMASTrainer",
    "NCDomainILMASTrainer",
    "NCTaskILMASTrainer",
    "NCTimeILMASTrainer",
    "LCClassILMASTrainer",
    "LCTaskILMASTrainer",
    "LCTimeILMASTrainer",
    "LPDomainILMASTrainer",
    "LPTimeILMASTrainer",
    "GCClassILMASTrainer",
    "GCDomainILMASTrainer",
    "GCTaskILMASTrainer",
    "GCTimeILMASTrainer",
]
