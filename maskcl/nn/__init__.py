"""Modules that many tasks share through masks: tensors in, tensors out."""

from maskcl.nn.convert import to_hat
from maskcl.nn.convert_importance import to_importance
from maskcl.nn.convert_piggyback import to_piggyback
from maskcl.nn.errors import ConversionError
from maskcl.nn.heads import GrowingHead, TaskHeads, mask_logits
from maskcl.nn.importance_network import ImportanceNetwork
from maskcl.nn.layers import HATConv1d, HATConv2d, HATConv3d, HATLinear
from maskcl.nn.network import HATNetwork
from maskcl.nn.norms import (
    TaskBatchNorm1d,
    TaskBatchNorm2d,
    TaskBatchNorm3d,
    TaskGroupNorm,
    TaskLayerNorm,
)
from maskcl.nn.piggyback import (
    PiggybackConv1d,
    PiggybackConv2d,
    PiggybackConv3d,
    PiggybackEmbedding,
    PiggybackLinear,
)
from maskcl.nn.piggyback_network import PiggybackNetwork
from maskcl.nn.plain import to_plain
from maskcl.nn.protection import Protection
from maskcl.nn.task_network import TaskNetwork

__all__ = [
    "ConversionError",
    "GrowingHead",
    "HATConv1d",
    "HATConv2d",
    "HATConv3d",
    "HATLinear",
    "HATNetwork",
    "ImportanceNetwork",
    "PiggybackConv1d",
    "PiggybackConv2d",
    "PiggybackConv3d",
    "PiggybackEmbedding",
    "PiggybackLinear",
    "PiggybackNetwork",
    "Protection",
    "TaskBatchNorm1d",
    "TaskBatchNorm2d",
    "TaskBatchNorm3d",
    "TaskGroupNorm",
    "TaskHeads",
    "TaskLayerNorm",
    "TaskNetwork",
    "mask_logits",
    "to_hat",
    "to_importance",
    "to_piggyback",
    "to_plain",
]
