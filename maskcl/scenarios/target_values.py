"""Why targets that are no classes cannot be learned or scored: values, and labels of 0 and 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl.settings import Setting

WANTED = {
    "values": "[n] or [n, d], a number or d numbers for each example",
    "multilabel": "[n, L], 0 or 1 for each of L labels",
}


def target_reasons(found: Tensor, targets: str, outputs: int | None = None) -> str | None:
    """Why these are no targets [n, d]; None where they are. The first item that is wrong is named.

    Args:
        found: a set's targets.
        targets: "values" or "multilabel".
        outputs: d, where it is known.
    """
    shape = list(found.shape)
    if found.dim() != 2 or shape[1] == 0:
        return f"targets have the shape {shape}, wanted {WANTED[targets]}"
    if outputs is not None and shape[1] != outputs:
        return f"targets have the shape {shape}, and the task has {outputs} {targets}"
    if targets == "values":
        if not found.is_floating_point():
            return f"targets are {found.dtype}, wanted floating values"
        wrong, wanted = ~found.isfinite(), "a finite number"
    else:
        wrong, wanted = (found != 0) & (found != 1), "0 or 1"
    if not bool(wrong.any()):
        return None
    item, column = torch.nonzero(wrong)[0].tolist()
    return f"item {item} has {found[item, column].item():g} in its target, wanted {wanted}"


def without_classes_reasons(setting: Setting, targets: str, tasks: Sequence[Any]) -> str | None:
    """Why tasks' values or labels cannot be learned in a setting; None where they can.

    Args:
        setting: of the scenario.
        targets: "values" or "multilabel".
        tasks: a ``Task`` each, with as many classes as outputs.
    """
    outputs = [len(task.classes) for task in tasks]
    for index, task in enumerate(tasks):
        # A training set may be one that says its targets only item by item.
        parts = {"training": getattr(task.train, "labels", None), "test": task.labels}
        for part, found in parts.items():
            reason = None if found is None else target_reasons(found, targets, outputs[index])
            if reason is not None:
                return f"task {index}'s {part} set: {reason}"
    if setting.name == "class":
        return (
            f"{targets} have no classes, by which the class setting divides tasks; wanted the task"
            " or the domain setting"
        )
    if setting.head == "shared" and len(set(outputs)) > 1:
        return (
            f"tasks have {', '.join(map(str, outputs))} {targets}, wanted one number in the"
            f" {setting.name} setting, whose tasks share all outputs"
        )
    return None
