"""Finds the topology of a model: one walk over its traced graph."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from maskcl.nn.following import provenance as p
from maskcl.nn.following.in_place_writes import written_modules
from maskcl.nn.following.provenance import Value
from maskcl.nn.following.rules import follow
from maskcl.nn.following.trace import Trace
from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.message_passing import HATMessagePassing
from maskcl.nn.hat.topology import (
    HAT_LAYERS,
    HATLayer,
    Topology,
    channel_dim,
    fan_in,
    output_modules,
    sole_reader,
    width,
)
from maskcl.nn.hat.topology_by_hand import Sources, channels_of, checked, rows_of
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.norms import TASK_BATCH_NORMS, TaskLayerNorm, TaskNorm
from maskcl.nn.tasks.state import TaskAware


def analyse(trace: Trace, sources: Sources | None = None) -> Topology:
    """The topology of a traced model made of task-aware modules.

    Args:
        trace: its graph and shapes.
        sources: by module, the layers whose units reach its input, where tracing cannot tell:
            together (a sum), each repeated per position as flatten does; None: every task uses
            every input.

    Raises:
        ConversionError: a value cannot be followed to a module that has to know, or a name in
            ``sources`` is wrong.
    """
    topology = Topology(arguments=trace.arguments, by_name=trace.by_name, sizes=trace.sizes)
    outputs = output_modules(trace)
    for node in trace.graph.nodes:
        module, name = trace.called(node), str(node.target)
        if isinstance(module, HAT_LAYERS) and name not in outputs and name not in topology.units:
            start = topology.num_units
            topology.units[name] = slice(start, start + width(module))
    sources = checked(sources or {}, trace.modules, topology)
    for name in topology.units:
        reader = sole_reader(trace, name)
        if reader and reader[0] not in sources and _masks_behind(trace, name, reader[1]):
            topology.moved.add(name)
    _refuse_reading(trace)
    topology.written = written_modules(trace)
    _Feeder(trace, topology, sources).run()
    return topology


def _refuse_reading(trace: Trace) -> None:
    """Raise ConversionError where a forward reads a layer's weight in place of calling the layer.

    What it does with the weight is not followed, so a later task could change it.
    """
    homes = {
        id(tensor): name
        for name, module in trace.modules.items()
        if isinstance(module, HAT_LAYERS)
        for tensor in module.parameters()
    }
    for node in trace.graph.nodes:
        owner, _, kind = str(node.target).rpartition(".")
        if node.op != "get_attr":
            continue
        if not isinstance(trace.modules.get(owner), TaskAware):
            holder = trace.modules.get(owner)
            # A module of the user's may hold a layer's parameter too.
            found = homes.get(id(getattr(holder, "_parameters", {}).get(kind)))
            if found is None:
                continue
            owner = found
        # Its shape or device says nothing of its values.
        if any(user.op == "output" or trace.carries_tensor(user) for user in node.users):
            raise ConversionError(
                f"{trace.describe(node)} is {kind!r} of a layer that all tasks train, read without"
                f" calling the layer: let the forward call {owner!r}, or freeze it"
            )


def _masks_behind(trace: Trace, name: str, reader: nn.Module) -> bool:
    """Whether a layer's mask can wait for the norm: one that keeps the layer's units apart."""
    layer = trace.modules[name]
    assert isinstance(layer, HAT_LAYERS)
    (call,) = trace.calls(name)
    if isinstance(layer, HATMessagePassing) and layer.attention:
        return False  # which needs the mask itself
    is_channel_one = channel_dim(layer, len(trace.results[call].size)) == 1
    return (
        is_channel_one and layer.activation == "identity" and isinstance(reader, TASK_BATCH_NORMS)
    )


class _Feeder:
    """Walks the graph once and writes feeds and masks into a topology."""

    def __init__(self, trace: Trace, topology: Topology, sources: Sources) -> None:
        self.trace = trace
        self.topology = topology
        self.sources = sources
        self.seen: dict[str, tuple[Tensor, int] | None] = {}

    def run(self) -> None:
        follow(self.trace, self.module)

    def module(self, node: fx.Node, module: TaskAware, value: Value) -> Value:
        """Note what ``module`` reads, and return the value that it gives."""
        size = self.trace.results[node].size
        if isinstance(module, TaskHeads):
            if value.followed and len(value.shape):
                rows = None if value.every else p.rows_along(value, len(value.shape) - 1)
                self.topology.heads[str(node.target)] = rows
            return p.every(size)
        if isinstance(module, TaskNorm):
            return self._norm(node, module, value)
        assert isinstance(module, HAT_LAYERS)
        name = str(node.target)
        self._feed(node, module, value)
        if name not in self.topology.units:
            return p.every(size)
        span = self.topology.units[name]
        return p.of_units(span.start, span.stop, size, channel_dim(module, len(size)))

    def _feed(self, node: fx.Node, module: HATLayer, value: Value) -> None:
        name = str(node.target)
        if isinstance(module, HATEmbedding):
            self.topology.feeds[name] = None  # it picks rows; each has all channels
            return
        dim = channel_dim(module, len(value.shape))
        if name in self.sources:
            rows = rows_of(name, self.sources[name], fan_in(module), self.topology)
        elif value.problem is not None:
            raise self._refusal(name, value.problem)
        else:
            rows = None if value.every else p.rows_along(value, dim)
        feeds = self.topology.feeds
        # A layer that is called again reads the units of all its calls.
        before = feeds.get(name, rows)
        if before is None or rows is None:
            feeds[name] = None
        else:
            feeds[name] = torch.unique(torch.cat([before, rows]), dim=0)

    def _norm(self, node: fx.Node, module: TaskNorm, value: Value) -> Value:
        name, rank = str(node.target), len(value.shape)
        first = -1 if isinstance(module, TaskLayerNorm) else 1
        if name in self.sources:
            rows = rows_of(name, self.sources[name], channels_of(module), self.topology)
            if rows is None:
                return p.every(value.shape)
            dim = first % rank
            sizes = [1] * rank
            sizes[dim] = value.shape[dim]
            value = Value(tuple(row.reshape(sizes) for row in rows), value.shape)
        elif not value.followed:
            raise self._refusal(name, value.problem or "")
        if value.every:
            return value
        varies = sorted(
            {d for term in value.terms for d in range(rank) if p.aligned(term, rank).shape[d] > 1}
        )
        if len(varies) > 1:
            # No mask along one dimension says it, as for tokens of which one has no units.
            self._same_mask(name, None)
            return p.every(value.shape)
        dim = varies[0] if varies else first % rank
        rows = p.rows_along(value, dim)
        mask = rows, dim - rank if isinstance(module, TaskLayerNorm) else dim
        self._same_mask(name, mask)
        return Value(value.terms, value.shape)

    def _same_mask(self, name: str, mask: tuple[Tensor, int] | None) -> None:
        """Note a norm's mask; it has to be that of its other calls."""
        known = self.seen.setdefault(name, mask)
        is_same = known is mask
        if known is not None and mask is not None:
            is_same = known[1] == mask[1] and torch.equal(known[0], mask[0])
        if not is_same:
            kind = type(self.trace.modules[name]).__name__
            raise ConversionError(
                f"module {name!r} ({kind}) is called on values of different units: give each call a"
                " norm of its own"
            )
        if mask is not None:
            self.topology.masks[name] = mask

    def _refusal(self, name: str, problem: str) -> ConversionError:
        kind = type(self.trace.modules[name]).__name__
        layers = list(self.topology.units) or ["layer"]
        return ConversionError(
            f"module {name!r} ({kind}) reads units that cannot be told: {problem}. Say whose units"
            f" reach it with sources={{{name!r}: [{layers[0]!r}, ...]}} (their sum, repeated per"
            " position, exactly 0 where a task has closed them), or"
            f" sources={{{name!r}: None}} to protect it as if every task used all of its inputs. An"
            " activation that does not keep 0 can instead be a module called once, directly behind"
            " its layer: the mask then comes after it"
        )
