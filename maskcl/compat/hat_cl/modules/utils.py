"""Where hat-cl has the register of task dependent classes."""

from maskcl.compat.hat_cl._counterparts import base_to_task_dependent_mapping, register_mapping

__all__ = ["base_to_task_dependent_mapping", "register_mapping"]
