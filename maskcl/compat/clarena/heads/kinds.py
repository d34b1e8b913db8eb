"""Which of CLArena's heads an object is, ours or those of the ``clarena`` that is installed."""

from __future__ import annotations

from typing import Any

from torch import nn

KINDS = {"HeadsTIL": "TIL", "HeadsCIL": "CIL", "HeadDIL": "DIL"}
"""Name of a class -> the setting that it is for."""


def kind_of(heads: Any) -> str | None:
    """Of what setting heads are, "TIL", "CIL" or "DIL"; None for what is none of CLArena's.

    CLArena's pipelines make heads of their own classes; theirs are known by their names.
    """
    names = (cls.__name__ for cls in type(heads).__mro__)
    found = next((KINDS[name] for name in names if name in KINDS), None)
    return found if isinstance(heads, nn.Module) else None


def setup_heads(heads: Any, task_id: int, num_classes: int) -> None:
    """Go to a task, whose head is made unless it is there; in TIL the others are frozen.

    Args:
        heads: of a kind that `kind_of` knows.
        task_id: of the task.
        num_classes: outputs of its head.

    Raises:
        ValueError: its head is there, with another number of classes.
    """
    kind = kind_of(heads)
    if kind == "DIL":
        if not heads.if_head_setup():
            heads.setup_task(num_classes)
        return
    if kind == "TIL" and str(task_id) in heads.heads:
        # CLArena's would make another.
        check_classes(heads, task_id, num_classes)
        heads.task_id = task_id
    else:
        heads.setup_task_id(task_id, num_classes)
    if kind == "TIL":
        freeze_others(heads, task_id)


def check_classes(heads: Any, task_id: int, num_classes: int) -> None:
    """Raise ValueError where the head of a task has another number of classes."""
    found = heads.heads[str(task_id)].out_features
    if found != num_classes:
        raise ValueError(
            f"HeadsTIL.setup_task_id: task {task_id} has a head of {found} classes, wanted"
            f" {num_classes}"
        )


def freeze_others(heads: Any, task_id: int) -> None:
    """Let a task's head alone learn."""
    for key, head in heads.heads.items():
        current = key == str(task_id)
        for parameter in head.requires_grad_(current).parameters():
            # An optimizer of the task before steps what has a gradient, if it is 0.
            parameter.grad = parameter.grad if current else None
