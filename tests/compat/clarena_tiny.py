"""CLArena's algorithms on tasks that train in a moment."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskcl.compat.clarena.backbones import HATMaskBackbone, HATMaskMLP
from maskcl.compat.clarena.cl_algorithms import HAT, AdaHAT
from maskcl.compat.clarena.heads import HeadDIL, HeadsTIL

FEATURES, OUTPUT, CLASSES = 6, 9, 3
ADAM = functools.partial(torch.optim.Adam, lr=0.05, weight_decay=0.1)


def mlp(**options: Any) -> HATMaskMLP:
    """6 -> 16 -> 12 -> 9."""
    return HATMaskMLP(FEATURES, [16, 12], OUTPUT, "sigmoid", **options)


def hat(mode: str = "hat", backbone: HATMaskBackbone | None = None, **options: Any) -> HAT:
    """HAT or AdaHAT, whichever knows the mode."""
    backbone = mlp() if backbone is None else backbone
    assert backbone.output_dim is not None
    heads = options.pop("heads", None) or HeadsTIL(backbone.output_dim)
    if mode == "hat_const_alpha":
        options.setdefault("alpha", 0.3)
    common: dict[str, Any] = {"s_max": 40.0, "clamp_threshold": 50.0}
    common |= {"mask_sparsity_reg_factor": 0.75, **options}
    if mode.startswith("ada"):
        return AdaHAT(backbone, heads, mode, adjustment_intensity=0.02, **common)
    return HAT(backbone, heads, mode, **common)


def dil() -> HeadDIL:
    """One head for all tasks."""
    return HeadDIL(OUTPUT)


def batch(seed: int, shape: tuple[int, ...] = (FEATURES,)) -> tuple[Tensor, Tensor]:
    """Eight samples of a task."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(8, *shape, generator=chance)
    return x, torch.randint(CLASSES, (8,), generator=chance)


def begin(algorithm: HAT, task: int, optimizer: Callable[..., Any] = ADAM) -> None:
    """Set a task up."""
    algorithm.setup_task_id(task, CLASSES, optimizer)
    algorithm.train()
    algorithm.on_train_start()


def train(
    algorithm: HAT, task: int, steps: int = 6, optimizer: Any = ADAM, **options: Any
) -> dict[str, Any]:
    """Train a task in a plain loop; what its last step returned."""
    begin(algorithm, task, optimizer)
    outputs: dict[str, Any] = {}
    for i in range(steps):
        outputs = algorithm.training_step(batch(100 * task + i, **options), i, steps)
    algorithm.on_train_end()
    return outputs


@torch.no_grad()
def logits(algorithm: HAT, task: int, shape: tuple[int, ...] = (FEATURES,)) -> Tensor:
    """What a stored task answers in evaluation."""
    algorithm.eval()
    return algorithm(batch(0, shape)[0], "test", task_id=task)[0]
