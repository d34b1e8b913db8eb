"""Importances and their penalty: sums against float64, on every backend, order and dtype."""

from __future__ import annotations

import pytest
import torch

from maskcl import ops, reference
from tests.helpers import TOLERANCE, assert_close, variants

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(7, 9), (130, 257), (6, 4, 3, 3), (5,), (), (0, 4), (20001,)]
NATIVE_DTYPES = [*DTYPES, torch.float64]


def wide(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def skip_float64_on_triton(backend, dtype):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("Triton's kernels take no float64")


def entries(dtype, device, shapes=SHAPES):
    """Parameters, anchors and importances of a model."""
    params = [torch.randn(s, device=device).to(dtype) for s in shapes]
    anchors = [torch.randn(s, device=device).to(dtype) for s in shapes]
    omegas = [torch.rand(s, device=device).to(wide(dtype)) for s in shapes]
    return params, anchors, omegas


def penalty64(params, anchors, omegas):
    triples = zip(params, anchors, omegas, strict=True)
    return sum((o.double() * (p.double() - a.double()) ** 2).sum() for p, a, o in triples)


@pytest.mark.parametrize("square", [False, True], ids=["mas", "fisher"])
@pytest.mark.parametrize("dtype", NATIVE_DTYPES, ids=str)
def test_accumulate_adds_sizes_to_what_is_left(backend, device, dtype, square):
    skip_float64_on_triton(backend, dtype)
    grads = [torch.randn(s, device=device).to(dtype) for s in SHAPES]
    omegas = [torch.rand(s, device=device).to(wide(dtype)) for s in SHAPES]
    wanted = [
        0.75 * o.double() + 2.5 * (g.double() ** 2 if square else g.double().abs())
        for o, g in zip(omegas, grads, strict=True)
    ]
    ops.mas_accumulate_(omegas, grads, 2.5, decay=0.75, square=square)
    for found, right in zip(omegas, wanted, strict=True):
        assert_close(found, right, wide(dtype))


@pytest.mark.parametrize("square", [False, True], ids=["mas", "fisher"])
@pytest.mark.parametrize("samples", [0, 1, 5])
def test_samples_are_made_positive_before_they_are_summed(backend, device, samples, square):
    shapes = [(3, 4), (1500,), ()]
    grads = [torch.randn(samples, *s, device=device) for s in shapes]
    omegas = [torch.ones(s, device=device) for s in shapes]
    ops.mas_accumulate_(omegas, grads, 0.5, square=square)
    for found, grad in zip(omegas, grads, strict=True):
        size = grad.double() ** 2 if square else grad.double().abs()
        assert_close(found, 1 + 0.5 * size.sum(0), torch.float32)


@pytest.mark.parametrize("dtype", NATIVE_DTYPES, ids=str)
def test_penalty_and_its_gradient_match_float64(backend, device, dtype):
    skip_float64_on_triton(backend, dtype)
    params, anchors, omegas = entries(dtype, device)
    for p in params:
        p.requires_grad_()
    value = ops.mas_penalty(params, anchors, omegas)
    assert value.dtype == wide(dtype)
    assert_close(value / 2e4, penalty64(params, anchors, omegas).detach() / 2e4, wide(dtype))
    found = torch.autograd.grad(value, params, torch.tensor(3.0, device=device).to(value))
    for f, p, a, o in zip(found, params, anchors, omegas, strict=True):
        right = 6 * o.double() * (p.detach().double() - a.double())
        assert_close(f, right, dtype, scale=2)
        assert f.dtype == dtype


@pytest.mark.parametrize("dtype", NATIVE_DTYPES, ids=str)
def test_gradients_are_added_to_in_one_call_that_returns_the_term(backend, device, dtype):
    skip_float64_on_triton(backend, dtype)
    params, anchors, omegas = entries(dtype, device)
    grads = [torch.randn_like(p) for p in params]
    before = [g.clone() for g in grads]
    term = ops.mas_penalty_grads_(grads, params, anchors, omegas, 0.5)
    assert_close(term / 1e4, 0.5 * penalty64(params, anchors, omegas) / 1e4, wide(dtype))
    for g, b, p, a, o in zip(grads, before, params, anchors, omegas, strict=True):
        assert_close(g, b.double() + o.double() * (p.double() - a.double()), dtype, scale=2)


def test_the_reference_is_its_formula():
    """Written out another way: what the backends are compared with elsewhere is right itself."""
    params, anchors, omegas = entries(torch.float64, "cpu")
    value = reference.importance.mas_penalty(params, anchors, omegas)
    torch.testing.assert_close(value, penalty64(params, anchors, omegas))
    grads = [torch.full_like(p, float("nan")) for p in params]
    scale = torch.tensor(2.0)
    reference.importance.mas_penalty_grads_(grads, params, anchors, omegas, scale, 0.25, False)
    for g, p, a, o in zip(grads, params, anchors, omegas, strict=True):
        torch.testing.assert_close(g, o * (p - a))


def test_mixed_halves_and_floats_are_one_list(backend, device):
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float16]
    triples = [[x[0] for x in entries(d, device, [(33, 5)])] for d in dtypes]
    params, anchors, omegas = map(list, zip(*triples, strict=True))
    grads = [torch.zeros_like(p) for p in params]
    term = ops.mas_penalty_grads_(grads, params, anchors, omegas)
    assert_close(term / 500, penalty64(params, anchors, omegas) / 500, torch.float32)
    for g, p, a, o in zip(grads, params, anchors, omegas, strict=True):
        assert_close(g, 2 * o.double() * (p.double() - a.double()), p.dtype, scale=2)


