"""Triton's masked_activation kernels, interpreted, against the reference in float64."""

import pytest
import torch
from torch import Tensor

from maskcl.reference import masked_forward as reference
from maskcl.triton import masked_forward

# The interpreter cuts digits off for bfloat16, where a GPU rounds.
ROUNDING = {torch.float32: 5e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}
SHAPES = [
    ((5, 7), 1),
    ((1, 1), 1),
    ((33, 130), -1),
    ((3, 5, 4, 3), 1),
    ((2, 3, 70), 1),
    ((6, 3), 0),
]


def _case(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, mask with one exact 0 and one exact 1, bias, grad."""
    channels = shape[dim]
    mask = torch.rand(channels, generator=rng) * 0.9 + 0.1
    mask[-1], mask[0] = 0, 1
    x, grad = (2 * torch.randn(shape, generator=rng) for _ in range(2))
    return x.to(dtype), mask, torch.randn(channels, generator=rng).to(dtype), grad.to(dtype)


def _double(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in tensors]


def _assert_forward(
    x: Tensor, mask: Tensor, bias: Tensor | None, activation: str, dim: int
) -> Tensor:
    found = masked_forward.masked_activation(x, mask, bias, activation, 0.1, dim)
    wanted = reference.masked_activation(*_double(x, mask, bias), activation, 0.1, dim)
    assert found.dtype == x.dtype
    assert found.stride() == torch.empty_like(x).stride()
    tolerance = ROUNDING[x.dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    return found


def _assert_backward(
    grad: Tensor,
    saved: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    activation: str,
    dim: int,
    from_output: bool = False,
    sums: tuple[bool, bool] = (True, True),
) -> None:
    rest = (activation, 0.1, dim, from_output, *sums)
    found = masked_forward.masked_activation_backward(grad, saved, mask, bias, *rest)
    wanted = reference.masked_activation_backward(*_double(grad, saved, mask, bias), *rest)
    assert [t.dtype for t in found] == [saved.dtype, torch.float32, torch.float32]
    assert found[0].stride() == torch.empty_like(saved).stride()
    tolerance = ROUNDING[saved.dtype]
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=tolerance, atol=tolerance)
    for one, other in zip(found[1:], wanted[1:], strict=True):
        # The terms are exact in float32 up to 2e-6 each, whatever the dtype of the tensors.
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize(("shape", "dim"), [((5, 7), 1), ((3, 5, 4, 3), 1)])
def test_every_activation(
    shape: tuple[int, ...], dim: int, activation: str, rng: torch.Generator
) -> None:
    x, mask, bias, grad = _case(shape, dim, torch.float32, rng)
    _assert_forward(x, mask, bias, activation, dim)
    _assert_backward(grad, x, mask, bias, activation, dim)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("shape", "dim"), SHAPES)
def test_every_shape(
    shape: tuple[int, ...], dim: int, with_bias: bool, rng: torch.Generator
) -> None:
    x, mask, bias, grad = _case(shape, dim, torch.float32, rng)
    _assert_forward(x, mask, bias if with_bias else None, "sigmoid", dim)
    _assert_backward(grad, x, mask, bias if with_bias else None, "sigmoid", dim)


@pytest.mark.parametrize("activation", reference.FROM_OUTPUT)
@pytest.mark.parametrize(("shape", "dim"), [((5, 7), 1), ((3, 5, 4, 3), 1)])
def test_backward_from_the_output(
    shape: tuple[int, ...], dim: int, activation: str, rng: torch.Generator
) -> None:
    x, mask, _, grad = _case(shape, dim, torch.float32, rng)
    y = reference.masked_activation(x, mask, None, activation, 0.1, dim)
    _assert_backward(grad, y, mask, None, activation, dim, from_output=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "dim"), [((5, 7), 1), ((3, 5, 4, 3), 1)])
def test_half_precision(
    shape: tuple[int, ...], dim: int, dtype: torch.dtype, rng: torch.Generator
) -> None:
    x, mask, bias, grad = _case(shape, dim, dtype, rng)
    for activation in ("relu", "gelu"):
        _assert_forward(x, mask, bias, activation, dim)
        _assert_backward(grad, x, mask, bias, activation, dim)


def _layouts(x: Tensor) -> dict[str, Tensor]:
    """The values of x [N, C, H, W] under other strides."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return {
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "batch innermost": x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "every other": wide[..., ::2],
        "expanded": x[:1].expand(x.shape),
    }


