"""Multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn


def mlp(
    input_shape: Sequence[int],
    classes: int,
    hidden: Sequence[int] = (200, 200),
    dropout: float = 0.0,
) -> nn.Sequential:
    """Flatten, then Linear + ReLU (+ Dropout) for each hidden width, then Linear to the classes.

    HAT's MNIST experiments use hidden = (2000, 2000) and dropout = 0.5 (Serra et al. 2018).

    Args:
        input_shape: shape of one input; flattened.
        classes: outputs of the last layer.
        hidden: widths, at least one.
        dropout: probability after each hidden layer, in [0, 1); 0 adds no module.
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must be one or more widths of at least 1, got {tuple(hidden)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        width = units
    layers.append(nn.Linear(width, classes))
    return nn.Sequential(*layers)
