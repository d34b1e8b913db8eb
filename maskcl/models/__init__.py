"""Backbones: ordinary modules that ``maskcl.nn.to_hat`` converts.

Each is a plain ``nn.Module`` whose activations are modules used once, so that conversion can fuse
them into the layer before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from maskcl.models.conv import conv
from maskcl.models.graph_options import ENCODERS, GRAPH_PROBLEMS, READOUTS, example_inputs
from maskcl.models.memory import within_memory
from maskcl.models.mlp import mlp
from maskcl.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from maskcl.models.vit import vit_small, vit_tiny

if TYPE_CHECKING:
    from maskcl.models.graph import GraphClassifier, LinkClassifier, NodeClassifier

__all__ = [
    "ENCODERS",
    "GRAPH_PROBLEMS",
    "NAMES",
    "READOUTS",
    "build",
    "build_graph",
    "conv",
    "example_inputs",
    "mlp",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "vit_small",
    "vit_tiny",
]

_RESNETS = {f.__name__: f for f in (resnet18, resnet34, resnet50, resnet101, resnet152)}
_VITS = {"vit_tiny": vit_tiny, "vit_small": vit_small}
NAMES = ("mlp", "conv", *_RESNETS, *_VITS)
LARGE_FROM = 64
"""Pixels of the shorter side from which ``build`` takes ImageNet's stem or patches of 16."""


def build(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    hidden: Sequence[int] | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """A backbone by name.

    ResNets have the small stem and ViTs patches of 4 pixels where an image's shorter side is under
    64 pixels, ImageNet's stem and patches of 16 from there on.

    Args:
        name: one of ``NAMES``.
        input_shape: shape of one input, such as (1, 28, 28).
        classes: outputs of the last layer.
        hidden: widths of the MLP's hidden layers; None for its default, the only value that the
            others take.
        dropout: of the MLP; None likewise.

    Raises:
        ValueError: unknown name, an image too small, an option that the model has not, or an mlp
            larger than this machine's memory.
    """
    if name not in NAMES:
        raise ValueError(f"unknown model {name!r}: known are {', '.join(NAMES)}")
    if name == "mlp":
        widths = (200, 200) if hidden is None else tuple(hidden)
        return within_memory(
            lambda: mlp(input_shape, classes, hidden=widths, dropout=dropout or 0.0)
        )
    if hidden is not None or dropout is not None:
        option = "hidden" if hidden is not None else "dropout"
        raise ValueError(f"{option} belongs to the mlp, {name} has none")
    if name == "conv":
        return conv(input_shape, classes)
    is_large = len(input_shape) == 3 and min(input_shape[1:]) >= LARGE_FROM
    if name in _RESNETS:
        return _RESNETS[name](input_shape, classes, stem="imagenet" if is_large else "small")
    return _VITS[name](input_shape, classes, patch=16 if is_large else 4)


def build_graph(
    problem: str,
    encoder: str,
    features: int,
    classes: int,
    *,
    hidden: Sequence[int] = (256, 256, 256),
    dropout: float = 0.0,
    norm: bool = False,
    heads: int = 1,
    readout: str = "mean",
) -> NodeClassifier | LinkClassifier | GraphClassifier:
    """A graph model by name: ``maskcl.models.graph`` has its parts.

    Args:
        problem: ``node``, ``link`` or ``graph``. Links and graphs have one hidden layer, of the
            last width, between the encoder and the output layer, which is the last nn.Linear.
        encoder: one of ``ENCODERS``.
        features: F of the nodes' features.
        classes: outputs; 1 for link prediction.
        hidden: widths of the encoder's layers.
        dropout: after each hidden layer, in [0, 1).
        norm: BatchNorm1d after each convolution.
        heads: of ``gat``, a divisor of every width; 1 for the others.
        readout: of ``graph``: ``mean``, ``sum`` or ``max``.

    Raises:
        ValueError: an argument is not as above, or the model larger than this machine's memory.
        ImportError: torch_geometric is not installed.
    """
    # torch_geometric, which this needs, is not installed everywhere.
    from maskcl.models.graph import build as build_model

    return within_memory(
        lambda: build_model(
            problem,
            encoder,
            features,
            classes,
            hidden=hidden,
            dropout=dropout,
            norm=norm,
            heads=heads,
            readout=readout,
        )
    )
