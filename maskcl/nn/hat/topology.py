"""Which layers have units, where their masks are applied, and which units feed each weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from maskcl.nn.following.operations import is_frozen_layer
from maskcl.nn.following.trace import Trace
from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.layers import HATConv1d, HATConv2d, HATConv3d, HATLinear
from maskcl.nn.hat.message_passing import HATMessagePassing
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.own_parts import shared_modules
from maskcl.nn.tasks.state import TaskAware


@dataclass
class Topology:
    """What a network knows about itself before any task.

    Attributes:
        units: each masked layer's units, in the order in which the forward reaches the layers.
        feeds: by weight layer, int64 [R, C] slots of the unit table: input c is 0 for a task that
            uses none of the R units in its column. None: every task uses every input.
        heads: by TaskHeads, the same as ``feeds``; absent where it is not known.
        masks: by norm, the same for its output, with the channel dimension; absent: no mask.
        moved: masked layers whose mask is applied behind the BatchNorm that follows.
        written: modules whose output the network writes into in place.
        arguments: names of those that the forward was followed with; None where it was not.
        by_name: whether they were given by name.
        sizes: as ``trace.sizes_of`` gives them, where the forward branches on sizes and so was
            followed for these alone; else None.
        like: further sizes at which it was found to be the same.
    """

    units: dict[str, slice] = field(default_factory=dict)
    feeds: dict[str, Tensor | None] = field(default_factory=dict)
    heads: dict[str, Tensor | None] = field(default_factory=dict)
    masks: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    arguments: tuple[str, ...] | None = None
    by_name: bool = False
    sizes: tuple[Any, ...] | None = None
    like: set[tuple[Any, ...]] = field(default_factory=set)

    def is_like(self, other: Topology) -> bool:
        """Whether units reach the same places."""
        rows, others = self._rows(), other._rows()
        places = [(t.units, t.moved, t.written) for t in (self, other)]
        return (
            places[0] == places[1]
            and rows.keys() == others.keys()
            and all(_equal(row, others[key]) for key, row in rows.items())
        )

    def _rows(self) -> dict[tuple[str, Any], Tensor | None]:
        """All rows of slots, by what they are of."""
        found: dict[tuple[str, Any], Tensor | None] = {}
        found |= {("feed", name): row for name, row in self.feeds.items()}
        found |= {("head", name): row for name, row in self.heads.items()}
        return found | {("mask", (name, dim)): row for name, (row, dim) in self.masks.items()}

    @property
    def num_units(self) -> int:
        """U, the units of all layers."""
        return sum(s.stop - s.start for s in self.units.values())


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


HAT_LAYERS = (HATLinear, HATConv1d, HATConv2d, HATConv3d, HATMessagePassing, HATEmbedding)
HATLayer = HATLinear | HATConv1d | HATConv2d | HATConv3d | HATMessagePassing | HATEmbedding


def weight_layers(model: nn.Module) -> dict[str, HATLayer]:
    """The model's HAT layers by name."""
    return {n: m for n, m in shared_modules(model) if isinstance(m, HAT_LAYERS)}


def width(layer: HATLayer) -> int:
    """Number of output units of a layer."""
    if isinstance(layer, HATEmbedding):
        return layer.embedding_dim
    return layer.out_features if isinstance(layer, HATLinear) else layer.out_channels


def fan_in(layer: HATLayer) -> int:
    """Number of input units of a layer, of all groups; of a table its rows."""
    if isinstance(layer, HATEmbedding):
        return layer.num_embeddings
    return layer.in_features if isinstance(layer, HATLinear) else layer.in_channels


def channel_dim(layer: HATLayer, rank: int) -> int:
    """Dimension of the units in a layer's input or output of ``rank`` dimensions."""
    space: int = getattr(layer, "_space", 0)
    return rank - 1 - space


def output_modules(trace: Trace) -> set[str]:
    """Names of the weight layers whose output reaches the network's without another in between."""
    (output,) = (node for node in trace.graph.nodes if node.op == "output")
    found: set[str] = set()
    seen: set[fx.Node] = set()
    todo = list(output.all_input_nodes)
    while todo:
        node = todo.pop()
        # Sizes that a forward reads off a tensor carry nothing of its values.
        if node in seen or not trace.carries_tensor(node):
            continue
        seen.add(node)
        module = trace.called(node)
        if isinstance(module, (*HAT_LAYERS, TaskHeads)):
            found.add(str(node.target))
        elif is_frozen_layer(module):
            continue  # what comes before it is no output
        else:
            todo.extend(node.all_input_nodes)
    return found


def sole_reader(trace: Trace, name: str) -> tuple[str, nn.Module] | None:
    """The module that alone reads what module ``name`` returns, where each is called once."""
    calls = trace.calls(name)
    if len(calls) != 1 or len(calls[0].users) != 1:
        return None
    (reader,) = calls[0].users
    module = trace.called(reader)
    if module is None or len(trace.calls(str(reader.target))) != 1:
        return None
    return str(reader.target), module


def task_aware(model: nn.Module) -> Iterator[tuple[str, TaskAware]]:
    """Names and task-aware modules of a model."""
    return ((n, m) for n, m in shared_modules(model) if isinstance(m, TaskAware))


def unit_span(row: Tensor) -> tuple[int, int] | None:
    """[start, stop) where slots count units up one by one, else None."""
    start = int(row[0])
    stop = start + row.numel()
    if start < 0 or not torch.equal(row, torch.arange(start, stop)):
        return None
    return start, stop
