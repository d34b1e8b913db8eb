"""Conversion, forgetting, pruning, regularization, scaling, inspection."""

from maskcl.compat.hat_cl.utils.conversion import (
    convert_to_base_module,
    convert_to_task_dependent_module,
)
from maskcl.compat.hat_cl.utils.forgetting import forget_task
from maskcl.compat.hat_cl.utils.forward import forward_hat_payload
from maskcl.compat.hat_cl.utils.inspection import get_hat_util
from maskcl.compat.hat_cl.utils.pruning import prune_hat_module
from maskcl.compat.hat_cl.utils.regularization import get_hat_reg_term
from maskcl.compat.hat_cl.utils.scaling import get_hat_mask_scale

__all__ = [
    "convert_to_base_module",
    "convert_to_task_dependent_module",
    "forget_task",
    "forward_hat_payload",
    "get_hat_mask_scale",
    "get_hat_reg_term",
    "get_hat_util",
    "prune_hat_module",
]
