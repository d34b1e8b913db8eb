"""hat_gate, hat_sparsity, hat_scale against float64; the closed form against 50 digits."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskcl import backends, ops, reference
from tests.helpers import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def _embedding(units: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    return torch.linspace(-7, 7, units).to(device=device, dtype=dtype)


@pytest.mark.parametrize("scale", [1 / 400, 1.0, 37.5, 400.0])
@pytest.mark.parametrize("units", [0, 1, 257])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_forward_matches_float64(backend, device, dtype, units, scale):
    e = _embedding(units, dtype, device)
    mask = ops.hat_gate(e, scale)
    assert mask.dtype == torch.float32
    assert_close(mask, torch.sigmoid(scale * e.double()), torch.float32)


@pytest.mark.parametrize("max_scale", [None, 400.0])
@pytest.mark.parametrize("compensation", ops.gate.COMPENSATIONS)
@pytest.mark.parametrize("scale", [1 / 400, 3.0, 400.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_backward_matches_reference(backend, device, dtype, scale, compensation, max_scale):
    e = _embedding(101, dtype, device)
    m = ops.hat_gate(e, scale)
    s = torch.tensor(scale, device=device)
    g = torch.randn(101, device=device)
    recipe = compensation == "recipe"
    arguments = (max_scale or 0.0, 50.0, recipe)
    found = backends.select("hat_gate_backward", e)(g, e, m, s, *arguments)
    if recipe:  # its rounding is float32's, so that is what it is compared in
        wanted = reference.gate.hat_gate_backward(g, e, m, s, *arguments)
    else:
        wide = [t.double() for t in (g, e, m, s)]
        wanted = reference.gate.hat_gate_backward(*wide, *arguments)
    assert found.dtype == dtype
    scale_of = wanted.double().abs().max().item()
    # s e carries a float32 rounding that exp turns into |s e| ulp, hence the factor
    assert_close(found / scale_of, wanted / scale_of, dtype, scale=8.0)


@pytest.mark.parametrize("scale", [1 / 400, 1.0, 30.0, 400.0])
def test_exact_compensation_against_50_digits(scale):
    """Also where the recipe is 0 or overflows: |s e| up to 2400."""
    mpmath.mp.dps = 50
    values = [-6.0, -2.0, -0.2, -0.05, 0.0, 0.05, 0.2, 2.0, 6.0]
    e = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    ops.hat_gate(e, scale, max_scale=400.0).sum().backward()

    def slope(x):
        return 1 / (2 * (mpmath.cosh(x) + 1))

    for value, found in zip(values, e.grad.tolist(), strict=True):
        v, s = mpmath.mpf(value), mpmath.mpf(scale)
        clipped = max(min(s * v, 50), -50)
        wanted = s * slope(s * v) * (400 / s) * (mpmath.cosh(clipped) + 1) / (mpmath.cosh(v) + 1)
        assert found == pytest.approx(float(wanted), rel=1e-10, abs=1e-300)


def test_recipe_keeps_the_rounding_of_the_original():
    """An open gate whose mask rounds to 1 cannot close under recipe, and can under exact."""
    e = torch.tensor([0.1, -0.1], requires_grad=True)
    ops.hat_gate(e, 400.0, max_scale=400.0, compensation="recipe").sum().backward()
    assert e.grad[0] == 0 and e.grad[1] > 0
    e.grad = None
    ops.hat_gate(e, 400.0, max_scale=400.0).sum().backward()
    assert e.grad[0] == pytest.approx(e.grad[1].item()) and e.grad[0] > 0


@pytest.mark.parametrize("compensation", ops.gate.COMPENSATIONS)
def test_gradient_is_finite_for_every_embedding_and_scale(backend, device, compensation):
    e = torch.tensor([0.0, 1e-30, 1e-3, 6.0, 100.0, -100.0, 1e4, -1e4], device=device)
    for scale in (1 / 400, 1.0, 400.0, 1e4):
        x = e.clone().requires_grad_()
        ops.hat_gate(x, scale, max_scale=400.0, compensation=compensation).sum().backward()
        assert torch.isfinite(x.grad).all(), (scale, x.grad)


def test_gradcheck_and_scale_tensor(backend, device):
    if torch.float64 not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take float64")
    e = torch.randn(7, dtype=torch.float64, device=device, requires_grad=True)
    s = torch.tensor(3.0, dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(lambda e: ops.hat_gate(e, s), (e,))
    m = torch.rand(7, dtype=torch.float64, device=device, requires_grad=True)
    used = torch.rand(7, dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(lambda m: ops.hat_sparsity(m, used), (m,))


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("units", [1, 300])
def test_sparsity_matches_float64(backend, device, units, kind):
    m = torch.rand(units, device=device, requires_grad=True)
    used = (
        torch.rand(units, device=device) > 0.6 if kind == "bool" else torch.rand(units).to(device)
    )
    value = ops.hat_sparsity(m, used)
    value.backward()
    free = 1 - used.double()
    count = free.sum().clamp_min(1e-300)
    assert_close(value.detach(), (m.detach().double() * free).sum() / count, torch.float32)
    assert_close(m.grad, free / count, torch.float32)


def test_sparsity_is_zero_where_no_unit_is_free(backend, device):
    m = torch.rand(5, device=device, requires_grad=True)
    value = ops.hat_sparsity(m, torch.ones(5, dtype=torch.bool, device=device))
    value.backward()
    assert value.item() == 0.0 and torch.equal(m.grad, torch.zeros_like(m))


@pytest.mark.parametrize("schedule", ops.gate.SCHEDULES)
def test_schedule_ends_are_exact(schedule):
    top = ops.hat_scale(1.0, 400.0, schedule)
    bottom = ops.hat_scale(0.0, 400.0, schedule)
    assert top == 400.0
    assert bottom == (400.0 if schedule == "constant" else 1 / 400.0)


@given(st.integers(1, 500), st.floats(1.0, 1e4))
@settings(max_examples=50, deadline=None)
def test_schedule_grows_and_stays_in_range(batches, top):
    """Never negative, never above s_max, one batch gives s_max."""
    for schedule in ops.gate.SCHEDULES:
        scales = [
            ops.hat_scale(ops.epoch_progress(b, batches), top, schedule) for b in range(batches)
        ]
        assert scales[-1] == pytest.approx(top)
        assert all(1 / top * (1 - 1e-9) <= s <= top * (1 + 1e-9) for s in scales)
        assert all(a <= b * (1 + 1e-12) for a, b in itertools.pairwise(scales))


def test_linear_schedule_is_the_papers():
    """Eq. 3: s = 1/s_max + (s_max - 1/s_max) (b - 1)/(B - 1), b from 1."""
    for b in range(1, 11):
        wanted = 1 / 400 + (400 - 1 / 400) * (b - 1) / 9
        assert ops.hat_scale(ops.epoch_progress(b - 1, 10), 400.0) == pytest.approx(wanted)


def test_the_scale_rises_over_the_task_where_an_epoch_is_a_step() -> None:
    whole_graph = [ops.task_progress(epoch, 5, 0, 1) for epoch in range(5)]
    assert whole_graph == [0.0, 0.25, 0.5, 0.75, 1.0]
    short = [ops.task_progress(e, 2, b, 3) for e in range(2) for b in range(3)]
    assert short == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ops.task_progress(0, 1, 0, 1) == 1.0
    # As the paper has it where an epoch has steps enough.
    assert [ops.task_progress(e, 2, b, 4) for e in range(2) for b in (0, 3)] == [0, 1, 0, 1]
    for wrong in ((2, 2, 0, 1), (0, 2, 1, 1), (-1, 2, 0, 1)):
        with pytest.raises(ValueError, match="task_progress: epoch is"):
            ops.task_progress(*wrong)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: ops.hat_gate(torch.zeros(2, 2), 1.0), ValueError, "embedding has shape"),
        (lambda: ops.hat_gate(torch.zeros(2, dtype=torch.int64), 1.0), TypeError, "embedding is"),
        (lambda: ops.hat_gate([0.0], 1.0), TypeError, "embedding is a list"),
        (lambda: ops.hat_gate(torch.zeros(2), torch.ones(2)), ValueError, "scale has shape"),
        (lambda: ops.hat_gate(torch.zeros(2), 1.0, max_scale=0.0), ValueError, "max_scale is 0"),
        (lambda: ops.hat_gate(torch.zeros(2), 1.0, compensation="x"), ValueError, "compensation"),
        (lambda: ops.hat_gate(torch.zeros(2), 1.0, floor=-1e-9), ValueError, "floor is -1e-09"),
        (lambda: ops.hat_gate(torch.zeros(2), 1.0, floor=1.0), ValueError, "floor is 1.0"),
        (lambda: ops.hat_gate(torch.zeros(2), 1.0, floor=math.nan), ValueError, "floor is nan"),
        (lambda: ops.hat_sparsity(torch.zeros(2), torch.zeros(3)), ValueError, "used has shape"),
        (lambda: ops.hat_scale(1.5, 400.0), ValueError, "progress is 1.5"),
        (lambda: ops.hat_scale(math.nan, 400.0), ValueError, "progress is nan"),
        (lambda: ops.hat_scale(0.5, 0.5), ValueError, "max_scale is 0.5"),
        (lambda: ops.epoch_progress(3, 3), ValueError, "batch is 3"),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_below_the_floor_are_0_and_the_others_untouched(backend, device, dtype):
    e = _embedding(257, dtype, device)
    for scale in (3.0, 40.0):
        free = ops.hat_gate(e, scale)
        assert torch.equal(ops.hat_gate(e, scale, floor=0.0), free)
        for floor in (1e-30, 2.0**-80, 1e-6, 0.25):
            found = ops.hat_gate(e, scale, floor=floor)
            least = torch.tensor(floor, device=device)  # float32, as torch compares
            assert torch.equal(found, torch.where(free < least, 0.0, free))
        at = free[free > 0.25].min().item()
        assert (ops.hat_gate(e, scale, floor=at) > 0).sum() == (free >= at).sum()


@pytest.mark.parametrize("max_scale", [None, 400.0])
@pytest.mark.parametrize("compensation", ops.gate.COMPENSATIONS)
def test_the_floor_changes_no_gradient(backend, device, compensation, max_scale):
    e = torch.linspace(-0.4, 0.4, 101, device=device)
    grads = []
    for floor in (0.0, 1e-12):
        leaf = e.clone().requires_grad_()
        options = {"max_scale": max_scale, "compensation": compensation}
        mask = ops.hat_gate(leaf, 200.0, floor=floor, **options)
        grads += torch.autograd.grad(mask, leaf, torch.ones_like(mask))
    assert torch.equal(*grads)
    closed = ops.hat_gate(e, 200.0, floor=1e-12) == 0
    assert (grads[0][closed & (e * 200 > -80)] > 0).all() and closed.sum() > 20


def test_the_networks_floor_is_below_what_the_clamp_lets_learn():
    """Nothing of the gradient above -k is lost, and less than 1/256 of it below."""
    for clamp in (1.0, 50.0, 60.0):
        floor = ops.gate.mask_floor(torch.float32, clamp)
        assert floor <= math.exp(-clamp) / 256 and floor < 2.0**-80
        e = torch.tensor([-max(clamp, 50.0), math.log(floor) - 0.01], requires_grad=True)
        mask = ops.hat_gate(e, 1.0, max_scale=400.0, cosh_clamp=clamp, floor=floor)
        assert mask[0] > 0 and mask[1] == 0
    assert ops.gate.mask_floor(torch.float64) == 0
