"""What a caller says by hand of where units travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.topology import HAT_LAYERS, Topology, fan_in, width
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.norms import TaskGroupNorm, TaskLayerNorm, TaskNorm

Sources = Mapping[str, Sequence[str] | None]


def analyse_by_hand(model: nn.Module, sources: Sources) -> Topology:
    """The topology that ``sources`` spells out for every layer and norm of an untraceable model.

    Layers that are nobody's source are output layers.

    Raises:
        ConversionError: a layer or norm is missing from ``sources``, or a name in it is wrong.
    """
    modules = dict(model.named_modules())
    wanted = {n: m for n, m in modules.items() if isinstance(m, (*HAT_LAYERS, TaskNorm))}
    tables = {name for name, module in wanted.items() if isinstance(module, HATEmbedding)}
    missing = sorted(set(wanted) - set(sources) - tables)
    if missing:
        raise ConversionError(f"sources: {', '.join(missing)} missing; wanted every layer and norm")
    named = {layer for layers in sources.values() for layer in layers or ()}
    topology = Topology()
    for name, module in wanted.items():
        if isinstance(module, HAT_LAYERS) and name in named:
            start = topology.num_units
            topology.units[name] = slice(start, start + width(module))
    sources = checked(sources, modules, topology)
    for name, module in wanted.items():
        if name in tables:
            topology.feeds[name] = None
            continue
        if isinstance(module, HAT_LAYERS):
            topology.feeds[name] = rows_of(name, sources[name], fan_in(module), topology)
            continue
        rows = rows_of(name, sources[name], channels_of(module), topology)
        if rows is not None:
            topology.masks[name] = rows, module.channel_dim
    return topology


def rows_of(
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


def checked(sources: Sources, modules: Mapping[str, nn.Module], topology: Topology) -> Sources:
    """``sources``, once every name in it is one of the model's."""
    for name, layers in sources.items():
        module = modules.get(name)
        if not isinstance(module, (*HAT_LAYERS, TaskNorm)) or isinstance(module, HATEmbedding):
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


def channels_of(norm: TaskNorm) -> int:
    """Number of channels that a norm takes."""
    first: Any = norm.norms[0]
    if isinstance(norm, TaskLayerNorm):
        return first.normalized_shape[-1]
    return first.num_channels if isinstance(norm, TaskGroupNorm) else first.num_features
