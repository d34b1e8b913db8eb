"""The task dependent modules."""

from maskcl.compat.hat_cl.modules.batchnorm import (
    TaskIndexedBatchNorm1d,
    TaskIndexedBatchNorm2d,
    TaskIndexedBatchNorm3d,
)
from maskcl.compat.hat_cl.modules.conv import HATConv1d, HATConv2d, HATConv3d
from maskcl.compat.hat_cl.modules.linear import HATLinear
from maskcl.compat.hat_cl.modules.maskers import AttentionMasker, ConstantMasker, HATMasker
from maskcl.compat.hat_cl.modules.normalization import TaskIndexedLayerNorm

__all__ = [
    "AttentionMasker",
    "ConstantMasker",
    "HATConv1d",
    "HATConv2d",
    "HATConv3d",
    "HATLinear",
    "HATMasker",
    "TaskIndexedBatchNorm1d",
    "TaskIndexedBatchNorm2d",
    "TaskIndexedBatchNorm3d",
    "TaskIndexedLayerNorm",
]
