"""Helpers of the models."""

from maskcl.compat.hat_cl.timm_models.utils.conversion import (
    convert_children_to_task_dependent_modules,
)

__all__ = ["convert_children_to_task_dependent_modules"]
