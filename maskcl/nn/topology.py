"""Which layers have units, where their masks are applied, and which units feed each weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from maskcl.nn import provenance as p
from maskcl.nn.errors import ConversionError
from maskcl.nn.follow import follow
from maskcl.nn.heads import TaskHeads
from maskcl.nn.layers import HAT_LAYERS, HATLayer, HATLinear
from maskcl.nn.norms import TASK_BATCH_NORMS, TaskGroupNorm, TaskLayerNorm, TaskNorm
from maskcl.nn.provenance import Value
from maskcl.nn.state import TaskAware
from maskcl.nn.trace import Trace
from maskcl.nn.written import written_modules

Sources = Mapping[str, Sequence[str] | None]


@dataclass
class Topology:
    """What a network knows about itself before any task.

    Attributes:
        units: each masked layer's units, in the order in which the forward reaches the layers.
        feeds: by weight layer, int64 [R, C] slots of the unit table: input c is 0 for a task that
            uses none of the R units in its column. None: every task uses every input.
        masks: by norm, the same for its output, with the channel dimension; absent: no mask.
        moved: masked layers whose mask is applied behind the BatchNorm that follows.
        written: modules whose output the network writes into in place.
    """

    units: dict[str, slice] = field(default_factory=dict)
    feeds: dict[str, Tensor | None] = field(default_factory=dict)
    masks: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)

    @property
    def num_units(self) -> int:
        """U, the units of all layers."""
        return sum(s.stop - s.start for s in self.units.values())


def weight_layers(model: nn.Module) -> dict[str, HATLayer]:
    """The model's HAT layers by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, HAT_LAYERS)}


def width(layer: HATLayer) -> int:
    """Number of output units of a layer."""
    return layer.out_features if isinstance(layer, HATLinear) else layer.out_channels


def fan_in(layer: HATLayer) -> int:
    """Number of input units of a layer, of all groups."""
    return layer.in_features if isinstance(layer, HATLinear) else layer.in_channels


def channel_dim(layer: HATLayer, rank: int) -> int:
    """Dimension of the units in a layer's input or output of ``rank`` dimensions."""
    return rank - 1 if isinstance(layer, HATLinear) else rank - 1 - layer._space


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
    topology = Topology()
    outputs = output_modules(trace)
    for node in trace.graph.nodes:
        module, name = trace.called(node), str(node.target)
        if isinstance(module, HAT_LAYERS) and name not in outputs and name not in topology.units:
            start = topology.num_units
            topology.units[name] = slice(start, start + width(module))
    sources = _checked(sources or {}, trace.modules, topology)
    for name in topology.units:
        reader = sole_reader(trace, name)
        if reader and reader[0] not in sources and _masks_behind(trace, name, reader[1]):
            topology.moved.add(name)
    topology.written = written_modules(trace)
    _Feeder(trace, topology, sources).run()
    return topology


def _masks_behind(trace: Trace, name: str, reader: nn.Module) -> bool:
    """Whether a layer's mask can wait for the norm: one that keeps the layer's units apart."""
    layer = trace.modules[name]
    assert isinstance(layer, HAT_LAYERS)
    (call,) = trace.calls(name)
    is_channel_one = channel_dim(layer, len(trace.results[call].size)) == 1
    return (
        is_channel_one and layer.activation == "identity" and isinstance(reader, TASK_BATCH_NORMS)
    )


def analyse_by_hand(model: nn.Module, sources: Sources) -> Topology:
    """The topology that ``sources`` spells out for every layer and norm of an untraceable model.

    Layers that are nobody's source are output layers.

    Raises:
        ConversionError: a layer or norm is missing from ``sources``, or a name in it is wrong.
    """
    modules = dict(model.named_modules())
    wanted = {n: m for n, m in modules.items() if isinstance(m, (*HAT_LAYERS, TaskNorm))}
    missing = sorted(set(wanted) - set(sources))
    if missing:
        raise ConversionError(f"sources: {', '.join(missing)} missing; wanted every layer and norm")
    named = {layer for layers in sources.values() for layer in layers or ()}
    topology = Topology()
    for name, module in wanted.items():
        if isinstance(module, HAT_LAYERS) and name in named:
            start = topology.num_units
            topology.units[name] = slice(start, start + width(module))
    sources = _checked(sources, modules, topology)
    for name, module in wanted.items():
        if isinstance(module, HAT_LAYERS):
            topology.feeds[name] = _by_hand(name, sources[name], fan_in(module), topology)
            continue
        rows = _by_hand(name, sources[name], _channels(module), topology)
        if rows is not None:
            topology.masks[name] = rows, module.channel_dim
    return topology


