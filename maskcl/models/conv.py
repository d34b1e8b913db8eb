"""The convolutional network of the HAT paper."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from maskcl.models.image_shape import image_shape

# From this size on the three stages leave at least one pixel without padding.
UNPADDED_FROM = 19


def conv(
    input_shape: Sequence[int], classes: int, width: int = 64, hidden: int = 2048
) -> nn.Sequential:
    """Three convolutions and two hidden linear layers (Serra et al. 2018, section 3).

    Channels 64, 128, 256 with kernels 4, 3, 2, each followed by ReLU, dropout (.2, .2, .5) and
    2x2 max pooling; then two layers of 2048 with ReLU and dropout .5. Images under 19 pixels,
    such as 8x8 digits, get half a kernel of padding so that every stage has pixels left; larger
    ones get none, as in the paper.

    Args:
        input_shape: (channels, height, width), at least 3x3.
        classes: outputs of the last layer.
        width: channels of the first convolution; the others are 2 and 4 times that.
        hidden: units of the two hidden linear layers.
    """
    channels, height, width_pixels = image_shape(input_shape, smallest=3, model="conv")
    padded = min(height, width_pixels) < UNPADDED_FROM
    layers: list[nn.Module] = []
    size = [height, width_pixels]
    for scale, kernel, dropout in ((1, 4, 0.2), (2, 3, 0.2), (4, 2, 0.5)):
        padding = kernel // 2 if padded else 0
        layers += [
            nn.Conv2d(channels, scale * width, kernel, padding=padding),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.MaxPool2d(2),
        ]
        channels = scale * width
        size = [(pixels + 2 * padding - kernel + 1) // 2 for pixels in size]
    features = channels * size[0] * size[1]
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(hidden, classes),
    )