@pytest.mark.parametrize("which", range(4), ids=["grads", "params", "anchors", "importances"])
def test_memory_orders_agree(backend, device, which):
    """Each tensor alone in another order than the others; padding between rows stays NaN."""
    (p,), (a,), (o,) = entries(torch.float32, device, [(6, 4, 3, 3)])
    g = torch.randn_like(p)
    wanted = g + 2 * o * (p - a)
    for view in variants([g, p, a, o][which]).values():
        tensors = [t.clone() for t in (g, p, a, o)]
        tensors[which] = (
            view
            if which
            else torch.empty_strided(view.shape, view.stride(), device=device).copy_(g)
        )
        ops.mas_penalty_grads_(*[[t] for t in tensors])
        torch.testing.assert_close(tensors[0], wanted)
    for view in variants(g).values():
        found = o.clone(memory_format=torch.channels_last) if which % 2 else o.clone()
        ops.mas_accumulate_([found], [view])
        torch.testing.assert_close(found, o + g.abs())


def test_a_strided_importance_is_written_where_it_lies(backend, device):
    base = torch.full((4, 10), float("nan"), device=device)
    omega = base[:, ::2].fill_(1.0)
    ops.mas_accumulate_([omega], [torch.ones(4, 5, device=device)])
    ops.linear_importance_(omega, torch.ones(3, 5, device=device), torch.ones(3, 4, device=device))
    assert torch.equal(omega, torch.full_like(omega, 5.0)) and base[:, 1::2].isnan().all()


def test_the_penalty_has_the_same_bits_on_any_number_of_threads(backend, device):
    if device != "cpu":
        pytest.skip("threads are the CPU's")
    lists = [entries(torch.float32, device, [(301, 99 + 7 * k), (77,)]) for k in range(16)]
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found[threads] = [ops.mas_penalty(*tensors).item() for tensors in lists]
    finally:
        torch.set_num_threads(before)
    assert found[1] == found[2] == found[3]


def per_sample(x, grad):
    """[N, O, I] in float64, from the definition."""
    x, grad = x.double(), grad.double()
    if x.dim() == 2:
        return torch.einsum("no,ni->noi", grad, x)
    return torch.einsum("npo,npi->noi", grad, x)


ROWS = [(1, None), (65, None), (3, 1), (5, 4), (2, 33), (0, None), (2, 0)]


@pytest.mark.parametrize("square", [False, True], ids=["mas", "fisher"])
@pytest.mark.parametrize("dtype", NATIVE_DTYPES, ids=str)
@pytest.mark.parametrize(("samples", "positions"), ROWS)
def test_linear_importance_is_the_sum_over_samples(
    backend, device, samples, positions, dtype, square
):
    skip_float64_on_triton(backend, dtype)
    lead = (samples,) if positions is None else (samples, positions)
    x = torch.randn(*lead, 19, device=device).to(dtype)
    grad = torch.randn(*lead, 37, device=device).to(dtype)
    terms = per_sample(x, grad)
    terms = terms**2 if square else terms.abs()
    found = ops.linear_importance(x, grad, square=square)
    assert found.dtype == wide(dtype)
    bound = TOLERANCE[wide(dtype)] * (1 + 4 * terms.sum(0))
    assert bool(((found.double() - terms.sum(0)).abs() <= bound.to(found.device)).all())
    ops.linear_importance_(found, x, grad, -1.0, square=square)
    assert bool((found.abs() <= bound.to(found.device)).all())


