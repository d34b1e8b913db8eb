"""Backbones: ordinary modules that ``maskcl.nn.to_hat`` converts.

Each is a plain ``nn.Module`` whose activations are modules used once, so that conversion can fuse
them into the layer before.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from maskcl.models.conv import conv
from maskcl.models.mlp import mlp
from maskcl.models.resnet import resnet18

__all__ = ["NAMES", "build", "conv", "mlp", "resnet18"]

NAMES = ("mlp", "conv", "resnet18")


def build(
    name: str,
    input_shape: Sequence[int],
    classes: int,
    *,
    hidden: Sequence[int] | None = None,
    dropout: float | None = None,
) -> nn.Module:
    """A backbone by name.

    Args:
        name: one of ``NAMES``.
        input_shape: shape of one input, such as (1, 28, 28).
        classes: outputs of the last layer.
        hidden: widths of the MLP's hidden layers; None for its default, the only value that the
            others take.
        dropout: of the MLP; None likewise.

    Raises:
        ValueError: unknown name, an image too small, or an option that the model has not.
    """
    if name not in NAMES:
        raise ValueError(f"unknown model {name!r}: known are {', '.join(NAMES)}")
    if name == "mlp":
        widths = (200, 200) if hidden is None else tuple(hidden)
        return mlp(input_shape, classes, hidden=widths, dropout=dropout or 0.0)
    if hidden is not None or dropout is not None:
        option = "hidden" if hidden is not None else "dropout"
        raise ValueError(f"{option} belongs to the mlp, {name} has none")
    return conv(input_shape, classes) if name == "conv" else resnet18(input_shape, classes)
