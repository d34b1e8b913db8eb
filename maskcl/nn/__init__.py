"""Modules that many tasks share through masks: tensors in, tensors out."""

from maskcl.nn.convert import to_hat
from maskcl.nn.errors import ConversionError
from maskcl.nn.heads import TaskHeads
from maskcl.nn.layers import HATConv1d, HATConv2d, HATConv3d, HATLinear
from maskcl.nn.network import HATNetwork
from maskcl.nn.norms import (
    TaskBatchNorm1d,
    TaskBatchNorm2d,
    TaskBatchNorm3d,
    TaskGroupNorm,
    TaskLayerNorm,
)
from maskcl.nn.plain import to_plain
from maskcl.nn.protection import Protection

__all__ = [
    "ConversionError",
    "HATConv1d",
    "HATConv2d",
    "HATConv3d",
    "HATLinear",
    "HATNetwork",
    "Protection",
    "TaskBatchNorm1d",
    "TaskBatchNorm2d",
    "TaskBatchNorm3d",
    "TaskGroupNorm",
    "TaskHeads",
    "TaskLayerNorm",
    "to_hat",
    "to_plain",
]
