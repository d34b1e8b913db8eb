"""Triton's grad_clamp kernels, interpreted, against the reference: selections for equality."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from maskcl.reference import grad_clamp as reference
from maskcl.triton import _lists, grad_clamp

# (shape of the gradient, groups)
SHAPES = [
    ((19, 131), 1),
    ((1, 1), 1),
    ((17,), 1),
    ((1, 300), 1),
    ((6, 5, 3, 3), 1),
    ((8, 3, 2), 2),
    ((6, 1, 3, 3), 6),
    ((36, 2, 1, 1), 2),
    ((0, 4), 1),
    ((4, 3, 3, 3, 2), 1),
]
RULES = [("hat", 0.0), ("const", 0.25), ("adahat", 0.5), ("random", 0.0)]


def _sides(
    shape: Sequence[int], groups: int, words: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Bit sets in which a third of the units has no task and some have the sign bit's."""

    def bits(units: int) -> Tensor:
        tasks = torch.randint(0, 64, (units, words), generator=rng)
        sets = torch.bitwise_left_shift(torch.ones_like(tasks), tasks) | (tasks & 3)
        return torch.where(torch.rand(units, 1, generator=rng) < 0.35, 0, sets)

    every = torch.full((1, words), -1)
    return bits(shape[0]), bits(groups * shape[1]) if len(shape) > 1 else every


def _case(
    rng: torch.Generator, words: int = 1, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[int]]:
    grads = [torch.randn(shape, generator=rng).to(dtype) for shape, _ in SHAPES]
    sides = [_sides(shape, groups, words, rng) for shape, groups in SHAPES]
    return grads, [s[0] for s in sides], [s[1] for s in sides], [groups for _, groups in SHAPES]


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [t.clone(memory_format=torch.preserve_format) for t in tensors]


def _assert_equal(found: list[Tensor], wanted: list[Tensor]) -> None:
    for t, (one, other) in enumerate(zip(found, wanted, strict=True)):
        torch.testing.assert_close(
            one, other, rtol=0, atol=0, equal_nan=True, msg=lambda m, t=t: f"{t}: {m}"
        )


@pytest.mark.parametrize(("rule", "value"), RULES)
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("words", [1, 3])
def test_rules(words: int, exact: bool, rule: str, value: float, rng: torch.Generator) -> None:
    grads, outs, ins, groups = _case(rng, words)
    ins[0] = torch.full((1, words), -1)  # the network's input
    outs[4] = torch.full((1, words), -1)
    found, wanted = _copies(grads), _copies(grads)
    rest = (outs, ins, groups, exact, rule, [value] * len(grads), -(2**62) - 12345)
    grad_clamp.clamp_grads_(found, *rest)
    reference.clamp_grads_(wanted, *rest)
    if rule == "adahat":
        torch.testing.assert_close(found, wanted, rtol=5e-7, atol=0)
    else:
        _assert_equal(found, wanted)
    changed = sum(int((a != b).sum()) for a, b in zip(found, grads, strict=True))
    assert 0 < changed < sum(g.numel() for g in grads)


@pytest.mark.parametrize("exact", [True, False])
def test_protected_nan_and_infinity_become_0(exact: bool, rng: torch.Generator) -> None:
    grads, outs, ins, groups = _case(rng)
    for grad in grads:
        grad.view(-1)[::2] = float("nan")
        grad.view(-1)[1::2] = -float("inf")
    found, wanted = _copies(grads), _copies(grads)
    rest = (outs, ins, groups, exact, "hat", [0.0] * len(grads), 0)
    grad_clamp.clamp_grads_(found, *rest)
    reference.clamp_grads_(wanted, *rest)
    _assert_equal(found, wanted)
    assert any((g == 0).any() for g in found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype, rng: torch.Generator) -> None:
    grads, outs, ins, groups = _case(rng, dtype=dtype)
    for rule in ("const", "random"):
        found, wanted = _copies(grads), _copies(grads)
        rest = (outs, ins, groups, True, rule, [0.3] * len(grads), 3)
        grad_clamp.clamp_grads_(found, *rest)
        reference.clamp_grads_(wanted, *rest)
        # The interpreter cuts digits off for bfloat16, where a GPU rounds.
        rtol = 2**-7 if dtype == torch.bfloat16 else 2**-10
        torch.testing.assert_close(found, wanted, rtol=rtol, atol=0)


