"""Inputs of layers and gradients of their outputs, with no gradient of any weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge


@dataclass
class Record:
    """One call of a layer.

    Attributes:
        module: the layer.
        x: its input, the caller's memory.
        version: how often that had been written when the layer read it.
        place: where in the graph its output is, before anything is done to it.
        dy: gradient of its output; None where nothing depends on it.
    """

    module: nn.Module
    x: Tensor
    version: int
    place: Tensor | GradientEdge
    dy: Tensor | None = None

    @property
    def changed(self) -> bool:
        """Whether the input was written after the layer read it."""
        return self.x._version != self.version


class Recorder:
    """Records the calls of layers while ``on``."""

    def __init__(self) -> None:
        self.on = True
        self.records: list[Record] = []

    def differentiate(
        self, value: Tensor, params: Sequence[Tensor] = (), *, keep: bool = False
    ) -> list[Tensor]:
        """Give each record its gradient of ``value``, 0-d; the gradients of ``params``, dense.

        Args:
            value: it.
            params: nothing of theirs where nothing depends on them: zeros.
            keep: whether there is another value of the same graph to come.
        """
        self.on = False  # what a checkpointed part calls again is not another call
        places: list[Any] = [*params, *(record.place for record in self.records)]
        found: list[Tensor | None] = [None] * len(places)
        if places and value.requires_grad:
            found = list(torch.autograd.grad(value, places, allow_unused=True, retain_graph=keep))
        for record, dy in zip(self.records, found[len(params) :], strict=True):
            record.dy = dy
        return [
            torch.zeros_like(p) if g is None else (g.to_dense() if g.is_sparse else g)
            for p, g in zip(params, found, strict=False)
        ]

    def hook(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> Tensor | None:
        """A forward hook."""
        if not torch.is_grad_enabled() or not isinstance(output, Tensor):
            return None
        result: Tensor | None = None
        place: Tensor | GradientEdge
        if output.requires_grad:
            if output._is_view():
                # Writing a view in place moves it to another place in the graph.
                output = result = torch.ops.aten._unsafe_view(output, output.shape)
            place = get_gradient_edge(output)
        else:
            # Nothing in front of it is asked for: the graph begins here. Written in place, a leaf
            # would refuse, so the network goes on with a copy.
            place = output.detach().requires_grad_()
            result = place.clone()
        if self.on:
            x = (args[0] if args else next(iter(kwargs.values()))).detach()
            self.records.append(Record(module, x, x._version, place))
        return result


@contextmanager
def recorded(modules: Iterator[nn.Module] | list[nn.Module]) -> Iterator[Recorder]:
    """Record every call of these layers inside."""
    recorder = Recorder()
    # First of a layer's hooks: another may replace the output.
    handles = [
        m.register_forward_hook(recorder.hook, prepend=True, with_kwargs=True) for m in modules
    ]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
