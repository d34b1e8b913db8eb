"""Gradient protection: selections are exact, on every backend, for every layout and rule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskcl import ops, reference
from maskcl.reference.grad_clamp import AGGREGATIONS, RULES
from tests.helpers import assert_close, variants

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# (shape, groups) of a weight
SHAPES = [
    ((7, 9), 1),
    ((70, 300), 1),
    ((6, 4, 3, 3), 1),
    ((6, 2, 3), 3),
    ((4, 1, 3, 3), 4),
    ((5,), 1),
]
SHAPES += [((0, 4), 1), ((3, 0), 1)]


def _tasks(units: int, words: int, device: str, share: float = 0.4) -> torch.Tensor:
    """Random task sets, high bits included; some units have none."""
    bits = torch.randint(-(2**62), 2**62, (units, words), device=device) * 2
    sparse = bits & torch.randint(-(2**62), 2**62, (units, words), device=device)
    sparse = sparse & (torch.randint(-(2**62), 2**62, (units, words), device=device) << 3)
    return torch.where(torch.rand(units, 1, device=device) < share, sparse, 0)


def _case(shape, groups, words, dtype, device):
    grad = torch.randn(shape, device=device).to(dtype)
    out = _tasks(shape[0], words, device)
    ins = _tasks(shape[1] * groups, words, device) if len(shape) > 1 else None
    return grad, out, ins


@pytest.mark.parametrize("protection", ops.grad_clamp.PROTECTIONS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("words", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_whole_model_in_one_call_equals_the_reference(
    backend, device, dtype, words, rule, protection
):
    cases = [_case(shape, groups, words, dtype, device) for shape, groups in SHAPES]
    grads, outs, ins = map(list, zip(*cases, strict=True))
    groups = [g for _, g in SHAPES]
    values = [0.25 + 0.5 * t for t in range(len(grads))]
    before, wanted = ([g.clone() for g in grads] for _ in range(2))
    everyone = torch.full((1, words), -1, device=device)
    reference.grad_clamp.clamp_grads_(
        wanted,
        outs,
        [everyone if i is None else i for i in ins],
        groups,
        protection == "exact",
        rule,
        values,
        17,
    )
    ops.clamp_grads_(
        grads, outs, ins, protection=protection, rule=rule, groups=groups, values=values, seed=17
    )
    for t, (found, right) in enumerate(zip(grads, wanted, strict=True)):
        if rule == "hat":
            assert torch.equal(found, right), t
        else:  # one multiplication
            assert_close(found, right, dtype)
        assert torch.equal(found[right == before[t]], before[t][right == before[t]])
    assert any((w != b).any() for w, b in zip(wanted, before, strict=True)), "nothing protected"


@pytest.mark.parametrize("shape_groups", SHAPES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_memory_orders_agree(backend, device, rule, shape_groups):
    shape, groups = shape_groups
    grad, out, ins = _case(shape, groups, 1, torch.float32, device)
    results = []
    for view in variants(grad.clone()).values():
        view = view if view.data_ptr() != grad.data_ptr() else grad.clone()
        ops.clamp_grads_([view], [out], [ins], rule=rule, groups=[groups], values=0.5, seed=3)
        results.append(view.clone(memory_format=torch.contiguous_format))
    assert all(torch.equal(r, results[0]) for r in results)


def test_protected_nan_becomes_zero_and_free_nan_stays(backend, device):
    grad = torch.full((2, 2), float("nan"), device=device)
    ops.clamp_grads_(
        [grad], [torch.tensor([1, 0], device=device)], [torch.tensor([1, 2], device=device)]
    )
    assert grad[0, 0] == 0 and torch.isnan(grad).sum() == 3


def test_exact_protects_only_what_one_task_uses_at_both_ends(backend, device):
    out, ins = torch.tensor([1, 2, 3, 0], device=device), torch.tensor([1, 2, 0], device=device)
    exact, paper = torch.ones(4, 3, device=device), torch.ones(4, 3, device=device)
    ops.clamp_grads_([exact], [out], [ins])
    ops.clamp_grads_([paper], [out], [ins], protection="min")
    assert exact.tolist() == [[0, 1, 1], [1, 0, 1], [0, 0, 1], [1, 1, 1]]
    assert paper.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 1, 1]]


def test_the_64th_and_65th_task_are_tasks(backend, device):
    """Bit 63 is the sign; the next one is in the second word."""
    for word in ([-(2**63), 0], [0, 1]):
        grad = torch.ones(2, 2, device=device)
        side = torch.tensor([word, [0, 0]], device=device)
        ops.clamp_grads_([grad], [side], [side])
        assert grad.tolist() == [[0, 1], [1, 1]]


def test_none_is_every_task(backend, device):
    weight, bias = torch.ones(2, 3, device=device), torch.ones(2, device=device)
    out = torch.tensor([4, 0], device=device)
    ops.clamp_grads_([weight, bias], [out, out], [None, None])
    assert weight.tolist() == [[0, 0, 0], [1, 1, 1]] and bias.tolist() == [0, 1]
    shared = torch.ones(2, 2, device=device)
    ops.clamp_grads_([shared], [None], [out])
    assert shared.tolist() == [[0, 1], [0, 1]]


def test_no_task_means_no_write(backend, device):
    """A first task costs nothing: a gradient that nothing protects is not touched."""
    grad = torch.randn(8, 8, device=device)
    before, version = grad.clone(), grad._version
    none = torch.zeros(8, dtype=torch.int64, device=device)
    ops.clamp_grads_([grad], [none], [none])
    assert torch.equal(grad, before) and grad._version >= version


def test_random_differs_by_seed_and_tensor_and_repeats(backend, device):
    def run(seed):
        grads = [torch.ones(16, 16, device=device) for _ in range(2)]
        ops.clamp_grads_(grads, [None] * 2, [None] * 2, rule="random", seed=seed)
        return grads

    (a, b), (c, _), (again, _) = run(1), run(2), run(1)
    assert torch.equal(a, again) and not torch.equal(a, b) and not torch.equal(a, c)
    numbers = torch.cat([t.flatten() for t in (a, b, c)])
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean().item() - 0.5) < 0.05


def test_adahat_by_hand(backend, device):
    """r / (n + r): two tasks use weight 0, one weight 1, none weight 2."""
    grad = torch.ones(1, 3, device=device)
    sides = torch.tensor([3], device=device), torch.tensor([3, 2, 0], device=device)
    ops.clamp_grads_([grad], [sides[0]], [sides[1]], rule="adahat", values=0.5)
    assert grad.tolist() == [[pytest.approx(0.2), pytest.approx(1 / 3), 1.0]]


@pytest.mark.parametrize("protection", ops.grad_clamp.PROTECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_restore_puts_back_just_the_protected(backend, device, dtype, protection):
    cases = [_case(shape, groups, 2, dtype, device) for shape, groups in SHAPES]
    params, outs, ins = map(list, zip(*cases, strict=True))
    groups = [g for _, g in SHAPES]
    saved = [torch.randn_like(p) for p in params]
    for copies in (saved, [variants(s)["slice"] for s in saved]):
        found = [p.clone() for p in params]
        ops.restore_protected_(found, copies, outs, ins, protection=protection, groups=groups)
        probe = [torch.ones(p.shape, device=device) for p in params]
        ops.clamp_grads_(probe, outs, ins, protection=protection, groups=groups)
        for f, p, s, free in zip(found, params, saved, probe, strict=True):
            assert torch.equal(f, torch.where(free == 1, p, s))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_masks_match_float64(backend, device, dtype, aggregation):
    for shape, groups in SHAPES:
        out = torch.rand(shape[0], device=device)
        ins = torch.rand(shape[1] * groups, device=device) if len(shape) > 1 else None
        grad = torch.randn(shape, device=device).to(dtype)
        for a, b in ((out, ins), (out, None), (None, ins), (None, None)):
            wanted = grad.double()
            none = torch.empty(0, device=device)
            reference.grad_clamp.clamp_grads_soft_(
                [wanted],
                [none if a is None else a],
                [none if b is None else b],
                [groups],
                aggregation,
            )
            for view in variants(grad.clone()).values():
                view = view.clone()
                ops.clamp_grads_soft_([view], [a], [b], aggregation=aggregation, groups=[groups])
                assert_close(view, wanted, dtype)


@given(
    rows=st.integers(0, 9),
    columns=st.integers(0, 9),
    words=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bits(backend, device, rows, columns, words, seed):
    torch.manual_seed(seed)
    out, ins = _tasks(rows, words, device), _tasks(columns, words, device)
    grad = torch.ones(rows, columns, device=device)
    ops.clamp_grads_([grad], [out], [ins])
    together = (out[:, None] & ins[None] != 0).any(-1)
    assert torch.equal(grad == 0, together)
    if rows and columns:
        fraction = ops.protected_fraction(out, ins)
        assert fraction == pytest.approx(together.double().mean().item())


def test_protected_fraction_by_hand():
    out, ins = torch.tensor([1, 2, 3, 0]), torch.tensor([1, 2, 0])
    assert ops.protected_fraction(out, ins) == pytest.approx(4 / 12)
    assert ops.protected_fraction(out, ins, protection="min") == pytest.approx(6 / 12)
    assert ops.protected_fraction(out, None) == pytest.approx(3 / 4)
    assert ops.protected_fraction(None, None) == 1.0


GRAD, OUT, IN = torch.ones(4, 3), torch.ones(4, dtype=torch.int64), torch.ones(3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: ops.clamp_grads_([GRAD], [OUT[:2]], [IN]),
            ValueError,
            r"out_tasks\[0\] has 2 units, grads\[0\] has 4 rows",
        ),
        (
            lambda: ops.clamp_grads_([GRAD, GRAD], [OUT, OUT], [IN, OUT]),
            ValueError,
            r"in_tasks\[1\] has 4 units, grads\[1\] has 3 col",
        ),
        (
            lambda: ops.clamp_grads_([GRAD], [OUT, OUT], [IN]),
            ValueError,
            "out_tasks has 2 entries, wanted grads's 1",
        ),
        (
            lambda: ops.clamp_grads_([GRAD], [OUT.float()], [IN]),
            TypeError,
            r"out_tasks\[0\] is torch.float32",
        ),
        (
            lambda: ops.clamp_grads_([GRAD.int()], [OUT], [IN]),
            TypeError,
            r"grads\[0\] is torch.int32",
        ),
        (lambda: ops.clamp_grads_([GRAD], [OUT], [IN], rule="soft"), ValueError, "rule is 'soft'"),
        (
            lambda: ops.clamp_grads_([GRAD], [OUT], [IN], protection="max"),
            ValueError,
            "protection is 'max'",
        ),
        (
            lambda: ops.clamp_grads_([GRAD], [OUT], [IN], groups=[3]),
            ValueError,
            r"groups\[0\] is 3",
        ),
        (
            lambda: ops.clamp_grads_([GRAD], [OUT], [IN], groups=[1, 1]),
            ValueError,
            "groups has 2 entries",
        ),
        (
            lambda: ops.clamp_grads_([GRAD.sum()], [None], [None], groups=[1]),
            ValueError,
            r"grads\[0\] is 0-d",
        ),
        (lambda: ops.protected_fraction(OUT, IN.float()), TypeError, "in_tasks is torch.float32"),
        (
            lambda: ops.clamp_grads_([GRAD], [OUT], [IN], values=[1.0, 2.0]),
            ValueError,
            "values has 2 entries",
        ),
        (
            lambda: ops.clamp_grads_([GRAD], [OUT], [IN], rule="adahat"),
            ValueError,
            "values has 0.0",
        ),
        (
            lambda: ops.clamp_grads_([GRAD], [OUT[:, None].repeat(1, 2)], [IN]),
            ValueError,
            "out_tasks.*has 2 words|words",
        ),
        (
            lambda: ops.restore_protected_([GRAD], [GRAD[:2]], [OUT], [IN]),
            ValueError,
            r"saved\[0\] has shape",
        ),
        (
            lambda: ops.restore_protected_([GRAD], [GRAD.double()], [OUT], [IN]),
            TypeError,
            r"saved\[0\] is torch.float64",
        ),
        (
            lambda: ops.clamp_grads_soft_([GRAD], [torch.rand(3)], [None]),
            ValueError,
            r"out_masks\[0\] has 3 units",
        ),
        (
            lambda: ops.clamp_grads_soft_([GRAD], [OUT], [None]),
            TypeError,
            r"out_masks\[0\] is torch.int64",
        ),
        (
            lambda: ops.clamp_grads_soft_([GRAD], [None], [None], aggregation="sum"),
            ValueError,
            "'sum'",
        ),
    ],
)
def test_bad_input_is_named_and_nothing_written(call, error, says):
    with pytest.raises(error, match=says):
        call()
    assert torch.equal(GRAD, torch.ones(4, 3))
