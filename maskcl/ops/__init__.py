"""The functional API: every fused op, one function each."""

from maskcl.ops.gate import epoch_progress, hat_gate, hat_scale, hat_sparsity
from maskcl.ops.grad_clamp import (
    clamp_grads_,
    clamp_grads_soft_,
    protected_fraction,
    restore_protected_,
)
from maskcl.ops.masked_forward import masked_activation, masked_linear

__all__ = [
    "clamp_grads_",
    "clamp_grads_soft_",
    "epoch_progress",
    "hat_gate",
    "hat_scale",
    "hat_sparsity",
    "masked_activation",
    "masked_linear",
    "protected_fraction",
    "restore_protected_",
]
