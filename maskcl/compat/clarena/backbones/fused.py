"""A layer with its mask on maskcl's fused ops."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from maskcl.nn.tasks.activations import fused_name
from maskcl.ops import masked_activation, masked_linear


def masked_layer(
    layer: nn.Module,
    x: Tensor,
    mask: Tensor,
    activation: nn.Module | None,
    norm: nn.Module | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """``act(norm(layer(x)) + shortcut) * mask`` along dimension 1.

    The mask comes behind the activation (Serra et al. 2018, section 2.2), so that a closed unit is
    exactly 0 whatever the activation makes of 0.

    Args:
        layer: linear or convolution.
        x: [N, C, ..].
        mask: [O].
        activation: module, or None.
        norm: module, or None.
        shortcut: of the layer's output's shape, or None.
    """
    fused = ("identity", 0.0) if activation is None else fused_name(activation)
    if type(layer) is nn.Linear and norm is None and shortcut is None and fused is not None:
        return masked_linear(
            x, layer.weight, mask, layer.bias, activation=fused[0], negative_slope=fused[1]
        )
    y = layer(x)
    if norm is not None:
        y = norm(y)
    if shortcut is not None:
        y = y + shortcut
    if fused is None:
        assert activation is not None
        y, fused = activation(y), ("identity", 0.0)
    return masked_activation(y, mask, activation=fused[0], channel_dim=1, negative_slope=fused[1])


def check_activation_layer(owner: str, layer: Callable[[], nn.Module] | None) -> None:
    """Raise ValueError where activations of this class have parameters: no task could keep them."""
    if layer is None:
        return
    module = layer()
    names = ", ".join(name for name, _ in module.named_parameters())
    if names:
        raise ValueError(
            f"{owner}: activation_layer {type(module).__name__} has parameters ({names}) that all"
            " tasks would share, wanted one without"
        )
