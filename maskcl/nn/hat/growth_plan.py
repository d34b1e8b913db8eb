"""What growing a network changes: where units, inputs and channels are in the wider layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.message_passing import HATMessagePassing
from maskcl.nn.hat.topology import HATLayer, Topology, weight_layers
from maskcl.nn.hat.wider_modules import Gain, Place, blocks_of, places_of
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.narrow import Narrow, numbers_of, spans_of
from maskcl.nn.tasks.norms import TaskNorm


class Narrowing:
    """Where a module's output channels and inputs are after a growth.

    Args:
        out: of its output channels.
        into: of its inputs; a norm has none.
    """

    def __init__(self, out: Place, into: Place | None = None) -> None:
        self.out, self.into = out, into

    def after(self, before: Narrow) -> Narrow:
        """What a task sees now that saw ``before``."""
        return Narrow(_moved(before.out, self.out), _moved(before.into, self.into))


def _moved(before: Any, place: Place | None) -> Any:
    if place is None or (before is None and not place.grows):
        return None
    numbers = range(len(place.kept)) if before is None else numbers_of(before)
    return spans_of([place.kept[number] for number in numbers])


def checked_units(
    units: Any, layers: Mapping[str, slice], can_grow: Mapping[str, int]
) -> dict[str, int]:
    """By layer, how many units it gains; ``units`` as for ``HATNetwork.grow``.

    Raises:
        ValueError: it names no masked layer, or a number below 1.
    """
    alone = [name for name in layers if name in can_grow]
    given = units if isinstance(units, Mapping) else dict.fromkeys(alone, units)
    for name, count in given.items():
        if name not in layers:
            raise ValueError(
                f"HATNetwork.grow: units has {name!r}, wanted masked layers: {', '.join(layers)}"
            )
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(
                f"HATNetwork.grow: units of {name!r} is {count!r}, wanted an int of at least 1"
            )
    if not given:
        raise ValueError("HATNetwork.grow: units names no layer, wanted at least one")
    return {name: given.get(name, 0) for name in layers}


def _rows_of(topology: Topology) -> dict[str, Tensor]:
    """By module that knows whose units it reads, or masks: their slots, int64 [R, C]."""
    reads = {**topology.feeds, **topology.heads, **{n: r for n, (r, _) in topology.masks.items()}}
    return {name: rows for name, rows in reads.items() if rows is not None}


def _gains(model: nn.Module, topology: Topology, added: Mapping[str, int]) -> dict[str, Gain]:
    """How each layer's units grow.

    Raises:
        ConversionError: no module reads a layer by its units, or they fall into parts that cannot
            grow by the same number.
    """
    blocks = parts_of(model, topology)
    for name, count in added.items():
        if count and name not in blocks:
            raise ConversionError(
                f"HATNetwork.grow: the units of {name!r} are added to what every task uses, so that"
                " it cannot grow; name the others: units={...}"
            )
        if count % blocks.get(name, 1):
            raise ConversionError(
                f"HATNetwork.grow: {name!r} has {blocks[name]} parts, which would not gain the same"
                f" of {count} units; wanted a multiple of {blocks[name]}"
            )
    return {
        name: Gain(span.start, span.stop - span.start, added[name], blocks.get(name, 1))
        for name, span in topology.units.items()
    }


def parts_of(model: nn.Module, topology: Topology) -> dict[str, int]:
    """By layer that can grow, the equal parts of its units that grow by as many each.

    Parts that are read each for itself, or the heads of a graph attention.
    """
    rows = [row for rows in _rows_of(topology).values() for row in rows.tolist()]
    found = blocks_of(rows, topology.units)
    heads = {n: m.parts for n, m in model.named_modules() if isinstance(m, HATMessagePassing)}
    return {name: max(count, heads.get(name, 1)) for name, count in found.items()}


def all_places(
    model: nn.Module, topology: Topology, added: Mapping[str, int]
) -> dict[str, Narrowing]:
    """By layer, norm and heads, where their channels will be."""
    gains, rows = _gains(model, topology, added), _rows_of(topology)

    def place(name: str, size: int) -> Place:
        if name in rows:
            return places_of(name, rows[name], gains)
        return Place(tuple(range(size)), size)

    found = {}
    for name, layer in weight_layers(model).items():
        outs, ins = sizes_of(layer)
        out = gains[name].out if name in gains else Place(tuple(range(outs)), outs)
        found[name] = Narrowing(out, place(name, ins))
    for name, module in model.named_modules():
        if isinstance(module, TaskNorm):
            found[name] = Narrowing(place(name, 0))
        elif isinstance(module, TaskHeads):
            found[name] = Narrowing(Place((), 0), place(name, 0))
    return found


def sizes_of(layer: HATLayer) -> tuple[int, int]:
    """Output channels and inputs of a layer's weight, of a group where there are several."""
    weight = next(p for p in layer.parameters() if p.dim() > 1)
    if isinstance(layer, HATEmbedding):  # its units are columns
        return weight.shape[1], weight.shape[0]
    return weight.shape[0], weight.shape[1]


def check_same(old: Topology, new: Topology, places: dict[str, Narrowing]) -> None:
    """Raise ConversionError unless old units reach in the wider model what they reached before."""
    unit = torch.tensor(
        [new.units[name].start + u for name in old.units for u in places[name].out.kept] + [-2, -1]
    )
    same = list(old.units) == list(new.units) and old.moved == new.moved
    for name, before in {**old.feeds, **{n: rows for n, (rows, _) in old.masks.items()}}.items():
        after = new.masks[name][0] if name in new.masks else new.feeds.get(name)
        place = places[name].into if name in old.feeds else places[name].out
        if before is None or after is None or place is None:
            same &= before is after
            continue
        wanted = torch.unique(unit[before], dim=0)
        same &= torch.equal(torch.unique(after[:, list(place.kept)], dim=0), wanted)
    if not same:
        raise ConversionError(
            "HATNetwork.grow: in the wider model units reach other places than before; leave the"
            " layers that it reshapes as they are"
        )
