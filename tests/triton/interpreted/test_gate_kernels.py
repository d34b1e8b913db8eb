"""Triton's gate kernels, interpreted, against the reference in float64."""

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from maskcl.reference import gate as reference
from maskcl.triton import gate

SIZES = [1, 7, 1024, 1025, 3000]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _close(found: Tensor, wanted: Tensor, rtol: float) -> None:
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.double(), wanted.double(), rtol=rtol, atol=1e-30)


def _rounding(dtype: torch.dtype) -> float:
    # The interpreter cuts digits off for bfloat16, where a GPU rounds.
    return {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]


def _embedding(units: int, rng: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.randn(units, generator=rng)).clamp(-6, 6).to(dtype)


@pytest.mark.parametrize("units", [0, *SIZES])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate(units: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    e, s = _embedding(units, rng, dtype), torch.tensor(3.7)
    found = gate.hat_gate(e, s)
    assert found.dtype == torch.float32
    assert found.shape == e.shape
    _close(found, reference.hat_gate(e.double(), s.double()), 2e-6)


@pytest.mark.parametrize("floor", [0.0, 1e-30, 2.0**-80, 1e-6, 0.5])
def test_masks_below_the_floor_are_0(floor: float, rng: torch.Generator) -> None:
    e, s = _embedding(1500, rng), torch.tensor(12.0)
    free = gate.hat_gate(e, s)
    found = gate.hat_gate(e, s, floor)
    assert torch.equal(found, torch.where(free < torch.tensor(floor), 0.0, free))
    assert bool((found == 0).any()) == (floor > 0)
    nan = gate.hat_gate(torch.tensor([torch.nan]), s, floor)
    assert nan.isnan().all()


def test_gate_reads_strided_embeddings(rng: torch.Generator) -> None:
    e = _embedding(64, rng)[::3]
    assert torch.equal(
        gate.hat_gate(e, torch.tensor(2.0)), gate.hat_gate(e.clone(), torch.tensor(2.0))
    )


@pytest.mark.parametrize("max_scale", [0.0, 400.0])
@pytest.mark.parametrize("scale", [1 / 400, 1.0, 8.0, 400.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exact_backward(
    scale: float, max_scale: float, dtype: torch.dtype, rng: torch.Generator
) -> None:
    e, s = _embedding(1500, rng, dtype), torch.tensor(scale)
    g = torch.randn(1500, generator=rng)
    m = reference.hat_gate(e, s)
    found = gate.hat_gate_backward(g, e, m, s, max_scale, 50.0, False)
    assert found.dtype == dtype
    wanted = reference.hat_gate_backward(
        g.double(), e.double(), m.double(), s.double(), max_scale, 50.0, False
    )
    # exp(x) in float32 is off by x 2^-24; below float32's (float16's) normal range digits are lost.
    tiny = torch.finfo(dtype).tiny
    rtol = 2e-5 + (1e-4 if scale == 400 else 0) + _rounding(dtype)
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=2 * tiny)


@pytest.mark.parametrize("max_scale", [0.0, 400.0])
@pytest.mark.parametrize("scale", [1 / 400, 1.0, 400.0])
def test_recipe_backward(scale: float, max_scale: float, rng: torch.Generator) -> None:
    e, s = _embedding(1500, rng), torch.tensor(scale)
    g = torch.randn(1500, generator=rng)
    m = reference.hat_gate(e, s)
    found = gate.hat_gate_backward(g, e, m, s, max_scale, 50.0, True)
    wanted = reference.hat_gate_backward(g, e, m, s, max_scale, 50.0, True)
    assert torch.equal(found == 0, wanted == 0)
    torch.testing.assert_close(found, wanted, rtol=5e-5, atol=1e-37)


def test_exact_backward_is_finite_far_out() -> None:
    e = torch.tensor([-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4])
    s, g = torch.tensor(400.0), torch.ones(7)
    for max_scale in (0.0, 400.0):
        out = gate.hat_gate_backward(g, e, reference.hat_gate(e, s), s, max_scale, 50.0, False)
        assert torch.isfinite(out).all()
        assert out[3] > 0


@pytest.mark.parametrize("units", [0, *SIZES])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_and_their_term(units: int, dtype: torch.dtype, rng: torch.Generator) -> None:
    e, s, share = _embedding(units, rng, dtype), torch.tensor(3.7), torch.rand(units, generator=rng)
    mask, term = gate.hat_gates(e, s, share, 0.1, 0.75)
    assert torch.equal(mask, gate.hat_gate(e, s, 0.1))
    assert (term.dtype, term.shape) == (torch.float32, ())
    wanted = 0.75 * (mask.double() * share.double()).sum()
    _close(term, wanted, 1e-6)


def test_gates_read_strided_tensors(rng: torch.Generator) -> None:
    e, s, share = _embedding(3000, rng)[::2], torch.tensor(2.0), torch.rand(1500, 2)[:, 1]
    found = gate.hat_gates(e, s, share, 0.0, 0.75)
    wanted = reference.hat_gates(e.double(), s.double(), share.double(), 0.0, 0.75)
    for f, w in zip(found, wanted, strict=True):
        _close(f, w, 2e-6)


# In each list the second part, if there is one, has had no gradient.
PARTS = [[1], [700, 0, 800], [1024, 1025, 951], [3000, 7]]


@pytest.mark.parametrize("sizes", PARTS, ids=str)
@pytest.mark.parametrize("max_scale", [0.0, 400.0])
@pytest.mark.parametrize("recipe", [False, True])
@pytest.mark.parametrize("with_term", [False, True], ids=["no term", "term"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_backward(
    sizes: list[int],
    max_scale: float,
    recipe: bool,
    with_term: bool,
    dtype: torch.dtype,
    rng: torch.Generator,
) -> None:
    units = sum(sizes)
    e, s, share = _embedding(units, rng, dtype), torch.tensor(3.7), torch.rand(units, generator=rng)
    grads = [torch.randn(size * (p != 1), generator=rng) for p, size in enumerate(sizes)]
    term = torch.tensor(0.5) if with_term else torch.empty(0)
    rest = (sizes, 0.75, max_scale, 50.0, recipe)
    found = gate.hat_gates_backward(grads, term, e, s, share, *rest)
    assert found.dtype == dtype
    if len(sizes) > 1 and not with_term:
        assert not found[sizes[0] : sizes[0] + sizes[1]].any()
    tensors = [grads, term, e, s, share]
    if not recipe:  # whose rounding is float32's, so that is what it is compared in
        tensors = tree_map(Tensor.double, tensors)
    wanted = reference.hat_gates_backward(*tensors, *rest).double()
    rtol, tiny = 5e-5 + _rounding(dtype), torch.finfo(dtype).tiny
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=2 * tiny)


def _used(units: int, kind: str, rng: torch.Generator) -> Tensor:
    used = torch.rand(units, generator=rng) < 0.3
    return used if kind == "bool" else used.float() * 0.75


@pytest.mark.parametrize("units", SIZES)
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_sparsity_and_its_gradient(units: int, kind: str, rng: torch.Generator) -> None:
    m, u = torch.rand(units, generator=rng), _used(units, kind, rng)
    u[0] = 0
    found = gate.hat_sparsity(m, u)
    assert found.shape == ()
    _close(found, reference.hat_sparsity(m.double(), u), 1e-6)
    g = torch.tensor(0.75)
    found = gate.hat_sparsity_backward(g, m, u)
    _close(found, reference.hat_sparsity_backward(g.double(), m.double(), u), 1e-6)


def test_sparsity_of_more_blocks_than_parts(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    monkeypatch.setattr(gate, "BLOCK", 16)
    monkeypatch.setattr(gate, "PARTS", 4)
    m, u = torch.rand(1000, generator=rng), _used(1000, "bool", rng)
    _close(gate.hat_sparsity(m, u), reference.hat_sparsity(m.double(), u), 1e-6)
    g = torch.tensor(2.0)
    wanted = reference.hat_sparsity_backward(g.double(), m.double(), u)
    _close(gate.hat_sparsity_backward(g, m, u), wanted, 1e-6)


@pytest.mark.parametrize("units", [0, 5])
def test_sparsity_without_a_free_unit_is_exactly_0(units: int) -> None:
    m, u = torch.rand(units), torch.ones(units, dtype=torch.bool)
    assert gate.hat_sparsity(m, u).item() == 0
    assert torch.equal(gate.hat_sparsity_backward(torch.tensor(1.0), m, u), torch.zeros(units))


def test_float64_is_refused() -> None:
    with pytest.raises(TypeError, match=r"embedding is torch\.float64"):
        gate.hat_gate(torch.ones(2, dtype=torch.float64), torch.tensor(1.0))
