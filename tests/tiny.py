"""Tiny models and tasks for the tests of methods and trainer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import TensorDataset

from maskcl.methods import TaskData
from maskcl.nn import (
    HATNetwork,
    ImportanceNetwork,
    PiggybackNetwork,
    to_hat,
    to_importance,
    to_piggyback,
)
from maskcl.nn.tasks.network import TaskNetwork
from maskcl.scenarios import Scenario, from_datasets
from maskcl.settings import TIME

SHAPE = (1, 6, 6)
CLASSES = 2

OptimizerFn = Callable[[list[dict[str, Any]]], Optimizer]

OPTIMIZERS: dict[str, OptimizerFn] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(
        p, lr=0.01, momentum=0.9, weight_decay=0.02, nesterov=True
    ),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "adam-l2": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


def mlp(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, 16),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(16, 12),
        nn.ReLU(),
        nn.Linear(12, CLASSES),
    )


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 9, 10),
        nn.ReLU(),
        nn.Linear(10, CLASSES),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.relu = nn.ReLU()
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = x + self.relu(self.norm(self.first(x)))
        x = x + self.relu(self.second(x))
        return self.head(torch.flatten(self.pool(x), 1))


def layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(36, 16),
        nn.LayerNorm(16),
        nn.GELU(),
        nn.Linear(16, 12),
        nn.LayerNorm(12),
        nn.GELU(),
        nn.Linear(12, CLASSES),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "dropout": lambda: mlp(dropout=0.3),
    "conv": conv,
    "residual": Residual,
    "layernorm": layer_norm,
}


def network(
    model: Callable[[], nn.Module] | str = "mlp", tasks: int = 5, *, shared: bool = False
) -> HATNetwork:
    """A HAT network from seed 0, with a head for each task or one for all."""
    torch.manual_seed(0)
    module = MODELS[model]() if isinstance(model, str) else model()
    classes = None if shared else [CLASSES] * tasks
    return to_hat(module, tasks, torch.zeros(2, *SHAPE), classes=classes)


def piggyback(
    model: Callable[[], nn.Module] | str = "mlp",
    tasks: int = 5,
    *,
    levels: str = "binary",
    norms: str = "frozen",
) -> PiggybackNetwork:
    """A Piggyback network on random weights from seed 0, with a head for each task."""
    torch.manual_seed(0)
    module = MODELS[model]() if isinstance(model, str) else model()
    return to_piggyback(module, tasks, classes=[CLASSES] * tasks, levels=levels, norms=norms)


def importance(
    model: Callable[[], nn.Module] | str = "mlp", tasks: int = 5, *, setting: str = "task"
) -> ImportanceNetwork:
    """A network with importances from seed 0, with the output layer that the setting wants."""
    torch.manual_seed(0)
    module = MODELS[model]() if isinstance(model, str) else model()
    if setting in ("domain", "time"):
        return to_importance(module, tasks)
    growing = setting == "class"
    classes = [CLASSES * (task + 1) if growing else CLASSES for task in range(tasks)]
    return to_importance(module, tasks, classes=classes, growing=growing)


def samples(task: int, count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noisy copies of two patterns that are the task's own; x [count, *SHAPE], y [count]."""
    generator = torch.Generator().manual_seed(1000 * seed + task)
    patterns = torch.randn(CLASSES, *SHAPE, generator=generator)
    y = torch.arange(count) % CLASSES
    return patterns[y] + 0.5 * torch.randn(count, *SHAPE, generator=generator), y


def scenario(tasks: int = 5, *, setting: str = "task", count: int = 24) -> Scenario:
    """Tasks of `samples`; the test set repeats 16 of the training samples."""
    data = [samples(t, count) for t in range(tasks)]
    if setting == "class":
        data = [(x, y + CLASSES * t) for t, (x, y) in enumerate(data)]
    pairs = [(TensorDataset(x, y), TensorDataset(x[:16], y[:16])) for x, y in data]
    made = from_datasets(pairs, setting="domain" if setting == "time" else setting)
    return Scenario(made.name, TIME, 0, made._tasks, SHAPE) if setting == "time" else made


def task_data(task: int, *, shift: int = 0) -> TaskData:
    """All of a task's `samples` in one batch; ``shift`` is added to the labels."""
    x, y = samples(task)
    return TaskData(lambda: [(x, y + shift)], lambda net, batch: (net(batch[0]), batch[1]))


@torch.no_grad()
def logits(net: TaskNetwork, task: int, x: Tensor) -> Tensor:
    """Logits with the task's hard mask."""
    training = net.training
    net.eval()
    with net.task(task):
        out = net(x)
    net.train(training)
    return out.clone()


LOAD = """
import sys, torch
from tests import tiny
torch.set_num_threads({threads})
x, _ = tiny.samples(0, seed=1)
found = dict()
for model, state in torch.load(sys.argv[1]).items():
    net = {build}
    net.load_state_dict(state)
    found[model] = [tiny.logits(net, task, x) for task in range({tasks})]
torch.save(found, sys.argv[2])
"""


def assert_same_in_a_new_process(
    nets: Mapping[str, TaskNetwork], build: str, tasks: int, folder: Path
) -> None:
    """A fresh process that loads the state dicts has the same logits, bit for bit.

    ``build``: an expression of ``model``, a name in ``nets``, that makes the network to load into.
    """
    saved, found = str(folder / "states.pt"), str(folder / "logits.pt")
    torch.save({model: net.state_dict() for model, net in nets.items()}, saved)
    code = LOAD.format(threads=torch.get_num_threads(), build=build, tasks=tasks)
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code, saved, found], check=True, cwd=root)
    x, _ = samples(0, seed=1)
    outs = torch.load(found)
    assert outs.keys() == nets.keys()
    for model, net in nets.items():
        for task, out in enumerate(outs[model]):
            assert torch.equal(out, logits(net, task, x)), (model, task)


def train_task(
    net: TaskNetwork,
    method,
    task: int,
    optimizer_fn: OptimizerFn,
    *,
    steps: int = 10,
    seed: int = 0,
    protect: bool = True,
    finish: bool = True,
) -> list[float]:
    """The hooks in a loop of one's own: one epoch of ``steps`` steps on the whole task; losses."""
    device = next(net.parameters()).device
    x, y = (t.to(device) for t in samples(task))
    net.train()
    state = method.begin_task(net, task, seed=seed)
    optimizer = optimizer_fn(method.parameter_groups(net, task))
    guard = method.protect(optimizer, net, state) if protect else None
    losses = []
    for step in range(steps):
        method.before_step(net, state, step / (steps - 1) if steps > 1 else 1.0)
        optimizer.zero_grad()
        with net.task(task, state.scale):
            loss = nn.functional.cross_entropy(net(x), y) + method.loss_term(net, state)
        loss.backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)
        losses.append(float(loss.detach()))
    if guard is not None:
        guard.remove()
    if finish:
        method.end_task(net, state, task_data(task))
    return losses
