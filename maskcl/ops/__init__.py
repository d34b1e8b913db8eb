"""The functional API: every fused op, one function each."""

from maskcl.ops.bitmask import (
    and_words,
    andnot_words,
    or_words,
    pack_mask,
    pack_scores,
    popcount,
    unpack_mask,
    xor_words,
)
from maskcl.ops.gate import hat_gate, hat_scale, hat_sparsity
from maskcl.ops.grad_clamp import (
    clamp_grads_,
    clamp_grads_soft_,
    protected_fraction,
    restore_protected_,
)
from maskcl.ops.importance import mas_accumulate_, mas_penalty, mas_penalty_grads_
from maskcl.ops.importance_products import linear_importance, linear_importance_
from maskcl.ops.masked_forward import masked_activation
from maskcl.ops.masked_products import masked_conv, masked_linear
from maskcl.ops.open_products import open_conv
from maskcl.ops.packed_products import packed_embedding, packed_linear, packed_weight
from maskcl.ops.piggyback_products import piggyback_linear
from maskcl.ops.progress import epoch_progress, task_progress
from maskcl.ops.selection import kth_largest
from maskcl.ops.update import adam_update_, sgd_update_, unprotected_norm
from maskcl.ops.weight_mask import (
    binarize,
    piggyback_weight,
    soft_mask,
    ternarize,
    topk_mask,
)

__all__ = [
    "adam_update_",
    "and_words",
    "andnot_words",
    "binarize",
    "clamp_grads_",
    "clamp_grads_soft_",
    "epoch_progress",
    "task_progress",
    "hat_gate",
    "hat_scale",
    "hat_sparsity",
    "kth_largest",
    "linear_importance",
    "linear_importance_",
    "mas_accumulate_",
    "mas_penalty",
    "mas_penalty_grads_",
    "masked_activation",
    "masked_conv",
    "masked_linear",
    "open_conv",
    "or_words",
    "pack_mask",
    "pack_scores",
    "packed_embedding",
    "packed_linear",
    "packed_weight",
    "piggyback_linear",
    "piggyback_weight",
    "popcount",
    "protected_fraction",
    "restore_protected_",
    "sgd_update_",
    "soft_mask",
    "ternarize",
    "topk_mask",
    "unpack_mask",
    "unprotected_norm",
    "xor_words",
]
