"""Triton's kernels of an optimizer's step, interpreted, against the reference."""

import pytest
import torch
from torch import Tensor

from maskcl import backends, ops, reference
from maskcl.triton import update
from tests.ops.test_rounding import draw_of
from tests.ops.test_update import HOWS, Model, bits_of, scalars, step_as_the_reference

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# dtype of parameters, dtype of state, words of tasks, protection, whether scaled, clipped, paced
CASES = [
    (F32, F32, 1, "exact", False),
    (F32, F32, 2, "min", True),
    (BF16, F32, 2, "exact", True),
    (F16, F16, 1, "min", False),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("how", HOWS)
def test_a_whole_model(how: str, case: tuple[torch.dtype, torch.dtype, int, str, bool]) -> None:
    dtype, state, words, protection, is_scaled = case
    more = scalars("cpu") if is_scaled else {}
    found, wanted = (Model("cpu", dtype, state, words) for _ in range(2))
    taken = found.taken(protection)
    before = step_as_the_reference("triton", how, (found, wanted), protection, more)
    for param, old, where in zip(found.params, before, taken, strict=True):
        assert torch.equal(bits_of(param)[where], bits_of(old)[where])


@pytest.mark.parametrize("exact", [True, False])
def test_empty_sides_protect_nothing(exact: bool) -> None:
    model = Model("cpu")
    pace = [[0.1] * len(model.params)] * 2 + [[1.5] * len(model.params)]
    end = model.groups, exact, *pace

    def stepped(outs: list[Tensor], ins: list[Tensor]) -> list[Tensor]:
        now = Model("cpu")
        none = None, None, None, None, 0.0
        update.sgd_update_(
            now.params, now.grads, now.first, outs, ins, *end, 0.9, 0.1, False, False, False, *none
        )
        state = now.first, now.second, now.steps
        update.adam_update_(
            now.params, now.grads, *state, outs, ins, *end, 0.9, 0.99, 1e-8, True, False, *none
        )
        norm = update.unprotected_norm(now.grads, outs, ins, model.groups, exact, None)
        return [*now.params, *now.first, *now.second, *now.steps, norm]

    free = [torch.zeros_like(side) for side in model.outs]
    assert all(map(torch.equal, stepped([], []), stepped(free, model.ins)))


def test_an_infinite_gradient_anywhere_means_no_write() -> None:
    model, lists = Model("cpu"), Model("cpu")
    with backends.use_backend("triton"):
        results = model.adam(**scalars("cpu", found=1.0))
    for tensors, old in zip(
        results, (lists.params, lists.first, lists.second, lists.steps), strict=True
    ):
        assert all(map(torch.equal, tensors, old))


@pytest.mark.parametrize("protection", ops.grad_clamp.PROTECTIONS)
def test_the_norm_of_what_is_not_protected(protection: str) -> None:
    model, scale, exact = Model("cpu", words=2), torch.tensor(3.0), protection == "exact"
    arguments = model.grads, model.outs, model.ins, model.groups, exact, scale
    wanted = reference.update.unprotected_norm(*arguments)
    for grad, where in zip(model.grads, model.taken(protection), strict=True):
        grad[where] = torch.nan
    torch.testing.assert_close(update.unprotected_norm(*arguments), wanted)


def test_bfloat16_is_rounded_by_the_references_bits() -> None:
    found, wanted = (Model("cpu", BF16, BF16) for _ in range(2))
    with backends.use_backend("triton"):
        found.adam(draw=draw_of(3, "cpu"), seed=7)
    with backends.use_backend("reference"):
        wanted.adam(draw=draw_of(3, "cpu"), seed=7)
    off = sum(int((f != w).sum()) for f, w in zip(found.params, wanted.params, strict=True))
    assert off <= sum(p.numel() for p in found.params) // 500  # sums that differ in the last bit
