"""In-place ops tell autograd, as torch's own do: a graph that kept the tensor raises."""

from __future__ import annotations

import pytest
import torch

from maskcl import backends, ops
from tests.ops.conftest import with_reference

backend = with_reference()


def ones(*shape: int) -> torch.Tensor:
    return torch.ones(*shape)


def bits(n: int) -> torch.Tensor:
    return torch.ones(n, dtype=torch.int64)


SIDES = [bits(4)], [bits(3)]


def adam(params: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> None:
    lists = [params], [ones(4, 3)], [first], [second], [torch.tensor(0.0)]
    ops.adam_update_(*lists, *SIDES, lr=0.1)


WRITERS = {
    "sgd_update_": lambda t: ops.sgd_update_([t], [ones(4, 3)], [], *SIDES, lr=0.1),
    "sgd_update_ momentum": lambda t: ops.sgd_update_(
        [ones(4, 3)], [ones(4, 3)], [t], *SIDES, lr=0.1, momentum=0.9
    ),
    "adam_update_": lambda t: adam(t, ones(4, 3), ones(4, 3)),
    "adam_update_ first moment": lambda t: adam(ones(4, 3), t, ones(4, 3)),
    "adam_update_ second moment": lambda t: adam(ones(4, 3), ones(4, 3), t),
    "clamp_grads_": lambda t: ops.clamp_grads_([t], [bits(4)], [bits(3)]),
    "clamp_grads_soft_": lambda t: ops.clamp_grads_soft_([t], [ones(4)], [ones(3)]),
    "restore_protected_": lambda t: ops.restore_protected_([t], [ones(4, 3)], [bits(4)], [bits(3)]),
    "mas_accumulate_": lambda t: ops.mas_accumulate_([t], [ones(4, 3)]),
    "mas_penalty_grads_": lambda t: ops.mas_penalty_grads_(
        [t], [ones(4, 3)], [torch.zeros(4, 3)], [ones(4, 3)]
    ),
    "linear_importance_": lambda t: ops.linear_importance_(t, ones(2, 3), ones(2, 4)),
}


def on_the_cpu(device: str) -> None:
    if device != "cpu":
        pytest.skip("the versions are Python's affair, the same on every device")


def test_every_op_that_writes_is_here():
    assert {name.split()[0] for name in WRITERS} == {
        name for name in ops.__all__ if name.endswith("_")
    }


@pytest.mark.parametrize("name", WRITERS)
def test_a_tensor_that_backward_needs_may_not_be_overwritten(backend, device, name):
    on_the_cpu(device)
    kept = torch.full((4, 3), 2.0)
    x = torch.ones(4, 3, requires_grad=True)
    loss = (x * kept).sum()  # backward multiplies by kept
    WRITERS[name](kept)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("name", WRITERS)
def test_a_view_and_its_base_share_the_version(backend, device, name):
    on_the_cpu(device)
    base = torch.full((8, 3), 2.0)
    before = base._version
    WRITERS[name](base[2:6])
    assert base._version > before


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", WRITERS)
def test_compiled_code_tells_as_well(backend, device, name, compiler):
    on_the_cpu(device)
    found, wanted = torch.full((4, 3), 2.0), torch.full((4, 3), 2.0)
    before = found._version
    torch.compile(WRITERS[name], fullgraph=True, backend=compiler)(found)
    WRITERS[name](wanted)
    assert torch.equal(found, wanted)
    assert found._version > before


def test_those_who_ask_for_the_kernel_itself_are_told_too():
    """As nn.hat's protection and the guard of an optimizer's step do."""
    t = torch.ones(4, 3)
    before = t._version
    run = backends.select("clamp_grads_", t)
    run([t], [bits(4)[:, None]], [bits(3)[:, None]], [1], True, "hat", [0.0], 0)
    assert t._version == before + 1 and not t.any()


def test_an_anchor_of_a_penalty_may_not_move_before_backward():
    p = torch.full((3,), 2.0, requires_grad=True)
    importance = torch.ones(3)
    loss = ops.mas_penalty([p], [torch.zeros(3)], [importance])
    ops.mas_accumulate_([importance], [torch.full((3,), 9.0)])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
