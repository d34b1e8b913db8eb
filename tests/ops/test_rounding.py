"""bfloat16 that an optimizer's step rounds at random: the same bits wherever it is computed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from maskcl import backends, ops
from tests.helpers import variants
from tests.ops.conftest import with_reference

backend = with_reference()

BF16 = torch.bfloat16
SHAPES = [(7, 9), (33, 70), (6, 4, 3, 3), (4, 1, 3, 3), (5,), (1300,), (0, 4), (3, 0), (3, 1500)]


def draw_of(step: int, device: str = "cpu") -> Tensor:
    return torch.tensor(float(step), dtype=torch.float64, device=device)


def free(params: list[Tensor]) -> tuple[list[None], list[Tensor]]:
    ins = [p.shape[1] if p.dim() > 1 else 1 for p in params]
    return [None] * len(params), [
        torch.zeros(n, dtype=torch.int64, device=params[0].device) for n in ins
    ]


def sgd(params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], **more) -> list[Tensor]:
    """Powers of 2, so that every backend rounds the very same numbers."""
    more = {"lr": 2.0**-13, "momentum": 0.5 if momenta else 0.0, **more}
    ops.sgd_update_(params, grads, momenta, *free(params), **more)
    return [*params, *momenta]


def adam(params, grads, first, second, steps, **more) -> list[Tensor]:
    ops.adam_update_(params, grads, first, second, steps, *free(params), **{"lr": 0.01, **more})
    return [*params, *first, *second]


def numbers(device: str, seed: int = 0, dtype: torch.dtype = BF16) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(s, device=device).to(dtype) for s in SHAPES]


def bits(tensors: list[Tensor]) -> list[Tensor]:
    return [
        t.contiguous().view(torch.int16 if t.element_size() == 2 else torch.int32) for t in tensors
    ]


def are_same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(bits(found), bits(wanted), strict=True))


@pytest.mark.parametrize("state", [None, BF16, torch.float32], ids=str)
def test_every_backend_draws_what_the_reference_draws(backend, device, state):
    def run():
        momenta = [] if state is None else [m.to(state) for m in numbers(device, 2)]
        where = {"seed": -5, "draw": draw_of(3, device), "places": [9 << 33, *range(8)]}
        return sgd(numbers(device), numbers(device, 1), momenta, **where)

    found = run()
    with backends.use_backend("reference"):
        assert are_same(found, run())


@pytest.mark.parametrize("state", [BF16, torch.float32], ids=str)
def test_adams_moments_too(backend, device, state):
    def run():
        first, second = ([m.abs().to(state) for m in numbers(device, s)] for s in (2, 3))
        steps = [torch.tensor(0.0, device=device) for _ in SHAPES]
        more = {"betas": (0.5, 0.75), "draw": draw_of(7, device), "seed": 2}
        return adam(numbers(device), numbers(device, 1), first, second, steps, **more)

    found = run()
    with backends.use_backend("reference"):
        wanted = run()
    count = len(SHAPES)
    assert are_same(found[count:], wanted[count:])
    pairs = list(zip(found[:count], wanted[:count], strict=True))
    # A root's last bit may differ, which decides once in many thousand elements.
    assert sum(int((a != b).sum()) for a, b in pairs) <= 2


def test_the_mean_is_what_was_to_be_stored(backend, device):
    """Within four standard errors for every one of six numbers, of 16384 draws each."""
    values = torch.tensor([1e-2, -1e-2, 3.0, -0.4, 1e-30, 1e30])
    param = values[:, None].expand(6, 4096).to(BF16).to(device)
    grads = (param * 2.0**-11).contiguous()
    found = []
    for step in range(4):
        moved = param.clone()
        sgd([moved], [grads], [], lr=1.0, draw=draw_of(step, device))
        found.append(moved.double())
    wanted = param.double()[:, 0] - grads.double()[:, 0]
    drawn = torch.cat(found, 1)
    assert all(len(row.unique()) == 2 for row in drawn)
    error = (drawn.mean(1) - wanted).abs()
    assert (error < 4 * drawn.std(1) / math.sqrt(drawn.shape[1])).all()
    assert (error > 0).all()


def test_steps_too_small_for_bfloat16_add_up(backend, device):
    """300 steps of 1e-6 from 1e-2, where neighbours are 6e-5 apart."""
    ends = {}
    for kind in ("nearest", "random"):
        scores = torch.full((64, 64), 1e-2, dtype=BF16, device=device)
        start = scores.double().mean().item()
        for step in range(300):
            how = {"draw": draw_of(step, device)} if kind == "random" else {}
            sgd([scores], [torch.ones_like(scores)], [], lr=1e-6, **how)
        ends[kind] = scores.double().mean().item() - start
    assert ends["nearest"] == 0
    assert ends["random"] == pytest.approx(-3e-4, rel=0.02)


def test_a_number_of_bfloat16_stays_what_it_is(backend, device):
    special = torch.tensor([[math.inf, -math.inf, math.nan, -0.0, 0.0, 3.3895e38, 1e-2, -7.0]])
    param = special.to(BF16).to(device)
    before = param.clone()
    for step in range(8):
        sgd([param], [torch.zeros_like(param)], [], draw=draw_of(step, device))
    assert torch.equal(param.isnan(), before.isnan())
    assert torch.equal(param.nan_to_num(5.0), before.nan_to_num(5.0))
    sgd([param], [torch.full_like(param, -math.inf)], [], draw=draw_of(9, device))
    assert torch.isinf(param[0, 3:]).all()


def test_memory_orders_draw_alike(backend, device):
    x, g = (torch.randn(6, 5, 4, 4, device=device).to(BF16) for _ in range(2))
    results = {}
    for name, param in variants(x.clone()).items():
        for which, grad in (("own", variants(g)[name]), ("contiguous", g)):
            param.copy_(x)
            sgd([param], [grad], [], draw=draw_of(1, device))
            results[name, which] = param.clone().contiguous()
    assert len(results) == 8
    first = results["contiguous", "own"]
    assert not torch.equal(first, x)
    assert all(torch.equal(first, other) for other in results.values())


def test_rows_of_a_parameter_draw_what_the_whole_does(backend, device):
    whole, grad = (torch.randn(12, 50, device=device).to(BF16) for _ in range(2))
    parts = [whole[:5].clone(), whole[5:5].clone(), whole[5:].clone()]
    grads = [grad[:5], grad[5:5], grad[5:]]
    more = {"draw": draw_of(4, device), "seed": 3}
    sgd([whole], [grad], [], places=[1000], **more)
    sgd(parts, grads, [], places=[1000, 1250, 1250], **more)
    assert torch.equal(torch.cat(parts), whole)


def test_seed_draw_and_place_each_draw_anew(backend, device):
    def run(**more):
        param = torch.randn(8, 64, device=device, generator=torch.Generator(device).manual_seed(0))
        param = param.to(BF16)
        more = {"draw": draw_of(1, device), "lr": 2.0**-9, **more}
        return sgd([param], [param.clone()], [], **more)[0]

    found = [run(), run(seed=1), run(draw=draw_of(2, device)), run(places=[1])]
    assert torch.equal(run(), found[0])
    for a in range(4):
        for b in range(a):
            assert (found[a] != found[b]).sum() > 64
    float32 = torch.tensor(1.0, device=device)
    assert torch.equal(run(draw=float32), found[0])
    assert torch.equal(run(draw=draw_of(1)), found[0]), "a draw on the CPU"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_dtypes_are_rounded_to_nearest(backend, device, dtype):
    found, wanted = numbers(device, 0, dtype), numbers(device, 0, dtype)
    sgd(found, numbers(device, 1, dtype), [], lr=0.1, draw=draw_of(1, device))
    sgd(wanted, numbers(device, 1, dtype), [], lr=0.1)
    assert are_same(found, wanted)


def test_what_is_protected_or_infinite_is_not_written(backend, device):
    param = torch.full((4, 40), 1e-2, dtype=BF16, device=device)
    before, grad = param.clone(), torch.ones_like(param)
    tasks = torch.arange(4, device=device) % 2, (torch.arange(40, device=device) > 20).long()
    more = {"lr": 1e-5, "draw": draw_of(1, device)}
    off = torch.tensor(1.0, device=device)
    ops.sgd_update_([param], [grad], [], tasks[:1], tasks[1:], found_inf=off, **more)
    assert torch.equal(param, before)
    ops.sgd_update_([param], [grad], [], tasks[:1], tasks[1:], **more)
    taken = (tasks[0][:, None] & tasks[1]).bool()
    assert torch.equal(param[taken], before[taken])
    assert (param[~taken] != before[~taken]).any()


def test_threads_change_no_bit():
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        param, grad = (torch.randn(300, 401).to(BF16) for _ in range(2))
        found.append(sgd([param], [grad], [grad.clone()], draw=draw_of(1)))
    assert are_same(*found)


def test_compiles_to_one_graph(backend, device):
    def step(params, grads, draw):
        sgd(params, grads, [], draw=draw, seed=3, places=[7] * len(params))

    found, wanted = numbers(device), numbers(device)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for k in (1, 2):
        compiled(found, numbers(device, k), draw_of(k, device))
        step(wanted, numbers(device, k), draw_of(k, device))
    assert are_same(found, wanted)


WRONG = {
    "places without a draw": (
        {"draw": None, "places": [1]},
        ValueError,
        "places is .*draw is None",
    ),
    "too few places": ({"places": []}, ValueError, "places"),
    "a place below 0": ({"places": [-1]}, ValueError, r"places\[0\] is -1"),
    "a place of another type": ({"places": [1.0]}, TypeError, r"places\[0\] is a float"),
    "a seed of another type": ({"seed": 0.5}, TypeError, "seed is a float, wanted an int"),
    "a seed too large": ({"seed": 2**63}, ValueError, "seed is .*, wanted one from"),
    "an integer draw": ({"draw": torch.tensor(1)}, TypeError, "draw"),
    "several draws": ({"draw": torch.ones(2)}, ValueError, "draw"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_write_nothing(name):
    options, kind, message = WRONG[name]
    param = torch.ones(2, 3, dtype=BF16)
    with pytest.raises(kind, match=f"sgd_update_: .*({message})"):
        sgd([param], [param.clone()], [], **{"draw": draw_of(1), **options})
    assert (param == 1).all()
