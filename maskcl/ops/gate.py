"""Unit gates: the mask of a task, its compensated gradient, and the sparsity term."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction
from maskcl.reference.gate import compute_dtype
from maskcl.schemas import fake

COMPENSATIONS = ("exact", "recipe")
SCHEDULES = ("linear", "cosine", "exponential", "constant")
_SHORT_EPOCH = 4  # steps


def hat_gate(
    embedding: Tensor,
    scale: float | Tensor,
    *,
    max_scale: float | None = None,
    cosh_clamp: float = 50.0,
    compensation: str = "exact",
) -> Tensor:
    """Mask of a task's units, m = sigmoid(scale * e) (HAT, Serra et al. 2018, eq. 1).

    Args:
        embedding: e, [U], any floating dtype.
        scale: s, a float or a 0-d tensor on the same device; a tensor may be annealed in place with
            neither a synchronisation nor a recompilation. It receives no gradient.
        max_scale: s_max. Given, the gradient is compensated as in section 2.5:
            g s_max sigmoid'(e) min(1, sigmoid'(s e) / sigmoid'(cosh_clamp)). None: g s m (1 - m).
        cosh_clamp: |s e| beyond which the compensation stops growing.
        compensation: "exact", that equation, finite for every e and s; or "recipe", the original's
            arithmetic, whose gradient is 0 where m rounds to 1 (an open gate then never closes).

    Returns:
        [U], float32 whatever the autocast dtype; float64 for a float64 embedding.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check.floating("hat_gate", "embedding", embedding)
    _check.dimensions("hat_gate", "embedding", embedding, 1)
    if compensation not in COMPENSATIONS:
        _check.one_of("hat_gate", "compensation", compensation, COMPENSATIONS)
    if max_scale is not None and not max_scale > 0:
        raise ValueError(f"hat_gate: max_scale is {max_scale}, wanted a number above 0 or None")
    if not isinstance(scale, Tensor):
        scale = torch.full((), scale, dtype=compute_dtype(embedding.dtype), device=embedding.device)
    elif scale.dim() != 0:
        raise ValueError(f"hat_gate: scale has shape {list(scale.shape)}, wanted a 0-d tensor")
    elif scale.requires_grad:
        scale = scale.detach()
    recipe = compensation == "recipe"
    return HatGateFunction.apply(embedding, scale, max_scale or 0.0, cosh_clamp, recipe)


