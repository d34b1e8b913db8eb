"""Which of torch_geometric's convolutions can carry masks; known by their names, not imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Kind:
    """Where a convolution keeps what.

    Attributes:
        bias: its parameter with an element for each output channel.
        attention: parameters [1, heads, channels] whose product with the channels, summed over
            them, decides how much a neighbour counts.
        wanted: attribute -> the only values under which each output channel is a function of its
            own rows of the weights, and of all inputs.
    """

    bias: str
    attention: tuple[str, ...] = ()
    wanted: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


_AGGREGATIONS = ("add", "sum", "mean", "max", "min")
KINDS = {
    "GCNConv": Kind("bias", wanted={"cached": (False,)}),
    "GraphConv": Kind("lin_rel.bias", wanted={"aggr": _AGGREGATIONS}),
    "SAGEConv": Kind(
        "lin_l.bias",
        wanted={"aggr": _AGGREGATIONS, "normalize": (False,), "project": (False,)},
    ),
    "GATConv": Kind(
        "bias", ("att_src", "att_dst"), wanted={"edge_dim": (None,), "residual": (False,)}
    ),
}

# Without weights: an output channel comes from the same channel of the rows read, 0 from 0.
_CHANNELWISE = (
    "APPNP",
    "LGConv",
    "MaxAggregation",
    "MeanAggregation",
    "SimpleConv",
    "SumAggregation",
)


def is_message_passing(module: nn.Module) -> bool:
    """Whether it is a convolution of torch_geometric or of that kind."""
    return any(base.__name__ == "MessagePassing" for base in type(module).__mro__)


def is_channelwise(module: nn.Module) -> bool:
    """Whether it reads rows of its first argument and keeps each channel to itself, 0 at 0."""
    if not is_geometric(module) or next(module.parameters(), None) is not None:
        return False
    name = type(module).__name__
    return name in _CHANNELWISE or (
        name == "GINConv" and isinstance(module.nn, nn.Identity) and module.aggr in _AGGREGATIONS
    )


def refusal(conv: nn.Module) -> str | None:
    """Why a convolution cannot carry masks; None where it can."""
    name = type(conv).__name__
    if not is_geometric(conv) or name not in KINDS:
        return f"conv is a {name}, wanted one of {', '.join(KINDS)}, GINConv; or freeze it"
    for option, wanted in KINDS[name].wanted.items():
        found = getattr(conv, option, wanted[0])
        if found not in wanted:
            values = " or ".join(map(repr, wanted))
            return f"{name} has {option}={found!r}, wanted {values}"
    if not isinstance(conv.in_channels, int) or conv.in_channels < 1:
        return (
            f"{name} has in_channels={conv.in_channels!r}, wanted one number (run it once if lazy)"
        )
    return None


def is_geometric(module: nn.Module) -> bool:
    """Whether its class is torch_geometric's own."""
    return type(module).__module__.split(".")[0] == "torch_geometric"
