"""Which task dependent class stands for which ordinary one."""

from __future__ import annotations

from typing import Any, TypeVar

C = TypeVar("C", bound=type)
base_to_task_dependent_mapping: dict[type, Any] = {}


def register_mapping(cls: C) -> C:
    """Have conversion use ``cls`` for its ``base_class``; a class decorator.

    Raises:
        ValueError: another class is registered for it.
    """
    base = cls.base_class  # type: ignore[attr-defined]
    known = base_to_task_dependent_mapping.setdefault(base, cls)
    if known is not cls:
        raise ValueError(
            f"register_mapping: {base.__name__} has {known.__name__} already, not {cls.__name__}"
        )
    return cls