def test_mixed_dtypes_keep_their_place_in_the_list(rng: torch.Generator) -> None:
    grads, outs, ins, groups = _case(rng)
    grads = [g.half() if t % 2 else g for t, g in enumerate(grads)]
    found, wanted = _copies(grads), _copies(grads)
    # The random factor and the value depend on the tensor's number in the whole list.
    for rule in ("random", "const"):
        rest = (outs, ins, groups, True, rule, [0.1 * t for t in range(len(grads))], 11)
        grad_clamp.clamp_grads_(found, *rest)
        reference.clamp_grads_(wanted, *rest)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-10, atol=0)


def _layouts(rng: torch.Generator) -> dict[str, Tensor]:
    image = torch.randn(6, 5, 3, 4, generator=rng)
    matrix = torch.randn(18, 40, generator=rng)
    return {
        "channels_last": image.contiguous(memory_format=torch.channels_last),
        "channels_last_3d": torch.randn(4, 3, 2, 2, 3, generator=rng).contiguous(
            memory_format=torch.channels_last_3d
        ),
        "transposed": matrix.t(),
        "rows of a wider one": matrix[:, :33],
        "every other column": matrix[:, ::2],
        "kernel transposed": image.transpose(2, 3),
        "units innermost": image.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        "every other bias": torch.randn(24, generator=rng)[::2],
        "every other image": torch.randn(9, 5, 3, 4, generator=rng)[::2],
    }


@pytest.mark.parametrize(("rule", "value"), RULES)
@pytest.mark.parametrize("layout", _layouts(torch.Generator()))
def test_strides(layout: str, rule: str, value: float, rng: torch.Generator) -> None:
    grad = _layouts(rng)[layout]
    out_side, in_side = _sides(grad.shape, 1, 1, rng)
    wanted = grad.clone(memory_format=torch.contiguous_format)
    rest = ([out_side], [in_side], [1], True, rule, [value], 5)
    neighbours = grad._base.clone() if grad._base is not None else None
    grad_clamp.clamp_grads_([grad], *rest)
    reference.clamp_grads_([wanted], *rest)
    torch.testing.assert_close(
        grad.contiguous(), wanted, rtol=5e-7 if rule == "adahat" else 0, atol=0
    )
    if layout.startswith(("every other", "rows")):
        touched = (grad._base != neighbours).sum()
        assert touched <= grad.numel(), "memory beside the view was written"


@pytest.mark.parametrize("layout", ["plain", *_layouts(torch.Generator())])
@pytest.mark.parametrize("exact", [True, False])
def test_restore(layout: str, exact: bool, rng: torch.Generator) -> None:
    param = {"plain": torch.randn(20, 9, generator=rng), **_layouts(rng)}[layout]
    saved = torch.randn(param.shape, generator=rng)
    saved.view(-1)[0] = float("nan")
    out_side, in_side = _sides(param.shape, 1, 2, rng)
    wanted = param.clone()
    for same_strides in (True, False):
        source = torch.zeros_like(param).copy_(saved) if same_strides else saved
        grad_clamp.restore_protected_([param], [source], [out_side], [in_side], [1], exact)
        reference.restore_protected_([wanted], [saved], [out_side], [in_side], [1], exact)
        torch.testing.assert_close(param, wanted, rtol=0, atol=0, equal_nan=True)
        param.add_(1), wanted.add_(1)


@pytest.mark.parametrize("aggregation", reference.AGGREGATIONS)
def test_soft(aggregation: str, rng: torch.Generator) -> None:
    grads, _outs, _ins, groups = _case(rng)
    out_masks = [torch.rand(g.shape[0], generator=rng) for g in grads]
    in_masks = [
        torch.rand(n * g.shape[1], generator=rng) if g.dim() > 1 else torch.empty(0)
        for g, n in zip(grads, groups, strict=True)
    ]
    in_masks[0], out_masks[4] = torch.empty(0), torch.empty(0)
    in_masks[5], out_masks[6] = in_masks[5].bfloat16(), torch.rand(1)
    out_masks[9] = in_masks[9] = torch.empty(0)
    found, wanted = _copies(grads), [g.double() for g in grads]
    grad_clamp.clamp_grads_soft_(found, out_masks, in_masks, groups, aggregation)
    reference.clamp_grads_soft_(wanted, out_masks, in_masks, groups, aggregation)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-7)
    assert torch.equal(found[9], grads[9])
    assert not torch.equal(found[0], grads[0])


