"""The networks whose steps are timed, with a batch of what they take."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maskcl import models
from maskcl.graph import Graph

__all__ = ["GRAPH", "NETWORKS", "Network", "mlp", "network"]

NETWORKS = {
    "WIDTHS": "MLP such as 784-400-400-10: inputs, hidden widths, classes",
    "conv": "the HAT paper's conv net (Serra et al. 2018) on 3x32x32, 10 classes",
    "resnet18": "ResNet-18 on 3x32x32, 10 classes",
    "gcn": "GCN of 3 x 256 on the whole of a graph of Cora's size, 3 classes; the batch is nodes",
}
# Cora's nodes, features, the share of them that is not 0, and edges; what is there is drawn.
GRAPH = {"nodes": 2708, "features": 1433, "share": 0.0127, "edges": 10_556}
_MOST = 1 << 16


class Network(NamedTuple):
    """What makes a network, and what one step of it takes.

    Attributes:
        make: an ordinary module with weights of its own.
        inputs: what its forward takes.
        targets: int64 [N], in [0, classes).
        classes: of a task.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    targets: Tensor
    classes: int


def network(name: str, batch: int) -> Network:
    """One of `NETWORKS` and a batch that is drawn.

    Raises:
        ValueError: the name is none, or a width is not in [1, 65536].
        ImportError: ``gcn`` without torch_geometric.
    """
    if name == "conv":
        return _images(lambda: models.conv((3, 32, 32), 10), batch)
    if name == "resnet18":
        return _images(lambda: models.resnet18((3, 32, 32), 10), batch)
    if name == "gcn":
        return _graph(batch)
    if not re.fullmatch(r"[0-9]{1,5}(-[0-9]{1,5}){2,9}", name):
        raise ValueError(f"found {name!r}, wanted widths such as 784-400-400-10, {_others()}")
    widths = [int(width) for width in name.split("-")]
    if not all(1 <= width <= _MOST for width in widths):
        raise ValueError(f"found {name!r}, wanted widths of 1 to {_MOST}")
    targets = torch.arange(batch) % widths[-1]
    return Network(lambda: mlp(widths), (torch.rand(batch, widths[0]),), targets, widths[-1])


def mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for ins, outs in itertools.pairwise(widths):
        layers += [nn.Linear(ins, outs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _others() -> str:
    return " or ".join(name for name in NETWORKS if name.islower())


def _images(make: Callable[[], nn.Module], batch: int) -> Network:
    return Network(make, (torch.rand(batch, 3, 32, 32),), torch.arange(batch) % 10, 10)


def _graph(batch: int) -> Network:
    nodes, features = int(GRAPH["nodes"]), int(GRAPH["features"])
    half = torch.randint(nodes, (2, int(GRAPH["edges"]) // 2))
    x = (torch.rand(nodes, features) < GRAPH["share"]).float()
    graph = Graph(x, torch.cat([half, half.flip(0)], 1))
    inputs = x, graph.edges("gcn"), torch.arange(batch) % nodes

    def make() -> nn.Module:
        return models.build_graph("node", "gcn", features, classes=3, hidden=(256,) * 3)

    return Network(make, inputs, torch.arange(batch) % 3, 3)
