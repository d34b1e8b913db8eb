"""Triton's importance kernels, interpreted, against the reference: gradients for equality."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from maskcl.reference import importance as reference
from maskcl.triton import _flat, _linear_importance, importance

SHAPES = [(19, 57), (), (1,), (1024,), (6, 5, 3, 3), (0, 4), (2, 1025)]
HALVES = [torch.bfloat16, torch.float16]


def _random(
    rng: torch.Generator, dtype: torch.dtype = torch.float32, shapes: Sequence[tuple] = SHAPES
) -> list[Tensor]:
    return [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [t.clone(memory_format=torch.preserve_format) for t in tensors]


def _assert_equal(found: list[Tensor], wanted: list[Tensor], rtol: float = 0.0) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol, equal_nan=True)


def _count_launches(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Where the number of programs of each launch of ``name`` lands from here on."""
    grids: list[int] = []
    kernel = getattr(importance, name)

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            grids.append(grid[0])
            return kernel[grid]

    monkeypatch.setattr(importance, name, Counted())
    return grids


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_accumulate(dtype: torch.dtype, square: bool, rng: torch.Generator) -> None:
    # Every other place has samples in front: more than a tile of them, and none at all.
    samples = {0: 11, 2: 3, 4: 8, 6: 0}
    shapes = [((samples[t],) if t in samples else ()) + s for t, s in enumerate(SHAPES)]
    found, grads = _random(rng), _random(rng, dtype, shapes)
    grads[3][::100] = torch.nan
    wanted = _copies(found)
    importance.mas_accumulate_(found, grads, 0.5, 0.75, square)
    reference.mas_accumulate_(wanted, grads, 0.5, 0.75, square)
    _assert_equal(found, wanted, 1e-6)  # torch fuses the product with the sum
    assert found[3].isnan().sum() == 11


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_penalty_and_its_gradient(
    dtype: torch.dtype, scale: float | None, add: bool, rng: torch.Generator
) -> None:
    params, anchors, grads = (_random(rng, dtype) for _ in range(3))
    omegas = [omega.abs() for omega in _random(rng)]
    if not add:  # is not to be read
        grads = [grad.fill_(torch.nan) for grad in grads]
    found, wanted = _copies(grads), _copies(grads)
    factor = None if scale is None else torch.tensor(scale)
    rest = (params, anchors, omegas, factor, 1.7, add)
    value = importance.mas_penalty_grads_(found, *rest)
    full = reference.mas_penalty_grads_(wanted, *rest)
    # The interpreter cuts digits off for bfloat16, where a GPU rounds.
    _assert_equal(found, wanted, 2**-7 if dtype == torch.bfloat16 else 0)
    assert (value.shape, value.dtype) == ((), torch.float32)
    torch.testing.assert_close(value, full, rtol=1e-6, atol=0)
    assert torch.equal(importance.mas_penalty(params, anchors, omegas), value)


def test_a_list_is_one_launch_a_dtype(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    grids = _count_launches(monkeypatch, "_penalty_kernel")
    shapes = [(20, 200)] * 5  # four tiles
    omegas = _random(rng, shapes=shapes)
    mixed = [_random(rng, shapes=shapes) for _ in range(3)]
    for tensors in mixed:
        tensors[1], tensors[3] = tensors[1].half(), tensors[3].half()
    wanted = _copies(mixed[0])
    full = reference.mas_penalty_grads_(wanted, *mixed[1:], omegas, None, 1.0, True)

    def check(expected: list[int]) -> None:
        found = _copies(mixed[0])
        value = importance.mas_penalty_grads_(found, *mixed[1:], omegas, None, 1.0, True)
        _assert_equal(found, wanted)
        torch.testing.assert_close(value, full, rtol=1e-6, atol=0)
        assert grids == expected
        grids.clear()

    check([3 * 4, 2 * 4])
    with monkeypatch.context() as patch:
        patch.setattr(_flat, "PROGRAMS", 4)  # three tiles a program: three and a cut one; two
        check([3 * 2, 2 * 2])
    monkeypatch.setattr(_flat, "MAX_TENSORS", 2)
    check([2 * 4, 2 * 4, 4])


def _layouts(shape: tuple[int, int, int, int]) -> dict[str, Tensor]:
    n, c, h, w = shape
    return {
        "contiguous": torch.zeros(shape),
        "channels_last": torch.zeros(shape).contiguous(memory_format=torch.channels_last),
        "transposed": torch.zeros(w, h, c, n).permute(3, 2, 1, 0),
        "every other": torch.zeros(2 * n, c, h, w)[::2],
        "not aligned": torch.zeros(n * c * h * w + 1)[1:].view(shape),
    }


def _laid_out(tensor: Tensor, layout: str, value: float = -3.0) -> Tensor:
    """``tensor`` in the layout, ``value`` around it."""
    empty = _layouts(tuple(tensor.shape))[layout]
    base = empty if empty._base is None else empty._base
    base.fill_(value)
    return empty.copy_(tensor)


@pytest.mark.parametrize("layout", _layouts((1, 1, 1, 1)))
@pytest.mark.parametrize("odd", ["none", "params", "grads"])
def test_strides(
    layout: str, odd: str, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    shape = (6, 5, 3, 4)
    plain = dict(zip(("grads", "params", "anchors", "omegas"), _random(rng, shapes=[shape] * 4)))
    given = {name: t.clone() if name == odd else _laid_out(t, layout) for name, t in plain.items()}
    copies = []
    monkeypatch.setattr(
        torch,
        "empty_strided",
        lambda *a, f=torch.empty_strided, **k: copies.append(a) or f(*a, **k),
    )
    importance.mas_penalty_grads_(*([t] for t in given.values()), None, 0.5, True)
    reference.mas_penalty_grads_(*([t] for t in plain.values()), None, 0.5, True)
    _assert_equal(list(given.values()), list(plain.values()))
    # A common order is taken as it is.
    assert bool(copies) == (
        layout == "every other"
        or (odd != "none" and layout != "contiguous" and layout != "not aligned")
    )
    base = given["grads"]._base
    if layout == "every other" and base is not None:
        assert bool((base[1::2] == -3).all()), "memory beside the view was written"


@pytest.mark.parametrize("layout", ["channels_last", "every other"])
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "every other"])
def test_strides_of_samples(layout: str, grad_layout: str, rng: torch.Generator) -> None:
    omega, *samples = _random(rng, shapes=[(6, 5, 3, 4)] * 4)
    grads = torch.stack([_laid_out(s, grad_layout) for s in samples])
    found = _laid_out(omega, layout)
    # And samples that are not side by side, or the same one many times.
    for grad in (grads, grads[::2], grads[:1].expand(9, -1, -1, -1, -1)):
        importance.mas_accumulate_([found], [grad], 1.0, 0.5, False)
        reference.mas_accumulate_([omega], [grad], 1.0, 0.5, False)
        _assert_equal([found], [omega], 1e-6)


