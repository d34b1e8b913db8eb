"""TensorFlow's "same" padding of a convolution: as many zeros as its input's size asks for."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class SamePadding(nn.Module):
    """Zeros around images, so that a convolution gives ``ceil(size / stride)`` positions a side.

    An odd zero goes to the right and to the bottom. The amounts are worked out for each input.

    Args:
        kernel_size, stride, dilation: of the convolution that follows without padding, [2] each.

    Shape: [.., H, W] -> [.., H + zeros, W + zeros].
    """

    def __init__(
        self, kernel_size: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.dilation = kernel_size, stride, dilation

    def forward(self, input: Tensor) -> Tensor:
        """The padded images."""
        left, right = self.zeros(input.size(-1), 1)
        top, bottom = self.zeros(input.size(-2), 0)
        return F.pad(input, (left, right, top, bottom))

    def zeros(self, size: Any, side: int) -> tuple[Any, Any]:
        """How many go before and behind ``size`` positions along a side (0: H, 1: W)."""
        stride = self.stride[side]
        reach = self.dilation[side] * (self.kernel_size[side] - 1) + 1
        last = (size + stride - 1) // stride * stride - stride  # where the last window begins
        # Written without a branch: a tracer then follows it for every size, not for one.
        total = torch.sym_max(last + reach - size, 0)
        return total // 2, total - total // 2

    def extra_repr(self) -> str:
        """The convolution that it is for."""
        return f"kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}"


def same_padding(conv: nn.Module) -> SamePadding | None:
    """The padding of a convolution of a class made from ``nn.Conv2d`` that pads so and convolves.

    None where its forward does anything else, in evaluation or in training mode, or at one of the
    sizes of images that tell: up to where the window and the stride repeat themselves.
    """
    if not isinstance(conv, nn.Conv2d) or conv.padding_mode != "zeros" or conv._modules:
        return None
    kernel, stride, dilation = conv.kernel_size, conv.stride, conv.dilation
    assert len(kernel) == len(stride) == len(dilation) == 2
    padding = SamePadding(kernel, stride, dilation)
    largest = max(s + d * (k - 1) + 1 for k, s, d in zip(kernel, stride, dilation, strict=True))
    try:
        is_same = all(
            _pads(twin, (height, height + 1), padding)
            for twin in (_twin(conv, mode) for mode in (False, True))
            for height in range(1, largest + 1)
        )
    except Exception:  # the forward is of another kind and cannot do with such images
        return None
    return padding if is_same else None


def _twin(conv: nn.Conv2d, mode: bool) -> nn.Conv2d:
    """A copy in evaluation or training mode that computes nothing: its tensors are on meta.

    One for all sizes, as a forward may keep what it found for the first.
    """
    twin = copy.copy(conv)
    twin.__dict__.update(_modules={}, _buffers=dict(conv._buffers), training=mode)
    twin._parameters = {
        name: None if p is None else nn.Parameter(torch.empty_like(p, device="meta"))
        for name, p in conv._parameters.items()
    }
    return twin


def _pads(conv: nn.Conv2d, size: tuple[int, int], padding: SamePadding) -> bool:
    """Whether on images of one size it calls F.pad as ``padding`` does, F.conv2d, and no more."""
    x = torch.empty(1, conv.in_channels, *size, dtype=conv.weight.dtype, device="meta")
    with _Calls() as calls:
        y = conv.forward(x)
    if len(calls.made) != 2:
        return False
    (padded, pads), (result, convolved) = calls.made
    zeros = (*padding.zeros(size[1], 1), *padding.zeros(size[0], 0))
    return (
        y is result
        and (pads.pop("input") is x and tuple(pads.pop("pad")) == zeros)
        and (pads.get("mode", "constant") == "constant" and not pads.get("value"))
        and convolved["input"] is padded
        and (convolved["weight"] is conv.weight and convolved.get("bias") is conv.bias)
        and _pair(convolved.get("stride", 1)) == conv.stride
        and _pair(convolved.get("padding", 0)) == (0, 0)
        and _pair(convolved.get("dilation", 1)) == conv.dilation
        and convolved.get("groups", 1) == conv.groups
    )


def _pair(option: Any) -> tuple[Any, ...]:
    return (option, option) if isinstance(option, int) else tuple(option)


# Of the calls that count, with the names of their arguments in order.
_NAMES = {
    F.pad: ("input", "pad", "mode", "value"),
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
}
_SIZES = (
    torch.Tensor.size,
    torch.Tensor.dim,
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device")),
)


class _Calls(TorchFunctionMode):
    """Notes each call of F.pad and F.conv2d: what it returned, and its arguments by name."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, dict[str, Any]]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _NAMES:
            named = dict(zip(_NAMES[func], args, strict=False))
            self.made.append((result, {**named, **kwargs}))
        elif func not in _SIZES:
            raise TypeError(f"calls {func}")
        return result
