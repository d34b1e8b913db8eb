"""Modules that many tasks share through masks: tensors in, tensors out."""

from maskcl.nn.hat.capacity import Capacity
from maskcl.nn.hat.convert import to_hat
from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.layers import HATConv1d, HATConv2d, HATConv3d, HATLinear
from maskcl.nn.hat.network import HATNetwork
from maskcl.nn.hat.protection import Protection
from maskcl.nn.importance.convert import to_importance
from maskcl.nn.importance.network import ImportanceNetwork
from maskcl.nn.piggyback.convert import to_piggyback
from maskcl.nn.piggyback.layers import (
    PiggybackConv1d,
    PiggybackConv2d,
    PiggybackConv3d,
    PiggybackEmbedding,
    PiggybackLinear,
)
from maskcl.nn.piggyback.network import PiggybackNetwork
from maskcl.nn.plain import to_plain
from maskcl.nn.tasks.errors import ConversionError, ConversionWarning
from maskcl.nn.tasks.heads import GrowingHead, TaskHeads, mask_logits
from maskcl.nn.tasks.network import TaskNetwork
from maskcl.nn.tasks.norms import (
    TaskBatchNorm1d,
    TaskBatchNorm2d,
    TaskBatchNorm3d,
    TaskGroupNorm,
    TaskLayerNorm,
    TaskRMSNorm,
)
from maskcl.nn.tasks.unlearning import Forgotten

__all__ = [
    "Capacity",
    "ConversionError",
    "ConversionWarning",
    "Forgotten",
    "GrowingHead",
    "HATConv1d",
    "HATConv2d",
    "HATConv3d",
    "HATEmbedding",
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
    "TaskRMSNorm",
    "mask_logits",
    "to_hat",
    "to_importance",
    "to_piggyback",
    "to_plain",
]