class _Feeder:
    """Walks the graph once and writes feeds and masks into a topology."""

    def __init__(self, trace: Trace, topology: Topology, sources: Sources) -> None:
        self.trace = trace
        self.topology = topology
        self.sources = sources

    def run(self) -> None:
        follow(self.trace, self.module)

    def module(self, node: fx.Node, module: TaskAware, value: Value) -> Value:
        """Note what ``module`` reads, and return the value that it gives."""
        size = self.trace.results[node].size
        if isinstance(module, TaskHeads):
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
        dim = channel_dim(module, len(value.shape))
        if name in self.sources:
            rows = _by_hand(name, self.sources[name], fan_in(module), self.topology)
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
            rows = _by_hand(name, self.sources[name], _channels(module), self.topology)
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
            raise self._refusal(name, f"its units change along dimensions {varies} at once")
        dim = varies[0] if varies else first % rank
        rows = p.rows_along(value, dim)
        mask = rows, dim - rank if isinstance(module, TaskLayerNorm) else dim
        known = self.topology.masks.setdefault(name, mask)
        if known[1] != mask[1] or not torch.equal(known[0], rows):
            raise ConversionError(
                f"module {name!r} ({type(module).__name__}) is called on values of different units:"
                " give each call a norm of its own"
            )
        return Value(value.terms, value.shape)

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


def _by_hand(
    name: str, layers: Sequence[str] | None, size: int, topology: Topology
) -> Tensor | None:
    """Rows [R, size] for the layers that a caller named."""
    if layers is None:
        return None
    rows = []
    for layer in layers:
        span = topology.units[layer]
        count = span.stop - span.start
        if size % count:
            raise ConversionError(
                f"sources[{name!r}]: {layer!r} has {count} units, wanted a divisor of the {size}"
                f" inputs of {name!r}"
            )
        rows.append(torch.arange(span.start, span.stop).repeat_interleave(size // count))
    return torch.unique(torch.stack(rows), dim=0)


def _checked(sources: Sources, modules: Mapping[str, nn.Module], topology: Topology) -> Sources:
    for name, layers in sources.items():
        if not isinstance(modules.get(name), (*HAT_LAYERS, TaskNorm)):
            raise ConversionError(f"sources: {name!r} is no weight layer or norm of the model")
        if isinstance(layers, str) or (layers is not None and not layers):
            raise ConversionError(
                f"sources[{name!r}] is {layers!r}, wanted a list of layer names or None"
            )
        for layer in layers or ():
            if layer not in topology.units:
                wanted = ", ".join(topology.units) or "none"
                raise ConversionError(
                    f"sources[{name!r}]: {layer!r} is no masked layer; there are: {wanted}"
                )
    return sources


def _channels(norm: TaskNorm) -> int:
    first: Any = norm.norms[0]
    if isinstance(norm, TaskLayerNorm):
        return first.normalized_shape[-1]
    return first.num_channels if isinstance(norm, TaskGroupNorm) else first.num_features


def task_aware(model: nn.Module) -> Iterator[tuple[str, TaskAware]]:
    """Names and task-aware modules of a model."""
    return ((n, m) for n, m in model.named_modules() if isinstance(m, TaskAware))


def unit_span(row: Tensor) -> tuple[int, int] | None:
    """[start, stop) where slots count units up one by one, else None."""
    start = int(row[0])
    stop = start + row.numel()
    if start < 0 or not torch.equal(row, torch.arange(start, stop)):
        return None
    return start, stop
