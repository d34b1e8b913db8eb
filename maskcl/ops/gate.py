"""Unit gates: the mask of a task, its compensated gradient, and the sparsity term."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops import _check
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops._numbers import in_graph, number
from maskcl.reference.gate import compute_dtype
from maskcl.schemas import fake

COMPENSATIONS = ("exact", "recipe")
SCHEDULES = ("linear", "cosine", "exponential", "constant")
# cosh(x) of the recipe, which is multiplied out, must be finite.
_RECIPE_CLAMP = {torch.float64: 709.0}
_RECIPE_CLAMP32 = 88.0


def hat_gate(
    embedding: Tensor,
    scale: float | Tensor,
    *,
    max_scale: float | None = None,
    cosh_clamp: float = 50.0,
    compensation: str = "exact",
    floor: float = 0.0,
) -> Tensor:
    """Mask of a task's units, m = sigmoid(scale * e) (HAT, Serra et al. 2018, eq. 1).

    Args:
        embedding: e, [U], any floating dtype.
        scale: s, a finite number or a 0-d tensor on the same device; a tensor may be annealed in
            place with neither a synchronisation nor a recompilation. It receives no gradient.
        max_scale: s_max. Given, the gradient is compensated as in section 2.5:
            g s_max sigmoid'(e) min(1, sigmoid'(s e) / sigmoid'(cosh_clamp)). None: g s m (1 - m).
        cosh_clamp: |s e| beyond which the compensation stops growing, at least 0; at most 88 for
            "recipe" in float32, where cosh overflows.
        compensation: "exact", that equation, finite for every e and s; or "recipe", the original's
            arithmetic, whose gradient is 0 where m rounds to 1 (an open gate then never closes).
        floor: masks below it are exactly 0, so that products can leave their units out; the
            gradient is the formula's. At least 0, below 1.

    Returns:
        [U], float32 whatever the autocast dtype; float64 for a float64 embedding.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    _check.floating("hat_gate", "embedding", embedding)
    _check.dimensions("hat_gate", "embedding", embedding, 1)
    _check.one_of("hat_gate", "compensation", compensation, COMPENSATIONS)
    recipe = compensation == "recipe"
    dtype = compute_dtype(embedding.dtype)
    max_scale, cosh_clamp = _compensation(max_scale, cosh_clamp, recipe, dtype)
    least = number("hat_gate", "floor", floor, dtype)
    if not 0 <= least < 1:
        raise ValueError(f"hat_gate: floor is {floor}, wanted a number of at least 0, below 1")
    if not isinstance(scale, Tensor):
        if torch.compiler.is_compiling():
            scale = in_graph("hat_gate", "scale", scale, dtype, embedding.device)
        else:
            scale = number("hat_gate", "scale", scale, dtype)
            scale = torch.full((), scale, dtype=dtype, device=embedding.device)
    else:
        _check.floating("hat_gate", "scale", scale)
        if scale.dim() != 0:
            raise ValueError(f"hat_gate: scale has shape {list(scale.shape)}, wanted a 0-d tensor")
        _check.same_device("hat_gate", "scale", scale, "embedding", embedding)
        if scale.requires_grad:
            scale = scale.detach()
    return call(HatGateFunction, embedding, scale, max_scale, cosh_clamp, recipe, least)


def _compensation(
    max_scale: float | None, cosh_clamp: float, recipe: bool, dtype: torch.dtype
) -> tuple[float, float]:
    """Both as the kernels take them: 0 stands for no compensation."""
    clamp = number("hat_gate", "cosh_clamp", cosh_clamp, dtype)
    most = _RECIPE_CLAMP.get(dtype, _RECIPE_CLAMP32) if recipe else math.inf
    if not 0 <= clamp <= most:
        wanted = f"a number from 0 to {most:g}" if recipe else "a number of at least 0"
        raise ValueError(f"hat_gate: cosh_clamp is {cosh_clamp}, wanted {wanted}")
    if max_scale is None:
        return 0.0, clamp
    found = number("hat_gate", "max_scale", max_scale, dtype)
    if not found > 0:
        raise ValueError(f"hat_gate: max_scale is {max_scale}, wanted a number above 0 or None")
    return found, clamp


def mask_floor(dtype: torch.dtype, cosh_clamp: float = 50.0) -> float:
    """The ``floor`` of `hat_gate` below which a unit is closed for good: exp(-k) / 256.

    k is cosh_clamp, at least 50. There the compensated gradient (section 2.5) is below 1/256
    of what it is at |s e| = k, from where on it falls like the mask itself; and a mask of 2^-80 is
    far below what a float32 sum shows. What is lost is that rest of the layer's gradient; eq. 5's
    goes on. 0 for float64 embeddings: only float32's products leave closed units out.
    """
    return 0.0 if dtype == torch.float64 else math.exp(-max(cosh_clamp, 50.0)) / 256


@dataclass(frozen=True)
class Gate:
    """How a network's gates are made, checked once: see :func:`hat_gate` and :func:`hat_gates`.

    Attributes:
        max_scale: 0 for no compensation.
        cosh_clamp: k.
        recipe: the original's arithmetic.
        floor: masks below it are 0.
        weight: of the sparsity term.
    """

    max_scale: float
    cosh_clamp: float
    recipe: bool
    floor: float
    weight: float

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        max_scale: float | None,
        cosh_clamp: float,
        compensation: str,
        weight: float,
    ) -> Gate:
        """From :func:`hat_gate`'s arguments, for embeddings of ``dtype``.

        Raises:
            TypeError, ValueError: an argument is not as there.
        """
        _check.one_of("hat_gate", "compensation", compensation, COMPENSATIONS)
        recipe = compensation == "recipe"
        wide = compute_dtype(dtype)
        most, clamp = _compensation(max_scale, cosh_clamp, recipe, wide)
        weight = number("hat_gate", "weight", weight)
        return cls(most, clamp, recipe, mask_floor(dtype, cosh_clamp), weight)


