"""The products of layers between masked units, in plain torch.

HAT's masks make most units of a task 0 (Serra et al. 2018, section 2.2: a layer's output is
multiplied by gates that saturate; below ``floor`` `hat_gate` makes them exactly 0). A column of a
product's operand is *closed* where all of its elements are 0 or -0. A backend may leave closed
columns out, and nothing else, however small it is. The sums are then these within rounding.

What a closed column would have met is not looked at where it is left out: a NaN or an infinity
there is not in the sum, as IEEE's 0 NaN = NaN would have it. It is where the column is not left
out: in backends other than C++, where fewer than a third of the columns are closed (a fifth of the
channels of contiguous images), and with ``ordinary``. So the weights of closed units may be
anything, but no result should hang on it.

The C++ backend's float32 products take numbers below 2^-126 (subnormals) as 0, and make 0 of terms
and sums that are as small, as its masked activations do: each would cost an x86 core a hundred
cycles. Where nothing is left out and nothing is near 2^-100, products are the device's library's,
which keep them, as those of all other backends do; but not in convolutions of contiguous images,
nor in the gradients of few rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def open_linear(x: Tensor, weight: Tensor, bias: Tensor | None, ordinary: bool = False) -> Tensor:
    """x W^T + b: x [N, I], weight [O, I], bias [O] -> [N, O].

    ``ordinary`` asks for the bits of an ordinary layer: nothing is left out.
    """
    return F.linear(x, weight, bias)


def open_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool
) -> tuple[Tensor, Tensor]:
    """(dx = g W [N, I], dweight = g^T x [O, I]); those not asked for are [0, 0]."""
    dx = grad @ weight if want_x else x.new_empty(0, 0)
    dweight = grad.t() @ x if want_weight else weight.new_empty(0, 0)
    return dx, dweight


def open_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    """conv2d(x) + b: x [N, I, H, W], weight [O, I, *], bias [O] -> [N, O, *], in x's order.

    That is channels_last or, of all other x, the ordinary one.
    """
    y = F.conv2d(x, weight, bias, stride, padding, dilation)
    return y.contiguous(memory_format=order_of(x))


def open_conv_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    want_x: bool,
    want_weight: bool,
    want_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx in x's order, dweight in the weight's order, dbias [O]); those not asked for are [0].

    The transposed convolution of ``grad`` with the weight, and the correlation of x with ``grad``.
    """
    wanted = [want_x, want_weight, want_bias]
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        grad, x, weight, [weight.shape[0]], stride, padding, dilation, False, [0, 0], 1, wanted
    )
    dx = dx.contiguous(memory_format=order_of(x)) if want_x else x.new_empty(0)
    dweight = torch.empty_like(weight).copy_(dweight) if want_weight else weight.new_empty(0)
    return dx, dweight, dbias if want_bias else weight.new_empty(0)


def order_of(x: Tensor) -> torch.memory_format:
    """That y has; images of one channel or one pixel are in both, and y in the ordinary one."""
    is_last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
