"""What the image backbones ask of their input."""

from __future__ import annotations

from collections.abc import Sequence


def image_shape(input_shape: Sequence[int], smallest: int, model: str) -> tuple[int, int, int]:
    """(channels, height, width), or ValueError if it is not an image of at least that size."""
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest or input_shape[0] < 1:
        raise ValueError(
            f"{model} wants images (channels, height, width) of at least {smallest}x{smallest}, "
            f"got shape {tuple(input_shape)}"
        )
    channels, height, width = input_shape
    return channels, height, width
