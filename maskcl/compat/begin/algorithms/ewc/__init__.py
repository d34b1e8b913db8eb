"""EWC for nodes, links and graphs."""

from maskcl.compat.begin.algorithms.ewc.graphs import (
    GCClassILEWCTrainer,
    GCDomainILEWCTrainer,
    GCTaskILEWCTrainer,
    GCTimeILEWCTrainer,
)
from maskcl.compat.begin.algorithms.ewc.links import (
    LCClassILEWCTrainer,
    LCTaskILEWCTrainer,
    LCTimeILEWCTrainer,
    LPDomainILEWCTrainer,
    LPTimeILEWCTrainer,
)
from maskcl.compat.begin.algorithms.ewc.nodes import (
    NCClassILEWCMinibatchTrainer,
    NCClassILEWCTrainer,
    NCDomainILEWCTrainer,
    NCTaskILEWCTrainer,
    NCTimeILEWCTrainer,
)

__all__ = [
    "NCTaskILEWCTrainer",
    "NCClassILEWCTrainer",
    "NCDomainILEWCTrainer",
    "NCTimeILEWCTrainer",
    "NCClassILEWCMinibatchTrainer",
    "LCTaskILEWCTrainer",
    "LCClassILEWCTrainer",
    "LCTimeILEWCTrainer",
    "LPTimeILEWCTrainer",
    "LPDomainILEWCTrainer",
    "GCTaskILEWCTrainer",
    "GCClassILEWCTrainer",
    "GCDomainILEWCTrainer",
    "GCTimeILEWCTrainer",
]
