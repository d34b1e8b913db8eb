"""State and options that a step cannot take are named before anything is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import maskcl
from maskcl.nn import Protection
from maskcl.optim import fuse, guard

MAKE = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
}
ENTRY = {"SGD": "momentum_buffer", "AdamW": "exp_avg"}


def stepped(name: str) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Two parameters in groups of two calls, after a step."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 3)) for _ in range(2)]
    groups = [{"params": [p], "maximize": bool(n)} for n, p in enumerate(parameters)]
    optimizer = MAKE[name](groups)
    fuse(optimizer)
    step(optimizer)
    return parameters, optimizer


def step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()


@pytest.mark.parametrize(
    ("value", "error", "what"),
    [
        (1.0, TypeError, "is a float, wanted a tensor"),
        (torch.zeros(3, 4), ValueError, r"has shape \[3, 4\], wanted the parameter's, \[4, 3\]"),
        (
            torch.zeros(4, 3).double(),
            TypeError,
            "is torch.float64, and the parameter torch.float32",
        ),
    ],
)
@pytest.mark.parametrize("name", MAKE)
def test_state_that_does_not_fit_is_named_and_no_group_is_stepped(name, value, error, what):
    parameters, optimizer = stepped(name)
    known = [p.detach().clone() for p in parameters]
    kept = optimizer.state[parameters[1]][ENTRY[name]]
    optimizer.state[parameters[1]][ENTRY[name]] = value
    for _ in range(2):
        with pytest.raises(error, match=f"{ENTRY[name]} of parameter 1 {what}"):
            step(optimizer)
    assert all(map(torch.equal, known, parameters))
    optimizer.state[parameters[1]][ENTRY[name]] = kept
    step(optimizer)
    assert not any(map(torch.equal, known, parameters))


@pytest.mark.parametrize(
    ("name", "option", "value", "what"),
    [
        ("AdamW", "betas", (0.9,), r"betas is \(0.9,\), wanted two numbers"),
        ("AdamW", "betas", 0.9, "betas is 0.9, wanted two numbers"),
        ("AdamW", "betas", (0.9, "b"), "betas is a str, wanted a number"),
        ("SGD", "lr", torch.ones(2), r"lr has shape \[2\], wanted a 0-d tensor"),
    ],
)
def test_options_of_the_second_group_are_named_before_the_first_is_stepped(
    name, option, value, what
):
    parameters, optimizer = stepped(name)
    known = [p.detach().clone() for p in parameters]
    optimizer.param_groups[1][option] = value
    with pytest.raises(TypeError, match=what):
        step(optimizer)
    assert all(map(torch.equal, known, parameters))


@pytest.mark.parametrize("name", MAKE)
def test_a_network_that_is_converted_in_a_task_says_so(name):
    layer = nn.Linear(3, 4)
    optimizer = MAKE[name](layer.parameters())
    fuse(optimizer)
    step(optimizer)
    layer.double()
    known = layer.weight.detach().clone()
    with pytest.raises(TypeError, match=r"torch.float32, and the parameter torch.float64: after"):
        step(optimizer)
    assert torch.equal(layer.weight, known)


def test_a_guard_says_so_before_the_step():
    layer = nn.Linear(3, 4)
    out, every = torch.ones(4, 1, dtype=torch.int64), torch.full((1, 1), -1)
    optimizer = torch.optim.RMSprop(layer.parameters(), lr=0.1)
    guard(optimizer, Protection(["w"], [layer.weight], [out], [every], [1], False))
    step(optimizer)
    layer.double()
    known = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"is torch.float64 and was torch.float32"):
        step(optimizer)
    assert torch.equal(layer.weight, known)


def test_arguments_of_another_kind():
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(TypeError, match="SGD: protect is the class HATNetwork, wanted"):
        maskcl.optim.SGD([parameter], protect=maskcl.nn.HATNetwork)
    for value in ("1", True):
        with pytest.raises(TypeError, match=f"max_norm is {value!r}, wanted a number above 0"):
            maskcl.optim.SGD([parameter], max_norm=value)
    for value in (None, "a"):
        with pytest.raises(TypeError, match=r"fuse: optimizer is a .*, wanted one with a step"):
            fuse(value)


def test_errors_of_the_library_name_no_file():
    raw = torch.ops.maskcl
    lists = [torch.ones(4, 3)], [torch.ones(3, 4)], [], [], [], [1], True
    pace = [0.1], [0.0], [1.0], 0.0, 0.0, False, False, False
    with pytest.raises(RuntimeError) as caught:
        raw.sgd_update_(*lists, *pace, None, None, None, None, 0.0)
    assert str(caught.value).startswith("sgd_update_: grads[0] has shape [3, 4]")