def hat_gates(
    embedding: Tensor, scale: Tensor, share: Tensor, sizes: list[int], gate: Gate
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The masks of all layers and the weighted sparsity term (eq. 5), in one node of the graph.

    For networks, whose tensors are as they made them: nothing is checked.

    Args:
        embedding: e, [U].
        scale: s, 0-d.
        share: [U], (1 - u) / sum (1 - u), or zeros.
        sizes: units of each layer, U in all.
        gate: how.

    Returns:
        A mask of each layer, views of one tensor, and the term, 0-d.
    """
    *masks, term = call(HatGatesFunction, embedding, scale, share, sizes, gate)
    return tuple(masks), term


class HatGateFunction(OpFunction):
    """hat_gate with its compensated gradient."""

    @staticmethod
    def forward(
        embedding: Tensor,
        scale: Tensor,
        max_scale: float,
        cosh_clamp: float,
        recipe: bool,
        floor: float,
    ) -> Tensor:
        return backends.select("hat_gate", embedding)(embedding, scale, floor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        embedding, scale, ctx.max_scale, ctx.cosh_clamp, ctx.recipe, ctx.floor = inputs
        ctx.save_for_backward(embedding, output, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        embedding, mask, scale = ctx.saved_tensors
        if ctx.recipe and ctx.floor > 0:  # it is made of the mask, as it is without the floor
            mask = backends.select("hat_gate", embedding)(embedding, scale, 0.0)
        run = backends.select("hat_gate_backward", embedding)
        out = run(grad, embedding, mask, scale, ctx.max_scale, ctx.cosh_clamp, ctx.recipe)
        return out, *(None,) * 5


class HatGatesFunction(OpFunction):
    """The gates of all layers and the sparsity term in one node; see ``reference.hat_gates``."""

    @staticmethod
    def forward(
        embedding: Tensor, scale: Tensor, share: Tensor, sizes: list[int], gate: Gate
    ) -> tuple[Tensor, ...]:
        run = backends.select_visible("hat_gates", embedding)
        mask, term = run(embedding, scale, share, gate.floor, gate.weight)
        return *mask.split(sizes), term

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        embedding, scale, share, ctx.sizes, ctx.gate = inputs
        ctx.save_for_backward(embedding, scale, share)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *parts, term = grads
        embedding, scale, share = ctx.saved_tensors
        units = embedding, scale, share, ctx.sizes
        return gates_backward(parts, term, *units, ctx.gate), *(None,) * 4


def gates_backward(
    parts: Sequence[Tensor | None],
    term: Tensor | None,
    embedding: Tensor,
    scale: Tensor,
    share: Tensor,
    sizes: list[int],
    gate: Gate,
) -> Tensor:
    """The embedding's gradient from those of the masks and of the term, None for none."""
    none = share.new_empty(0)
    known = [none if g is None else g for g in parts]
    how = gate.weight, gate.max_scale, gate.cosh_clamp, gate.recipe
    run = backends.select_visible("hat_gates_backward", embedding)
    return run(known, none if term is None else term, embedding, scale, share, sizes, *how)


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
    _check.dense("hat_sparsity", "used", used)
    if used.dtype is not torch.bool and used.dtype not in _check.FLOATS:
        raise TypeError(f"hat_sparsity: used is {used.dtype}, wanted bool or a floating dtype")
    _check.same_shape("hat_sparsity", "used", used, "mask", mask)
    _check.same_device("hat_sparsity", "used", used, "mask", mask)
    return call(HatSparsityFunction, mask, used)


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
        TypeError: progress or max_scale is no number.
        ValueError: progress is outside [0, 1], max_scale below 1 or infinite, or the schedule
            unknown.
    """
    _check.one_of("hat_scale", "schedule", schedule, SCHEDULES)
    progress = number("hat_scale", "progress", progress)
    max_scale = number("hat_scale", "max_scale", max_scale)
    if not 0 <= progress <= 1:
        raise ValueError(f"hat_scale: progress is {progress}, wanted a number from 0 to 1")
    if not max_scale >= 1:
        raise ValueError(f"hat_scale: max_scale is {max_scale}, wanted a number of at least 1")
    return scale_at(progress, max_scale, schedule)


def scale_at(progress: float, max_scale: float, schedule: str) -> float:
    """`hat_scale` of arguments that are known to be right."""
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


@fake("hat_gate")
def _(embedding: Tensor, scale: Tensor, floor: float = 0.0) -> Tensor:
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


@fake("hat_gates")
def _(
    embedding: Tensor, scale: Tensor, share: Tensor, floor: float, weight: float
) -> tuple[Tensor, Tensor]:
    mask = embedding.new_empty(embedding.shape, dtype=compute_dtype(embedding.dtype))
    return mask, mask.new_empty(())


@fake("hat_gates_backward")
def _(
    grads: list[Tensor],
    grad_term: Tensor,
    embedding: Tensor,
    scale: Tensor,
    share: Tensor,
    sizes: list[int],
    weight: float,
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