@pytest.mark.parametrize("layout", _layouts(torch.Generator()))
def test_soft_strides(layout: str, rng: torch.Generator) -> None:
    grad = _layouts(rng)[layout]
    out_mask = torch.rand(grad.shape[0], generator=rng)
    in_mask = torch.rand(grad.shape[1] if grad.dim() > 1 else 0, generator=rng)
    wanted = grad.double()
    grad_clamp.clamp_grads_soft_([grad], [out_mask], [in_mask], [1], "min")
    reference.clamp_grads_soft_([wanted], [out_mask], [in_mask], [1], "min")
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-6, atol=1e-7)


def test_a_list_is_one_launch_and_free_rows_return_early(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[int] = []
    kernel = grad_clamp._protect_kernel

    class Counted:
        def __getitem__(self, grid: tuple[int, ...]) -> object:
            grids.append(grid[0])
            return kernel[grid]

    monkeypatch.setattr(grad_clamp, "_protect_kernel", Counted())
    grads = [torch.full((20, 200), float("nan")) for _ in range(5)]
    none = torch.zeros(20, 1, dtype=torch.int64)
    all_tasks = torch.full((1, 1), -1)
    rest = ([1] * 5, True, "hat", [0.0] * 5, 0)
    grad_clamp.clamp_grads_(grads, [none] * 5, [all_tasks] * 5, *rest)
    tiles = 5 * 2 * 2  # 20 rows in tiles of 16, 200 columns in tiles of 128
    assert grids == [tiles]
    assert all(g.isnan().all() for g in grads)
    monkeypatch.setattr(_lists, "MAX_TENSORS", 2)
    grad_clamp.clamp_grads_(grads, [all_tasks] * 5, [all_tasks] * 5, *rest)
    assert len(grids) == 4
    assert all((g == 0).all() for g in grads)


@pytest.mark.parametrize("rule", ["hat", "random"])
def test_wide_indices_agree_with_narrow_ones(
    rule: str, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    # The int64 divisions are for rows beyond 2^31 elements; run them on small ones.
    grads, outs, ins, groups = _case(rng)
    narrow, wide = _copies(grads), _copies(grads)
    rest = (outs, ins, groups, True, rule, [0.0] * len(grads), 1)
    grad_clamp.clamp_grads_(narrow, *rest)
    monkeypatch.setattr(_lists.tl, "int32", _lists.tl.int64)
    grad_clamp.clamp_grads_(wide, *rest)
    _assert_equal(wide, narrow)


def test_unknown_words_are_refused_before_anything_is_written() -> None:
    grad, side = torch.ones(2, 2), torch.full((1, 1), -1)
    with pytest.raises(ValueError, match="rule: found 'zero'"):
        grad_clamp.clamp_grads_([grad], [side], [side], [1], True, "zero", [0.0], 0)
    with pytest.raises(ValueError, match="aggregation: found 'sum'"):
        grad_clamp.clamp_grads_soft_([grad], [torch.ones(2)], [torch.ones(2)], [1], "sum")
    with pytest.raises(TypeError, match=r"tensor 1 of the list is torch\.float64"):
        grad_clamp.clamp_grads_(
            [grad, grad.double()], [side] * 2, [side] * 2, [1, 1], True, "hat", [0.0] * 2, 0
        )
    assert torch.equal(grad, torch.ones(2, 2))


@pytest.mark.parametrize("dim", [0, 1])
def test_gradients_that_share_memory_are_refused(dim: int) -> None:
    grad = torch.ones(4, 4).select(dim, 0).unsqueeze(dim).expand(4, 4)
    side = torch.ones(4, 1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="single memory location"):
        grad_clamp.clamp_grads_([grad], [side], [side], [1], True, "const", [0.5], 0)
    assert bool((grad == 1).all())


@pytest.mark.parametrize("aggregation", ["min", "max", "mean"])
def test_soft_masks_of_nan_stay_nan(aggregation: str) -> None:
    out, ins = torch.tensor([torch.nan, 0.5]), torch.tensor([0.25, torch.nan, 1.0])
    found, wanted = torch.ones(2, 3), torch.ones(2, 3)
    grad_clamp.clamp_grads_soft_([found], [out], [ins], [1], aggregation)
    reference.clamp_grads_soft_([wanted], [out], [ins], [1], aggregation)
    _assert_equal([found], [wanted])
    assert found.isnan().sum() == 4
