"""What the stored tasks of a backbone need of its weights, as the kernels take it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskcl.nn.hat.protection import Protection
from maskcl.nn.tasks.state import WORD

Part = tuple[str, Any, str, "str | None"]
"""Name of a layer, the layer, the layer whose mask its output has, and the one of its input's."""


@dataclass(frozen=True)
class LayerProtection(Protection):
    """A Protection that knows of which layer each parameter is.

    Attributes:
        layers: for each parameter, name of the layer whose mask its rows have.
    """

    layers: list[str]


def protect(
    parts: Iterable[Part], bits: Tensor, spans: dict[str, slice], tasks: int
) -> LayerProtection:
    """The protection of layers by the bits of their units.

    Args:
        parts: the layers.
        bits: int64 [U, W]; [0, W] where no task is stored.
        spans: name of a layer -> its units.
        tasks: how many tasks are stored.

    Raises:
        ValueError: a layer's sizes are not those of its masks.
    """
    units = max((span.stop for span in spans.values()), default=0)
    if not len(bits):
        bits = torch.zeros(units, bits.shape[1], dtype=torch.int64, device=bits.device)
    everyone = bits.new_full((1, bits.shape[1]), -1)
    result = LayerProtection([], [], [], [], [], empty=tasks == 0, layers=[])
    for name, layer, out_name, in_name in parts:
        out = bits[spans[out_name]]
        if layer.weight.shape[0] != len(out):
            raise ValueError(
                f"layer {name!r} has {layer.weight.shape[0]} units, its mask {out_name!r}"
                f" {len(out)}"
            )
        groups = getattr(layer, "groups", 1)
        columns = layer.weight.shape[1] * groups
        into = everyone
        if in_name is not None:
            into = per_input(name, bits[spans[in_name]], in_name, columns)
        for kind, parameter in layer.named_parameters():
            is_weight = parameter.dim() > 1
            result.names.append(f"{name.replace('/', '.')}.{kind}")
            result.parameters.append(parameter)
            result.out_tasks.append(out)
            result.in_tasks.append(into if is_weight else everyone)
            result.groups.append(groups if is_weight else 1)
            result.layers.append(out_name)
            result.owners.append((layer, kind))
    return result


def per_input(name: str, values: Tensor, of: str, columns: int) -> Tensor:
    """Values of the preceding layer's units for each input, repeated where it was flattened.

    Raises:
        ValueError: the number of inputs is no multiple of the number of units.
    """
    if not len(values) or columns % len(values):
        raise ValueError(
            f"layer {name!r} has {columns} inputs, wanted a multiple of the {len(values)} units"
            f" of {of!r} before it"
        )
    repeats = columns // len(values)
    return values if repeats == 1 else values.repeat_interleave(repeats, 0)


def protect_behind(
    name: str, layer: Any, last: str, bits: Tensor, spans: dict[str, slice], tasks: int
) -> LayerProtection:
    """The protection of a layer behind the last masked one, whose outputs every stored task uses.

    Args:
        name: of the layer.
        layer: linear.
        last: the layer whose masked units are its inputs.
        bits: as for `protect`.
        spans: as for `protect`.
        tasks: as for `protect`.
    """
    done = bits.new_zeros(1, bits.shape[1])
    for k in range(tasks):
        done[0, k // WORD] |= torch.ones((), dtype=torch.int64, device=bits.device) << (k % WORD)
    into = bits[spans[last]] if len(bits) else done
    parameters = dict(layer.named_parameters())
    return LayerProtection(
        [f"{name}.{kind}" for kind in parameters],
        list(parameters.values()),
        [done] * len(parameters),
        [into if p.dim() > 1 else done for p in parameters.values()],
        [1] * len(parameters),
        empty=tasks == 0,
        layers=[name] * len(parameters),
        owners=[(layer, kind) for kind in parameters],
    )
