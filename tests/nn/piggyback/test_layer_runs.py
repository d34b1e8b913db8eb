"""Sequential networks whose layers run as one node: what the modules give, and who may look."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn import PiggybackNetwork, to_piggyback
from maskcl.nn.piggyback import layer_runs


def mlp(inplace: bool = False) -> nn.Sequential:
    """A norm in the middle parts two runs."""
    return nn.Sequential(
        nn.Linear(6, 9),
        nn.ReLU(inplace),
        nn.Linear(9, 8, bias=False),
        nn.LayerNorm(8),
        nn.Linear(8, 7),
        nn.ReLU(inplace),
        nn.Linear(7, 4),
    )


def begun(model: nn.Module, *, levels: str = "binary", heads: bool = True) -> PiggybackNetwork:
    torch.manual_seed(0)
    net = to_piggyback(model, 2, classes=[3, 4] if heads else None, levels=levels).train()
    options: dict[str, Any] = {"density": 0.5} if levels == "topk" else {}
    net.begin_task(0, init=1.0, spread="uniform", threshold=0.0, **options)
    return net


def result(net: PiggybackNetwork, x: Tensor, call: Callable[..., Tensor]) -> list[Tensor]:
    """Output and gradients, of ``call`` in the place of the network's forward."""
    net.zero_grad()
    with net.task(0):
        y = call(x)
    F.cross_entropy(y, torch.arange(len(x)) % 3).backward()
    return [y, *(p.grad.clone() for p in net.task_parameters(0))]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of layers of the runs that have been."""
    seen: list[int] = []
    plain = layer_runs.piggyback_linears

    def noted(x: Tensor, weights: list[Tensor], *rest: Any) -> Tensor:
        seen.append(len(weights))
        return plain(x, weights, *rest)

    monkeypatch.setattr(layer_runs, "piggyback_linears", noted)
    return seen


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("levels", ["binary", "ternary", "ternary_symmetric"])
def test_the_bits_that_the_modules_give(
    runs: list[int], levels: str, heads: bool, inplace: bool
) -> None:
    net, x = begun(mlp(inplace), levels=levels, heads=heads), torch.randn(5, 6)
    found = result(net, x, net)
    assert runs == ([2, 1] if heads else [2, 2])
    for a, b in zip(found, result(net, x, net.model), strict=True):
        assert torch.equal(a, b)
    assert len(runs) == 2


def hook(net: PiggybackNetwork, place: str, seen: list[Any]) -> None:
    module = net.model if place == "" else net.model.get_submodule(place)
    module.register_forward_hook(lambda *_: seen.append(place))


@pytest.mark.parametrize("place", ["", "0", "1", "6", "6.heads.0"])
def test_a_hooked_module_is_called(runs: list[int], place: str) -> None:
    net, x = begun(mlp()), torch.randn(5, 6)
    wanted = result(net, x, net)
    seen: list[Any] = []
    hook(net, place, seen)
    for a, b in zip(result(net, x, net), wanted, strict=True):
        assert torch.equal(a, b)
    assert seen == [place]


def test_global_hooks_and_other_forwards_are_called() -> None:
    net, x = begun(mlp()), torch.randn(5, 6)
    seen: list[str] = []
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append(type(module).__name__)
    )
    try:
        result(net, x, net)
    finally:
        handle.remove()
    assert seen.count("PiggybackLinear") == 3 and seen.count("ReLU") == 2
    relu = net.model[1]
    relu.forward = lambda x: (seen.append("own"), F.relu(x))[1]
    net.model[1] = relu  # nothing tells of a forward that is put in later but a fresh look
    net._runs = layer_runs.LayerRuns(net.model)
    result(net, x, net)
    assert seen[-1] == "own"


def test_a_model_put_in_its_place_is_run(runs: list[int]) -> None:
    net, x = begun(mlp()), torch.randn(5, 6)
    wanted = result(net, x, net)
    seen: list[int] = []

    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            seen.append(1)
            return self.inner(x)

    inner = net.model
    net.model = Wrapper(inner)
    with net.task(0):
        assert torch.equal(net(x), wanted[0])
    assert seen == [1] and len(runs) == 2
    net.model = nn.Sequential(*inner, nn.Softmax(1))
    with net.task(0):
        assert torch.equal(net(x), wanted[0].softmax(1))


def test_copies_run_their_own_modules() -> None:
    net, x = begun(mlp()), torch.randn(5, 6)
    result(net, x, net)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.model[0].scores.neg_()
    found, wanted = result(other, x, other), result(other, x, other.model)
    assert torch.equal(found[0], wanted[0])
    assert not torch.equal(found[0], result(net, x, net)[0])


def test_what_else_takes_the_modules_path(runs: list[int]) -> None:
    net, x = begun(mlp()), torch.randn(5, 6)
    with net.task(0):
        net(x.view(1, 5, 6))
        with torch.autocast("cpu"):
            assert net(x).dtype is torch.bfloat16
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        assert compiled(x).shape == (5, 3)
        params = dict(net.named_parameters())
        torch.func.grad(lambda p: torch.func.functional_call(net, p, (x,)).sum())(params)
        with pytest.raises(ValueError, match="piggyback_linear: weight"):
            net(torch.randn(5, 7))
    assert runs == []
    net.finish_task(0)
    with net.task(0):
        net(x)
    assert runs == []
    topk = begun(mlp(), levels="topk")
    result(topk, x, topk)
    assert runs == []


def test_functional_calls_and_checkpoints_see_their_parameters(runs: list[int]) -> None:
    net, x = begun(mlp()), torch.randn(5, 6, requires_grad=True)
    other = {name: -p if "scores" in name else p for name, p in net.named_parameters()}
    with net.task(0):
        found = torch.func.functional_call(net, other, (x,))
    wanted = result(net, x, net)
    for layer in net.layers.values():
        with torch.no_grad():
            layer.scores.neg_()
    assert torch.equal(found, result(net, x, net)[0])
    for layer in net.layers.values():
        with torch.no_grad():
            layer.scores.neg_()

    def checkpointed(x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False)

    for a, b in zip(result(net, x, checkpointed), wanted, strict=True):
        assert torch.equal(a, b)
    assert len(runs) == 10