def test_linear_importance_is_exact_over_many_rows(backend, device):
    """More rows than one block or tile takes, and more than one tile of columns."""
    x, grad = torch.randn(700, 150, device=device), torch.randn(700, 140, device=device)
    right = grad.double().abs().t() @ x.double().abs()
    torch.testing.assert_close(ops.linear_importance(x, grad).double(), right, rtol=1e-6, atol=0)


def test_linear_importance_of_strided_inputs(backend, device):
    x, grad = torch.randn(6, 4, 5, device=device), torch.randn(6, 4, 3, device=device)
    wanted = ops.linear_importance(x, grad)
    for a, b in zip(variants(x).values(), variants(grad).values(), strict=True):
        torch.testing.assert_close(ops.linear_importance(a, b), wanted)


def test_gradcheck(backend, device):
    if backend == "triton":
        pytest.skip("Triton's kernels take no float64")
    params, anchors, omegas = entries(torch.float64, device, [(3, 2), (4,)])
    for p in params:
        p.requires_grad_()
    assert torch.autograd.gradcheck(lambda *p: ops.mas_penalty(p, anchors, omegas), params)


def test_compiles_to_one_graph(backend, device):
    params, anchors, omegas = entries(torch.float32, device, [(3, 2), (4,)])
    for p in params:
        p.requires_grad_()

    def step(params):
        return ops.mas_penalty(params, anchors, omegas)

    def grads(tensors):
        detached = [p.detach() for p in params]
        term = ops.mas_penalty_grads_(tensors, detached, anchors, omegas, 0.5)
        ops.mas_accumulate_(tensors, detached)
        return term + ops.linear_importance(params[0].detach(), params[0].detach()).sum()

    found = torch.autograd.grad(torch.compile(step, fullgraph=True)(params), params)
    for f, w in zip(found, torch.autograd.grad(step(params), params), strict=True):
        torch.testing.assert_close(f, w)
    a, b = ([torch.ones_like(p) for p in params] for _ in range(2))
    torch.testing.assert_close(torch.compile(grads, fullgraph=True)(a), grads(b))
    torch.testing.assert_close(a, b)


def test_no_tensors_cost_and_change_nothing():
    assert ops.mas_penalty([], [], []) == 0 and ops.mas_penalty_grads_([], [], [], []) == 0
    ops.mas_accumulate_([], [])


P, H = torch.ones(4, 3), torch.ones(4, 3, dtype=torch.bfloat16)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: ops.mas_accumulate_([P], []), ValueError, "grads has 0 entries"),
        (lambda: ops.mas_accumulate_([P], [P[:2]]), ValueError, r"grads\[0\] has shape \[2, 3\]"),
        (lambda: ops.mas_accumulate_([H], [H]), TypeError, r"importances\[0\] is torch.bfloat16"),
        (lambda: ops.mas_accumulate_([P], [P.long()]), TypeError, r"grads\[0\] is torch.int64"),
        (lambda: ops.mas_accumulate_([P], [P.double()]), TypeError, "float64"),
        (lambda: ops.mas_penalty([P], [P], []), ValueError, "importances has 0 entries"),
        (lambda: ops.mas_penalty([P], [H], [P]), TypeError, r"anchors\[0\] is torch.bfloat16"),
        (lambda: ops.mas_penalty([P], [P[0]], [P]), ValueError, r"anchors\[0\] has shape \[3\]"),
        (lambda: ops.mas_penalty([H], [H], [H]), TypeError, r"importances\[0\] is torch.bfloat16"),
        (
            lambda: ops.mas_penalty_grads_([P, P[0]], [P, P], [P, P], [P, P]),
            ValueError,
            r"grads\[1\] has shape",
        ),
        (
            lambda: ops.mas_penalty_grads_([P.to("meta")], [P], [P], [P]),
            ValueError,
            r"grads\[0\] is on meta",
        ),
        (lambda: ops.linear_importance(P[0], P), ValueError, r"x has shape \[3\]"),
        (lambda: ops.linear_importance(P, P[:3]), ValueError, r"grad_out has shape \[3, 3\]"),
        (lambda: ops.linear_importance(P, H), TypeError, "grad_out is torch.bfloat16"),
        (lambda: ops.linear_importance_(P, P, P), ValueError, r"importance has shape \[4, 3\]"),
        (lambda: ops.linear_importance_(H[:3], P, P), TypeError, "importance is torch.bfloat16"),
    ],
)
def test_bad_input_is_named_and_nothing_written(call, error, says):
    with pytest.raises(error, match=says):
        call()
    assert torch.equal(P, torch.ones(4, 3)) and torch.equal(H, torch.ones_like(H))