def test_nothing_to_add_up() -> None:
    none = [torch.zeros(0, 3)]
    assert importance.mas_penalty(none, none, none).item() == 0
    assert importance.mas_penalty_grads_(none, none, none, none, None, 1.0, True).item() == 0
    importance.mas_accumulate_(none, none, 1.0, 1.0, False)


def test_dtypes_are_refused_before_anything_is_written() -> None:
    ones = [torch.ones(3), torch.ones(3)]
    wrong = [ones[0], ones[1].double()]
    with pytest.raises(TypeError, match=r"mas_accumulate_: grads\[1\] is torch\.float64"):
        importance.mas_accumulate_(ones, wrong, 1.0, 1.0, False)
    with pytest.raises(TypeError, match=r"mas_accumulate_: importances\[1\] is torch\.float16"):
        importance.mas_accumulate_([ones[0], ones[1].half()], ones, 1.0, 1.0, False)
    with pytest.raises(TypeError, match=r"mas_penalty_grads_: anchors\[1\] is torch\.float64"):
        importance.mas_penalty_grads_(ones, ones, wrong, ones, None, 1.0, True)
    with pytest.raises(TypeError, match=r"linear_importance_: importance is torch\.float64"):
        importance.linear_importance_(
            torch.ones(1, 3).double(), ones[0][None], ones[0][None, :1], 1.0, False
        )
    assert all(bool((one == 1).all()) for one in ones)


# (N, P or None, I, O): tiles that are full and that are not, one of each, partial sums, none.
PRODUCTS = [
    (70, None, 45, 67),
    (1, None, 1, 1),
    (600, None, 3, 5),
    (0, None, 3, 5),
    (4, None, 0, 5),
    (3, 40, 33, 65),
    (3, 1, 5, 4),
    (41, 5, 3, 2),
    (2, 0, 3, 4),
]


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_linear_importance(
    dtype: torch.dtype, square: bool, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    split = []
    sum_splits = _linear_importance._sum_splits
    monkeypatch.setattr(
        _linear_importance, "_sum_splits", lambda *a: split.append(a[0].shape) or sum_splits(*a)
    )
    for samples, positions, ins, outs in PRODUCTS:
        lead = (samples,) if positions is None else (samples, positions)
        found, x, grad = _random(rng, shapes=[(outs, ins), (*lead, ins), (*lead, outs)])
        x, grad = x.to(dtype), grad.to(dtype)
        wanted = found.double()
        importance.linear_importance_(found, x, grad, 0.5, square)
        reference.linear_importance_(wanted, x, grad, 0.5, square)
        torch.testing.assert_close(found.double(), wanted, rtol=2e-6, atol=2e-5)
    assert split == [(4, 5, 3), (9, 2, 3)]


@pytest.mark.parametrize("positions", [None, 20])
def test_strides_of_linear_importance(positions: int | None, rng: torch.Generator) -> None:
    lead = (7,) if positions is None else (7, positions)
    plain = _random(rng, shapes=[(9, 18), (*lead, 18), (*lead, 9)])
    wanted = plain[0].clone()
    reference.linear_importance_(wanted, plain[1], plain[2], 1.0, False)

    def every_other(t: Tensor) -> Tensor:
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan)
        return wide[..., ::2].copy_(t)

    def transposed(t: Tensor) -> Tensor:
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)

    for x, grad in ((0, 1), (1, 0), (1, 1)):
        for change in (every_other, transposed):
            found = change(plain[0])
            given = [change(t) if odd else t for t, odd in zip(plain[1:], (x, grad), strict=True)]
            importance.linear_importance_(found, *given, 1.0, False)
            torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-5)
    repeated = plain[1][:1].expand_as(plain[1])
    found, wanted = plain[0].clone(), plain[0].clone()
    importance.linear_importance_(found, repeated, plain[2], 1.0, False)
    reference.linear_importance_(wanted, repeated, plain[2], 1.0, False)
    torch.testing.assert_close(found, wanted, rtol=2e-6, atol=2e-5)
