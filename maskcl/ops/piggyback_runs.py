"""Neighbouring linear layers, their weights masked from learned scores, as one node of the graph.

In networks of a few hundred units modules and nodes cost as much as what they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl import backends
from maskcl.ops._autograd import OpFunction, call
from maskcl.ops.selection import Select
from maskcl.schemas import library


def piggyback_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    relus: Sequence[bool],
    select: Select,
) -> Tensor:
    """:func:`piggyback_linear` of each layer in turn, and a ReLU behind some.

    To the bit what the layers give one by one, and their gradients. For modules, which have checked
    what goes in: nothing is checked here.

    Args:
        x: [N, I].
        weights: of the layers, [O, I]; they take no gradient.
        scores: of the layers, [O, I].
        biases: of the layers, [O] or None; they take no gradient.
        relus: of the layers, whether a ReLU follows.
        select: of all layers, not "topk".

    Returns:
        The last layer's output, [N, O].
    """
    layers = (*scores, *weights, *biases)
    y = call(PiggybackLinearsFunction, x, select, relus, *layers)
    return y if isinstance(y, Tensor) else y[-1]


def traced_piggyback_linears(
    x: Tensor,
    weights: Sequence[Tensor],
    scores: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    relus: Sequence[bool],
    select: Select,
) -> Tensor:
    """`piggyback_linears` as one node of a graph that ``torch.compile`` traces.

    The numbers of ``select`` are constants of the graph.
    """
    _, levels, threshold, inclusive, _ = select
    how = relus, levels, threshold, inclusive
    return _TRACED(x, weights, scores, biases, *how, *backends.graph_key())


def _taken_apart(
    x: Tensor,
    weights: list[Tensor],
    scores: list[Tensor],
    biases: list[Tensor | None],
    relus: list[bool],
    levels: str,
    threshold: float,
    inclusive: bool,
    *key: str | None,
) -> Tensor:
    select = None, levels, threshold, inclusive, 1.0
    return piggyback_linears(x, weights, scores, biases, relus, select)


library.impl("traced_piggyback_linears", _taken_apart, "CompositeImplicitAutograd")
_TRACED = torch.ops.maskcl.traced_piggyback_linears.default


class PiggybackLinearsFunction(OpFunction):
    """A run of piggyback layers that keeps what each of them would.

    Arguments: x, what selects, which layers a ReLU follows, then all scores, weights and biases.
    """

    @staticmethod
    def forward(
        x: Tensor, select: Select, relus: Sequence[bool], *layers: Tensor | None
    ) -> tuple[Tensor, ...]:
        count = len(relus)
        scores, weights, biases = layers[:count], layers[count : 2 * count], layers[2 * count :]
        run = backends.select("piggyback_linear", x)
        outputs = []
        for weight, score, bias, relu in zip(weights, scores, biases, relus, strict=True):
            x = run(x, weight, score, bias, *select)
            if relu:
                x.relu_()
            outputs.append(x)
        return tuple(outputs)

    @staticmethod
    def result(output: tuple[Tensor, ...]) -> Tensor:
        return output[-1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.select, ctx.relus, *layers = inputs
        # Without a ReLU behind it the last output may be written over, as any linear layer's.
        kept = output if ctx.relus[-1] else output[:-1]
        ctx.save_for_backward(*layers[: 2 * len(ctx.relus)], x, *kept)
        ctx.mark_non_differentiable(*output[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        relus, select = ctx.relus, ctx.select
        count = len(relus)
        saved = ctx.saved_tensors
        scores, weights, values = saved[:count], saved[count : 2 * count], saved[2 * count :]
        want_x, _, _, *wanted = ctx.needs_input_grad[: 3 + count]
        lowest = 0 if want_x else next((i for i, want in enumerate(wanted) if want), count)
        run = backends.select("piggyback_linear_backward", values[0])
        found: list[Tensor | None] = [None] * count
        grad = grads[-1]
        for layer in range(count - 1, lowest - 1, -1):
            if relus[layer]:
                grad = torch.ops.aten.threshold_backward.default(grad, values[layer + 1], 0)
            pair = values[layer], weights[layer], scores[layer]
            want_in = layer > lowest or want_x
            grad, _, dscores = run(grad, *pair, *select, want_in, False, wanted[layer])
            found[layer] = dscores if wanted[layer] else None
        return grad if want_x else None, None, None, *found, *(None,) * (2 * count)
