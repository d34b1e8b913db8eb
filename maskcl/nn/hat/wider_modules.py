"""Modules with more channels: what they had stays in its place, the rest is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.layers import HATLinear
from maskcl.nn.hat.message_passing import HATMessagePassing, set_channels
from maskcl.nn.hat.topology import HATLayer
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.narrow import is_in_last_order
from maskcl.nn.tasks.unlearning import fresh_tensors
from maskcl.randomness import derive_seed


@dataclass(frozen=True)
class Place:
    """Where the elements of a dimension are after it was widened.

    Attributes:
        kept: by old element, its number now; they rise.
        size: of the dimension now.
    """

    kept: tuple[int, ...]
    size: int

    @property
    def grows(self) -> bool:
        """Whether anything is new."""
        return self.size != len(self.kept)


@dataclass(frozen=True)
class Gain:
    """How a layer's units grow: each of ``blocks`` equal parts by as many, at its end.

    A layer that computes queries, keys and values, of which others read one, has three.
    """

    start: int
    width: int
    added: int
    blocks: int = 1

    @property
    def out(self) -> Place:
        """Where the units are then."""
        old, new = self.width // self.blocks, (self.width + self.added) // self.blocks
        kept = (block * new + unit for block in range(self.blocks) for unit in range(old))
        return Place(tuple(kept), self.width + self.added)


def blocks_of(rows: Sequence[list[int]], spans: dict[str, slice]) -> dict[str, int]:
    """Into how many equal parts each layer's units fall that these modules read; absent: unread.

    Args:
        rows: of all modules that know whose units they read, slots as in ``Topology.feeds``.
        spans: layer -> its slice of U.
    """
    found: dict[str, int] = {}
    for row in rows:
        slots = sorted({slot for slot in row if slot >= 0})
        for name, span in spans.items():
            width = span.stop - span.start
            count = sum(span.start <= slot < span.stop for slot in slots)
            if count:
                found[name] = max(found.get(name, 1), width // count)
    return found


def places_of(name: str, rows: Tensor, gains: Mapping[str, Gain]) -> Place:
    """Where a module's inputs (or a norm's channels) are once the layers that feed them grew.

    Args:
        name: of the module, for the message.
        rows: int64 [R, C], slots of the unit table as in ``Topology.feeds``.
        gains: by layer.

    Raises:
        ConversionError: layers that meet here grow by different numbers, or only part of one is
            read.
    """
    kept: list[int] = []
    size = first = 0
    listed = rows.tolist()
    while first < len(listed[0]):
        found = {_chunk(name, row, first, gains) for row in listed} - {None}
        if len(found) > 1:
            raise ConversionError(
                f"HATNetwork.grow: layers whose units meet in {name!r} would grow by different"
                " numbers; give them the same"
            )
        length, width, new = found.pop() or (1, 1, 1) if found else (1, 1, 1)
        kept += range(size, size + length)
        size += length // width * new
        first += length
    return Place(tuple(kept), size)


def _chunk(
    name: str, row: list[int], first: int, gains: Mapping[str, Gain]
) -> tuple[int, int, int] | None:
    """(columns, units, units then) of the run that begins here: a part of one layer, in order."""
    slot = row[first]
    known = ((n, g) for n, g in gains.items() if g.start <= slot < g.start + g.width)
    layer, gain = next(known, (None, None))
    if gain is None:  # every task's, or padding
        return None
    old, new = gain.width // gain.blocks, (gain.width + gain.added) // gain.blocks
    repeats = 1
    while first + repeats < len(row) and row[first + repeats] == slot:
        repeats += 1
    wanted = [slot + u for u in range(old) for _ in range(repeats)]
    if (slot - gain.start) % old == 0 and row[first : first + len(wanted)] == wanted:
        return len(wanted), old, new
    if gain.added:
        raise ConversionError(
            f"HATNetwork.grow: {name!r} reads the units of {layer!r} in an order or in parts that"
            " more units do not fit in; leave this layer as it is"
        )
    return None


def widen_layer(name: str, layer: HATLayer, out: Place, into: Place, seed: int) -> None:
    """Give a layer more output units and inputs.

    Raises:
        ConversionError: the layer is of a kind that cannot grow.
    """
    is_mean = isinstance(layer, HATMessagePassing) and layer.has_mean_heads
    if getattr(layer, "groups", 1) != 1 or is_mean:
        what = "heads whose mean is taken" if is_mean else "groups"
        raise ConversionError(f"HATNetwork.grow: {name!r} has {what}, and cannot grow")
    if isinstance(layer, HATEmbedding):
        layer.embedding_dim = out.size
        widen(name, layer, {"weight": [into, out]}, seed)
        return
    named = dict(layer.named_parameters())
    changes = {kind: [out, into] if p.dim() > 1 else [out] for kind, p in named.items()}
    if isinstance(layer, HATLinear):
        layer.in_features, layer.out_features = into.size, out.size
    else:
        layer.in_channels, layer.out_channels = into.size, out.size
        if isinstance(layer, HATMessagePassing):
            set_channels(layer.conv, into.size, out.size)
    widen(name, layer, changes, seed)


def widen_norm(name: str, norm: Any, place: Place, seed: int) -> None:
    """Give a BatchNorm or LayerNorm more channels, which start as a new one's.

    Raises:
        ConversionError: it is of another kind.
    """
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        norm.num_features = place.size
    elif isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) and len(norm.normalized_shape) == 1:
        norm.normalized_shape = (place.size,)
    else:
        kind = type(norm).__name__
        raise ConversionError(f"HATNetwork.grow: {name!r} ({kind}) cannot grow")
    held = {**norm._parameters, **norm._buffers}
    widen(name, norm, {k: [place] for k, t in held.items() if t is not None and t.dim()}, seed)


def widen_head(name: str, head: nn.Linear, into: Place, seed: int) -> None:
    """Give a head more inputs."""
    head.in_features = into.size
    rows = Place(tuple(range(head.out_features)), head.out_features)
    widen(name, head, {"weight": [rows, into]}, seed)


@torch.no_grad()
def widen(name: str, module: nn.Module, changes: Mapping[str, Sequence[Place]], seed: int) -> None:
    """Put wider tensors in a module's: old elements in their places, the others as drawn.

    Args:
        name: of the module in the network.
        module: its attributes speak of the wider sizes already.
        changes: by tensor, the places of its first dimensions.
        seed: of what is drawn.
    """
    old: dict[str, Tensor] = {}
    for kind, places in changes.items():
        held, leaf = _holder(module, kind)
        old[kind] = held[leaf]
        held[leaf] = _replaced(old[kind], old[kind].new_zeros(_shape(old[kind], places)))
    fresh = fresh_tensors(name, module, derive_seed("grow", seed))
    for kind, places in changes.items():
        held, leaf = _holder(module, kind)
        new = held[leaf]
        new.copy_(fresh[kind])
        index = [torch.tensor(place.kept, device=new.device) for place in places]
        target = tuple(torch.meshgrid(*index, indexing="ij"))
        new[target] = old[kind]


def _shape(tensor: Tensor, places: Sequence[Place]) -> list[int]:
    return [*(place.size for place in places), *tensor.shape[len(places) :]]


def _replaced(old: Tensor, new: Tensor) -> Tensor:
    if is_in_last_order(old):
        new = new.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def _holder(module: nn.Module, kind: str) -> tuple[dict[str, Any], str]:
    owner, _, leaf = kind.rpartition(".")
    holder = module.get_submodule(owner)
    return (holder._parameters if leaf in holder._parameters else holder._buffers), leaf
