"""A network's outputs for samples of several tasks, each under its own task's mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def answers(
    answer: Callable[[int, tuple[Any, ...]], Tensor],
    task: Tensor,
    classes: Mapping[int, Tensor],
    args: tuple[Any, ...],
) -> tuple[Tensor, Tensor]:
    """Outputs and labels of samples.

    Args:
        answer: (task, arguments) -> [n, C_task].
        task: int64 [n], of each sample.
        classes: by task, those that it has.
        args: of the network's forward; a single tensor is split by task.

    Returns:
        [n, C], -inf past a task's last output, and int64 [n]: the class of the largest output, or
        with one output whether it is above 0.

    Raises:
        ValueError: outputs are no scores of classes.
    """
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for k in task.unique().tolist():
        rows = torch.nonzero(task == k).flatten()
        if len(args) == 1 and isinstance(args[0], Tensor):
            outputs = answer(k, (args[0][rows],))
        else:
            outputs = answer(k, args)[rows]
        if outputs.dim() != 2:
            raise ValueError(
                f"infer: outputs of task {k} have shape {list(outputs.shape)}, wanted [samples,"
                " classes]"
            )
        if outputs.shape[1] > 1:
            label = outputs.argmax(1)
        else:
            label = (outputs[:, 0] > 0).long() * int(len(classes[k]) > 1)
        found.append((rows, outputs, label))
    width = max((outputs.shape[1] for _, outputs, _ in found), default=0)
    dtype = found[0][1].dtype if found else torch.get_default_dtype()
    together = torch.full((len(task), width), -torch.inf, dtype=dtype, device=task.device)
    labels = torch.zeros_like(task)
    for rows, outputs, label in found:
        together[rows, : outputs.shape[1]] = outputs
        labels[rows] = label
    return together, labels
