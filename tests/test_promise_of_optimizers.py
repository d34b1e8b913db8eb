"""The promise under twelve optimizers on six architectures: of five tasks none loses a bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import maskcl
from maskcl import HAT, Piggyback
from maskcl.models.vit import ViT
from maskcl.nn import PiggybackNetwork, to_hat
from tests import graph_zoo, tiny

TASKS, STEPS, NODES = 5, 4, 24
Inputs = tuple[Any, ...]

DECAY: dict[str, Any] = {"weight_decay": 0.05}


def lbfgs(groups: list[dict[str, Any]]) -> torch.optim.LBFGS:
    """It asks for gradients as often as it likes, and takes one group."""
    every = [p for group in groups for p in group["params"]]
    return torch.optim.LBFGS(every, lr=0.1, max_iter=3, line_search_fn="strong_wolfe")


# With what moves weights that have no gradient, momentum and decay, where there is such a thing.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, **DECAY),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True, **DECAY),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True, **DECAY),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.001, momentum=0.5, **DECAY),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, **DECAY),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.02, **DECAY),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.02, **DECAY),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.02, **DECAY),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05, t0=2, **DECAY),
    "lbfgs": lbfgs,
}
BUILT_IN = "maskcl-adamw"  # protects by itself
NAMES = [*OPTIMIZERS, BUILT_IN]


def transformer() -> ViT:
    return ViT(tiny.SHAPE, tiny.CLASSES, patch=3, width=8, depth=1, heads=2)


def graph_network() -> Any:
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    model = graph_zoo.model("node", "gcn", classes=tiny.CLASSES, hidden=(24, 24))
    example = graph_zoo.inputs("node", "gcn")
    return to_hat(model, TASKS, example, classes=[tiny.CLASSES] * TASKS)


NETWORKS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: tiny.network("mlp", TASKS),
    "conv": lambda: tiny.network("conv", TASKS),
    "residual": lambda: tiny.network("residual", TASKS),
    "transformer": lambda: tiny.network(transformer, TASKS),
    "graph": graph_network,
    "piggyback": lambda: tiny.piggyback("conv", TASKS, norms="task"),
}


def sample(architecture: str, task: int) -> tuple[Inputs, Tensor]:
    """Inputs and labels of a task."""
    if architecture != "graph":
        x, y = tiny.samples(task)
        return (x,), y
    graph = graph_zoo.graph(NODES, seed=task)
    inputs = graph.x, graph.edges("gcn"), torch.arange(NODES)
    return inputs, torch.randint(tiny.CLASSES, (NODES,))


def learn(net: Any, method: Any, name: str, task: int, inputs: Inputs, y: Tensor) -> None:
    """The loop in docs/quick-start.md."""
    net.train()
    state = method.begin_task(net, task, seed=task)
    groups = method.parameter_groups(net, task)
    if name != BUILT_IN:
        optimizer = OPTIMIZERS[name](groups)
        method.protect(optimizer, net, state)
    else:  # what Piggyback has to keep is in no optimizer
        protect = net if isinstance(method, HAT) else None
        optimizer = maskcl.optim.AdamW(groups, lr=0.02, protect=protect, **DECAY)

    def closure() -> Tensor:
        optimizer.zero_grad()
        with net.task(task, state.scale):
            loss = F.cross_entropy(net(*inputs), y) + method.loss_term(net, state)
            loss.backward()
        method.after_backward(net, state)
        return loss.detach()

    for step in range(STEPS):
        method.before_step(net, state, step / (STEPS - 1))
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        method.after_step(net, state)
    method.end_task(net, state)


@torch.no_grad()
def outputs(net: Any, task: int, inputs: Inputs) -> Tensor:
    net.eval()
    with net.task(task):
        return net(*inputs).clone()


def shared(net: Any) -> list[Tensor]:
    """Copies of the weights that all tasks share."""
    named = net.model.named_parameters()
    return [p.detach().clone() for name, p in named if ".heads." not in name]


def learned(net: Any, task: int, before: list[Tensor]) -> bool:
    """Whether the task moved shared weights, or has a mask of its own."""
    if isinstance(net, PiggybackNetwork):
        return task == 0 or net.differing(0, task) > 0
    return any(not torch.equal(a, b) for a, b in zip(shared(net), before, strict=True))


def moved(architecture: str, method: Any, name: str, tasks: int) -> list[tuple[int, int]]:
    """(earlier, later) wherever learning the later task changed an output of the earlier one."""
    net = NETWORKS[architecture]()
    data = [sample(architecture, task) for task in range(tasks)]
    kept: list[Tensor] = []
    found: list[tuple[int, int]] = []
    for task, (inputs, y) in enumerate(data):
        before = shared(net)
        learn(net, method, name, task, inputs, y)
        assert learned(net, task, before), "it forgets nothing who learns nothing"
        kept.append(outputs(net, task, inputs))
        now = [outputs(net, old, data[old][0]) for old in range(task)]
        found += [(old, task) for old in range(task) if not torch.equal(now[old], kept[old])]
    # Where masks of few units close every path, there is nothing to forget.
    assert sum(bool(out.std(0).any()) for out in kept) > tasks // 2
    return found


def method_of(architecture: str) -> Any:
    if architecture == "piggyback":
        return Piggyback(spread="uniform", lr=0.02)
    return HAT(sparsity=0.05)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("architecture", NETWORKS)
def test_nothing_is_forgotten(architecture: str, name: str) -> None:
    assert moved(architecture, method_of(architecture), name, TASKS) == []


@pytest.mark.parametrize("name", [*OPTIMIZERS])
@pytest.mark.parametrize("architecture", [a for a in NETWORKS if a != "piggyback"])
def test_halved_gradients_forget(architecture: str, name: str) -> None:
    """The test above can fail: with every optimizer, on every architecture that is trained on."""
    assert moved(architecture, HAT(rule="const", rule_value=0.5, sparsity=0.05), name, 2) == [
        (0, 1)
    ]
