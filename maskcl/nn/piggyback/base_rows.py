"""What a network's frozen base gives its heads, with every weight in place: no task changes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl import ops
from maskcl.nn.inference.first_layer import inputs_of_first
from maskcl.nn.piggyback.masked_layer import PiggybackLayer
from maskcl.nn.tasks.active import Entering
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.norms import TaskNorm


def base_rows(net: Any, args: tuple[Any, ...]) -> Tensor:
    """[R, ...]: the heads' input under masks that remove nothing.

    Args:
        net: a PiggybackNetwork.
        args: of its forward.

    Raises:
        ValueError: see `check_base`.
    """
    heads = check_base(net)

    def whole() -> Any:
        active = net._new_active(0, None)
        active.own = tuple(
            _all_weights(module) if isinstance(module, PiggybackLayer) else own
            for module, own in zip(net._state.modules, active.own, strict=True)
        )
        return active

    with Entering(net, whole):
        (rows,) = inputs_of_first(net, heads, args).inputs
    assert isinstance(rows, Tensor)
    return rows


def check_base(net: Any) -> list[TaskHeads]:
    """The heads of a network whose base is all tasks'.

    Raises:
        ValueError: it has no heads of tasks, or norms of tasks, which are no part of the base.
    """
    heads = [m for m in net.model.modules() if isinstance(m, TaskHeads)]
    norms = [n for n, m in net.model.named_modules() if isinstance(m, TaskNorm)]
    if not heads or norms:
        found = f"norms of tasks ({norms[0]})" if norms else "no heads of tasks"
        raise ValueError(
            f"TaskInference: space is 'base', and the network has {found}; wanted"
            " to_piggyback(model, tasks, classes=[...], norms='frozen')"
        )
    return heads


def _all_weights(layer: PiggybackLayer) -> Tensor:
    """Words of a mask that keeps every weight."""
    ones = ops.pack_mask(
        torch.ones(layer.weight.shape, dtype=torch.bool, device=layer.weight.device)
    )
    return ones if layer.words.shape[1] == 1 else torch.stack([ones, torch.zeros_like(ones)])
