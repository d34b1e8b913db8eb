"""A network of masked linear layers while its gates learn: gates, term and layers in one node.

In networks of a few hundred units a node of the graph costs as much as what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops.gate import Gate, gates_backward
from maskcl.ops.masked_runs import as_wanted, bits_of_wanted, outputs_for, without_none
from maskcl.reference.gate import compute_dtype
from maskcl.reference.masked_products import BIAS, WEIGHT
from maskcl.schemas import fake, library


def gated_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    gates: tuple[Tensor, Tensor, Tensor, list[int], Gate],
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`hat_gates`, and `masked_linears` under these masks.

    For modules, which have checked what goes in: nothing is checked here.

    Args:
        x: [.., I].
        weights: of the layers, [O, I].
        biases: of the layers, [O] or None.
        gates: `hat_gates`'s arguments.
        activation: as for `masked_linears`.
        slope: as there.

    Returns:
        The last layer's output, the weighted sparsity term, and the masks, one after the other.
    """
    count, layers = len(weights), (*weights, *biases)
    found = call(GatedLinearsFunction, x, *gates, activation, slope, count, *layers)
    return found[:3]


def traced_gated_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    gates: tuple[Tensor, Tensor, Tensor, list[int], Gate],
    activation: str,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """The first two of `gated_linears` as one node of a graph that ``torch.compile`` traces."""
    embedding, scale, share, sizes, gate = gates
    units = embedding, scale, share, sizes, gate.weight, gate.floor
    how = gate.max_scale, gate.cosh_clamp, gate.recipe, activation, slope
    return _TRACED(x, weights, biases, *units, *how, *backends.graph_key())


def _taken_apart(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    embedding: Tensor,
    scale: Tensor,
    share: Tensor,
    sizes: list[int],
    weight: float,
    floor: float,
    max_scale: float,
    cosh_clamp: float,
    recipe: bool,
    activation: str,
    slope: float,
    *key: str | None,
) -> tuple[Tensor, Tensor]:
    gates = embedding, scale, share, sizes, Gate(max_scale, cosh_clamp, recipe, floor, weight)
    y, term, _ = gated_linears(x, weights, biases, gates, activation, slope)
    return y, term


library.impl("traced_gated_linears", _taken_apart, "CompositeImplicitAutograd")
_TRACED = torch.ops.maskcl.traced_gated_linears.default


class GatedLinearsFunction(OpFunction):
    """Keeps x, the mask and each layer's output.

    Arguments: x, those of `hat_gates`, activation, slope, the number of layers, then all weights
    and biases.
    """

    @staticmethod
    def forward(
        x: Tensor,
        embedding: Tensor,
        scale: Tensor,
        share: Tensor,
        sizes: list[int],
        gate: Gate,
        activation: str,
        slope: float,
        count: int,
        *layers: Tensor | None,
    ) -> tuple[Tensor, ...]:
        biases = without_none(layers[count:], x)
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        run = backends.select("gated_linears", x)
        units = embedding, scale, share, sizes, gate.weight, gate.floor
        mask, term, *inner, y = run(rows, layers[:count], biases, *units, activation, slope)
        if rows is not x:
            y = y.view(*x.shape[:-1], y.shape[-1])
        return y, term, mask, *inner

    @staticmethod
    def result(output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return output[:3]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, embedding, scale, share, ctx.sizes, ctx.gate = inputs[:6]
        ctx.activation, ctx.slope, count = inputs[6:9]
        ctx.count = count
        y, _, mask, *inner = output
        # An ordinary last layer's gradients are not made of its output, which may be written to.
        kept = inner if len(ctx.sizes) < count else [*inner, y]
        units = embedding, scale, share, mask
        ctx.save_for_backward(x, *units, *inputs[9 : 9 + count], *kept)
        ctx.mark_non_differentiable(*inner)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, embedding, scale, share, mask, *saved = ctx.saved_tensors
        grad, term, of_mask, *_ = grads
        gate, count, want = ctx.gate, ctx.count, ctx.needs_input_grad
        units = embedding, scale, share, ctx.sizes
        dembedding, dx = None, None
        dlayers: list[Tensor | None] = [None] * (2 * count)
        if grad is not None:
            weights, ys, rows = saved[:count], saved[count:], x
            if x.dim() != 2:
                rows, grad = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
            ys = outputs_for(grad, ys, count)
            how = gate.max_scale, gate.cosh_clamp, gate.recipe, ctx.activation, ctx.slope
            wanted = bits_of_wanted((*want[9:], *(True,) * len(ctx.sizes)), count)
            dembedding, dx, *found = backends.select("gated_linears_backward", x)(
                grad,
                grad.new_empty(0) if term is None else term,
                rows,
                ys,
                weights,
                mask,
                *units,
                gate.weight,
                *how,
                want[0],
                wanted,
            )
            dx = dx.view(x.shape) if want[0] else None
            dlayers = as_wanted([*found[::2], *found[1::2]], want[9:], x.dtype)
            term = None
        if term is not None or of_mask is not None:
            parts = [None] * len(ctx.sizes) if of_mask is None else of_mask.split(ctx.sizes)
            more = gates_backward(parts, term, *units, gate)
            dembedding = more if dembedding is None else dembedding + more
        return dx, dembedding, *(None,) * 7, *dlayers


@fake("gated_linears")
def _(
    x: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    embedding: Tensor,
    *rest: object,
) -> list[Tensor]:
    mask = embedding.new_empty(embedding.shape, dtype=compute_dtype(embedding.dtype))
    return [mask, mask.new_empty(()), *(x.new_empty(x.shape[0], w.shape[0]) for w in weights)]


@fake("gated_linears_backward")
def _(
    grad: Tensor,
    grad_term: Tensor,
    x: Tensor,
    ys: list[Tensor],
    weights: list[Tensor],
    mask: Tensor,
    embedding: Tensor,
    *rest: Any,
) -> list[Tensor]:
    *_, want_x, wanted = rest
    found = [embedding.new_empty(embedding.shape), x.new_empty(x.shape if want_x else (0, 0))]
    for weight, want in zip(weights, wanted, strict=True):
        found += [
            weight.new_empty(weight.shape if want & WEIGHT else (0, 0)),
            x.new_empty(weight.shape[0] if want & BIAS else 0, dtype=compute_dtype(x.dtype)),
        ]
    return found