@pytest.mark.parametrize("layout", ["channels_last", "batch innermost", "every other", "expanded"])
@pytest.mark.parametrize("dim", [0, 1, 3])
def test_strides(layout: str, dim: int, rng: torch.Generator) -> None:
    x, mask, bias, grad = _case((4, 3, 5, 2), dim, torch.float32, rng)
    x, other = _layouts(x)[layout], _layouts(grad)[layout]
    _assert_forward(x, mask, bias, "silu", dim)
    for g in (grad, other):
        _assert_backward(g, x, mask, bias, "silu", dim)


@pytest.mark.parametrize(
    "layout", ["contiguous", "channels_last", "batch innermost", "every other"]
)
def test_in_place_keeps_the_memory(layout: str, rng: torch.Generator) -> None:
    x, mask, bias, _ = _case((4, 3, 5, 2), 1, torch.float32, rng)
    wanted = reference.masked_activation(x, mask, bias, "relu", 0.0, 1)
    x = {"contiguous": x, **_layouts(x)}[layout]
    address, strides = x.data_ptr(), x.stride()
    assert masked_forward.masked_activation_(x, mask, bias, "relu", 0.0, 1) is None
    assert (x.data_ptr(), x.stride()) == (address, strides)
    torch.testing.assert_close(x, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("shape", "dim"), [((900, 3), 1), ((20, 2, 150), 1), ((2, 1, 1200), 1)])
def test_sums_over_several_programs(shape: tuple[int, ...], dim: int, rng: torch.Generator) -> None:
    # One channel (block) takes several tiles, so partial sums are written and added up.
    x, mask, bias, grad = _case(shape, dim, torch.float32, rng)
    x, grad = x.abs(), grad.abs()  # no cancellation: the relative error of the sum shows
    _assert_backward(grad, x, mask, bias, "leaky_relu", dim)


@pytest.mark.parametrize("sums", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("shape", [(900, 3), (20, 2, 150)])
def test_sums_that_are_not_asked_for(
    shape: tuple[int, ...], sums: tuple[bool, bool], rng: torch.Generator
) -> None:
    x, mask, bias, grad = _case(shape, 1, torch.float32, rng)
    _assert_backward(grad, x, mask, bias, "relu", 1, sums=sums)


def test_programs_that_take_several_tiles(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    monkeypatch.setattr(masked_forward, "PROGRAMS", 4)
    monkeypatch.setattr(masked_forward, "TILE", 64)
    monkeypatch.setattr(masked_forward, "BACKWARD_TILE", 64)
    for shape in ((50, 3), (7, 2, 45), (3, 2, 70)):
        x, mask, bias, grad = _case(shape, 1, torch.float32, rng)
        _assert_forward(x, mask, bias, "tanh", 1)
        _assert_backward(grad, x, mask, bias, "tanh", 1)


def test_more_partial_sums_than_one_block_adds(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    monkeypatch.setattr(masked_forward, "BACKWARD_TILE", 8)
    x, mask, bias, grad = _case((90, 3), 1, torch.float32, rng)
    _assert_backward(grad, x, mask, bias, "relu", 1)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 3, 0)])
def test_empty(shape: tuple[int, ...]) -> None:
    x, mask = torch.empty(shape), torch.ones(shape[1])
    assert masked_forward.masked_activation(x, mask, None, "relu", 0.0, 1).shape == shape
    masked_forward.masked_activation_(x, mask, None, "relu", 0.0, 1)
    rest = ("relu", 0.0, 1, False, True, True)
    dz, dmask, dbias = masked_forward.masked_activation_backward(x, x, mask, mask, *rest)
    assert dz.shape == shape
    for found in (dmask, dbias):
        assert torch.equal(found, torch.zeros(shape[1]))


@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_far_out_and_not_a_number(activation: str) -> None:
    x = torch.tensor([[-3e4], [-100.0], [-20.0], [-1e-5], [0.0], [1e-5], [20.0], [100.0], [3e4]])
    mask = torch.ones(1)
    _assert_forward(x, mask, None, activation, 1)
    _assert_backward(torch.ones_like(x), x, mask, None, activation, 1)
    found = masked_forward.masked_activation(x * float("nan"), mask, None, activation, 0.1, 1)
    assert found.isnan().all()


def test_tanh_is_relatively_exact_near_0() -> None:
    x = torch.logspace(-8, 0.5, 400).view(-1, 1)
    found = masked_forward.masked_activation(x, torch.ones(1), None, "tanh", 0.0, 1)
    torch.testing.assert_close(found.double(), x.double().tanh(), rtol=1e-6, atol=0)


def test_same_bits_every_time(rng: torch.Generator) -> None:
    x, mask, bias, grad = _case((64, 2, 50), 1, torch.float32, rng)
    rest = ("relu", 0.0, 1, False, True, True)
    first, second = (
        masked_forward.masked_activation_backward(grad, x, mask, bias, *rest) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
