"""Convolutions that pad as TensorFlow's "same" does: converted, at every size, also compact."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.export import compact
from maskcl.nn import ConversionError, to_hat, to_plain
from tests.nn.zoo import assert_restores

SIZES = [(1, 2), (4, 7), (9, 6), (8, 8)]


class Same(nn.Conv2d):
    """Pads by the size of its input, with branches on it."""

    def zeros(self, size: int, side: int) -> tuple[int, int]:
        windows = math.ceil(size / self.stride[side])
        reach = (self.kernel_size[side] - 1) * self.dilation[side] + 1
        total = max((windows - 1) * self.stride[side] + reach - size, 0)
        return total // 2, total - total // 2

    def forward(self, input: Tensor) -> Tensor:
        height, width = input.size()[-2:]
        return self.convolve(F.pad(input, (*self.zeros(width, 1), *self.zeros(height, 0))))

    def convolve(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class Left(Same):
    """The odd zero on the other side."""

    def zeros(self, size: int, side: int) -> tuple[int, int]:
        few, many = super().zeros(size, side)
        return many, few


class Doubled(Same):
    def convolve(self, x: Tensor) -> Tensor:
        return super().convolve(x) * 2


class Standardised(Same):
    def convolve(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean()
        return F.conv2d(x, weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Ones(Same):
    def forward(self, input: Tensor) -> Tensor:
        height, width = input.shape[-2:]
        zeros = (*self.zeros(width, 1), *self.zeros(height, 0))
        return self.convolve(F.pad(input, zeros, value=1.0))


class Once(Same):
    """Keeps what its first input asked for."""

    def zeros(self, size: int, side: int) -> tuple[int, int]:
        kept: dict[int, tuple[int, int]] = self.__dict__.setdefault("kept", {})
        return kept.setdefault(side, super().zeros(size, side))


class InTraining(Same):
    """Drops some of its input while it trains."""

    def convolve(self, x: Tensor) -> Tensor:
        return super().convolve(F.dropout(x, 0.5) if self.training else x)


def network(stem: Callable[..., nn.Conv2d] = Same) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        stem(1, 6, 3, stride=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        Same(6, 6, (2, 5), stride=(1, 2), dilation=(2, 1), groups=6),
        nn.ReLU(),
        Same(6, 8, 1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def images(size: tuple[int, int]) -> Tensor:
    return torch.randn(3, 1, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_open_gates_give_the_plain_models_outputs_at_every_size() -> None:
    model = network().eval()
    net = to_hat(model, 1, images((8, 8)), init="dense").eval()
    net.finish_task(0)
    for size in SIZES:
        x = images(size)
        with net.task(0):
            torch.testing.assert_close(net(x), model(x), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(to_plain(net, 0)(x), model(x), rtol=1e-5, atol=1e-6)


def test_a_finished_task_keeps_its_bits_and_is_smaller_when_compact() -> None:
    net = to_hat(network(), 2, images((8, 8)), classes=[3, 3]).eval()
    net.finish_task(0)
    assert not bool(net.hard_mask(0).all())
    assert_restores(net, images((9, 6)))
    small = compact(net, 0)
    assert _size(small) < _size(to_plain(net, 0))
    with torch.no_grad(), net.task(0):
        for size in SIZES:
            x = images(size)
            torch.testing.assert_close(small(x), net(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Left, Doubled, Standardised, Ones, Once, InTraining])
def test_a_convolution_that_does_anything_else_is_refused(kind: type[Same]) -> None:
    with pytest.raises(ConversionError, match=rf"'0.weight' \({kind.__name__}\) is shared"):
        to_hat(network(kind), 2, images((8, 8)))


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
