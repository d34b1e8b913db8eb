"""What stands in a converted model where a layer computes the activation behind it."""

from __future__ import annotations

from torch import nn


class FusedActivation(nn.Identity):
    """Stands where an activation module was that its layer now computes; keeps it for to_plain.

    Attributes:
        original: the module. layer: name of the layer that computes it.
    """

    def __init__(self, original: nn.Module, layer: str) -> None:
        super().__init__()
        self.original = original
        self.layer = layer

    def extra_repr(self) -> str:
        """Which layer computes it."""
        return f"by {self.layer}"