class HatGateFunction(OpFunction):
    """hat_gate with its compensated gradient."""

    @staticmethod
    def forward(
        embedding: Tensor, scale: Tensor, max_scale: float, cosh_clamp: float, recipe: bool
    ) -> Tensor:
        return backends.select("hat_gate", embedding)(embedding, scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        embedding, scale, ctx.max_scale, ctx.cosh_clamp, ctx.recipe = inputs
        ctx.save_for_backward(embedding, output, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        embedding, mask, scale = ctx.saved_tensors
        run = backends.select("hat_gate_backward", embedding)
        out = run(grad, embedding, mask, scale, ctx.max_scale, ctx.cosh_clamp, ctx.recipe)
        return out, None, None, None, None


def hat_sparsity(mask: Tensor, used: Tensor) -> Tensor:
    """Share of the free units that a mask takes, sum m (1 - u) / sum (1 - u) (HAT, eq. 5).

    Args:
        mask: m, [U], floating.
        used: u, [U], bool, or floating in [0, 1]: what earlier tasks use.

    Returns:
        0-d, mask's dtype; exactly 0, with a gradient of 0, where no unit is free.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check.floating("hat_sparsity", "mask", mask)
    _check.dimensions("hat_sparsity", "mask", mask, 1)
    _check.same_shape("hat_sparsity", "used", used, "mask", mask)
    return HatSparsityFunction.apply(mask, used)


class HatSparsityFunction(OpFunction):
    """hat_sparsity; u is a constant."""

    @staticmethod
    def forward(mask: Tensor, used: Tensor) -> Tensor:
        return backends.select("hat_sparsity", mask)(mask, used)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mask, used = ctx.saved_tensors
        return backends.select("hat_sparsity_backward", mask)(grad, mask, used), None


def hat_scale(progress: float, max_scale: float, schedule: str = "linear") -> float:
    """Scale s at ``progress`` in [0, 1] of an epoch: from 1 / max_scale to max_scale (HAT, eq. 3).

    Args:
        progress: (batch index) / (batches - 1); 1 where the epoch has one batch (see
            :func:`epoch_progress`).
        max_scale: s_max, at least 1.
        schedule: "linear" (the paper's), "cosine" (half a wave, slow at both ends), "exponential"
            (a straight line in log s) or "constant" (s_max throughout).

    Returns:
        s, a float.

    Raises:
        ValueError: progress is outside [0, 1], max_scale below 1, or the schedule unknown.
    """
    _check.one_of("hat_scale", "schedule", schedule, SCHEDULES)
    if not 0 <= progress <= 1:
        raise ValueError(f"hat_scale: progress is {progress}, wanted a number from 0 to 1")
    if not max_scale >= 1:
        raise ValueError(f"hat_scale: max_scale is {max_scale}, wanted a number of at least 1")
    low = 1 / max_scale
    match schedule:
        case "linear":
            share = progress
        case "cosine":
            share = (1 - math.cos(math.pi * progress)) / 2
        case "exponential":
            return max_scale ** (2 * progress - 1)
        case _:
            share = 1.0
    # Written so that both ends are exact: low at 0 and max_scale at 1.
    return low * (1 - share) + max_scale * share


def epoch_progress(batch: int, batches: int) -> float:
    """Progress for `hat_scale` in an epoch: 0 at its first batch, 1 at its last (HAT, eq. 3).

    Args:
        batch: from 0.
        batches: of the epoch.

    Returns:
        batch / (batches - 1), from 0 to 1; 1 where there is one batch.

    Raises:
        ValueError: the batch is out of range.
    """
    if not 0 <= batch < batches:
        raise ValueError(f"epoch_progress: batch is {batch}, wanted one from 0 to {batches - 1}")
    return batch / (batches - 1) if batches > 1 else 1.0


def task_progress(epoch: int, epochs: int, batch: int, batches: int) -> float:
    """Progress in [0, 1] for `hat_scale`: of the epoch, or of the task where epochs are short.

    The paper's scale goes from 1 / s_max to s_max in every epoch (eq. 3). In an epoch of a few
    steps, as on a whole graph, which is one, it would be at s_max nearly always, where no gate
    learns: then it rises once, over all steps of the task.

    Args:
        epoch: from 0.
        epochs: of the task.
        batch: from 0.
        batches: of the epoch.

    Returns:
        A number from 0 to 1.

    Raises:
        ValueError: an epoch or a batch is out of range.
    """
    if batches >= _SHORT_EPOCH:
        return epoch_progress(batch, batches)
    if not (0 <= epoch < epochs and 0 <= batch < batches):
        raise ValueError(
            f"task_progress: epoch is {epoch} of {epochs}, batch {batch} of {batches},"
            " wanted less than these and at least 0"
        )
    return epoch_progress(epoch * batches + batch, epochs * batches)


@fake("hat_gate")
def _(embedding: Tensor, scale: Tensor) -> Tensor:
    return embedding.new_empty(embedding.shape, dtype=compute_dtype(embedding.dtype))


@fake("hat_gate_backward")
def _(
    grad: Tensor,
    embedding: Tensor,
    mask: Tensor,
    scale: Tensor,
    max_scale: float,
    cosh_clamp: float,
    recipe: bool,
) -> Tensor:
    return embedding.new_empty(embedding.shape)


@fake("hat_sparsity")
def _(mask: Tensor, used: Tensor) -> Tensor:
    return mask.new_empty(())


@fake("hat_sparsity_backward")
def _(grad: Tensor, mask: Tensor, used: Tensor) -> Tensor:
    return mask.new_empty(mask.shape)
