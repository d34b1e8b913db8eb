"""HAT steps through the surfaces of other projects, `python -m benchmarks.surfaces [rounds]`.

The networks are the HAT paper's, batch 64, SGD, second task, as in bench_step. hat-cl
(https://github.com/xduan7/hat-cl) and CLArena (https://github.com/pengxiang-wang/continual-learning-arena)
themselves are timed beside what stands in for them where their packages `hat` and `clarena` can be
imported; else their rows are left out, which is said.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.__main__ import commit, processor
from benchmarks.bench_step import BATCH, NETWORKS, SCALE, SPARSITY, maskcl_step, plain_step
from benchmarks.paired import compare

OptimizerOf = Callable[[Any], torch.optim.Optimizer]
PAPER = [784, 2000, 2000, 10]
STEP = 50  # of 100 in the epoch, for CLArena's annealing
HAT_CL = {"through maskcl.compat.hat_cl": "maskcl.compat.hat_cl", "hat-cl": "hat"}
CLARENA = {"through maskcl.compat.clarena": "maskcl.compat.clarena", "CLArena": "clarena"}


def sgd(params: Any) -> torch.optim.Optimizer:
    """As in bench_step."""
    return torch.optim.SGD(params, lr=0.05)


class _MLP(nn.Module):
    """An MLP of a hat-cl package's layers."""

    def __init__(self, package: str, config: Any, widths: Sequence[int]) -> None:
        super().__init__()
        linear = importlib.import_module(f"{package}.modules").HATLinear
        self.layers = nn.ModuleList(linear(i, o, config) for i, o in itertools.pairwise(widths))
        self.relu = nn.ReLU()

    def forward(self, payload: Any) -> Any:
        for layer in self.layers[:-1]:
            payload = layer(payload).forward_by(self.relu)
        return self.layers[-1](payload)


class _Conv(nn.Module):
    """The HAT paper's conv net of a hat-cl package's layers."""

    def __init__(self, package: str, config: Any) -> None:
        super().__init__()
        modules = importlib.import_module(f"{package}.modules")
        self.payload = importlib.import_module(package).HATPayload
        conv, linear = modules.HATConv2d, modules.HATLinear
        sizes = [(3, 64, 4), (64, 128, 3), (128, 256, 2)]
        self.convs = nn.ModuleList(conv(*size, config) for size in sizes)
        widths = [1024, 2048, 2048, 10]
        self.layers = nn.ModuleList(linear(i, o, config) for i, o in itertools.pairwise(widths))
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)

    def forward(self, payload: Any) -> Any:
        for conv in self.convs:
            payload = conv(payload).forward_by(self.relu).forward_by(self.pool)
        # hat-cl itself has no mask that survives a flatten: both get a payload made anew.
        scale = payload.mask_scale
        payload = self.payload(payload.data.flatten(1), task_id=payload.task_id, mask_scale=scale)
        for layer in self.layers[:-1]:
            payload = layer(payload).forward_by(self.relu)
        return self.layers[-1](payload)


def hat_cl_step(
    package: str,
    widths: Sequence[int] | None,
    x: torch.Tensor,
    y: torch.Tensor,
    optimizer_of: OptimizerOf = sgd,
) -> Callable[[], None]:
    """The second task's step on an MLP or, without widths, on the paper's conv net.

    The first task has locked about half of the units.
    """
    hat = importlib.import_module(package)
    utils = importlib.import_module(f"{package}.utils")
    config = hat.HATConfig(num_tasks=2, max_trn_mask_scale=400.0)
    model = _MLP(package, config, widths) if widths else _Conv(package, config)
    model.train()

    def step(task: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        payload = hat.HATPayload(x, task_id=task, mask_scale=SCALE)
        loss = F.cross_entropy(model(payload).data, y)
        options = {"task_id": task, "mask_scale": SCALE}
        (loss + SPARSITY * utils.get_hat_reg_term(model, "uniform", **options)).backward()
        optimizer.step()

    def optimizer() -> torch.optim.Optimizer:
        return optimizer_of([p for p in model.parameters() if p.requires_grad])

    step(0, optimizer())
    return functools.partial(step, 1, optimizer())


def clarena_step(
    package: str,
    widths: Sequence[int],
    x: torch.Tensor,
    y: torch.Tensor,
    optimizer_of: OptimizerOf = sgd,
) -> Callable[[], None]:
    """The second task's step on an MLP, mode "hat"."""
    backbones = importlib.import_module(f"{package}.backbones")
    algorithms = importlib.import_module(f"{package}.cl_algorithms")
    heads = importlib.import_module(f"{package}.heads")
    inputs, *hidden, classes = widths
    backbone = backbones.HATMaskMLP(inputs, hidden[:-1], hidden[-1], "sigmoid")
    algorithm = _untrained(algorithms.HAT)(
        backbone, heads.HeadsTIL(hidden[-1]), "hat", 400.0, 50.0, SPARSITY
    )
    algorithm.trainer = SimpleNamespace(num_training_batches=100)
    for task in (1, 2):
        algorithm.setup_task_id(task, classes, _named(optimizer_of), None)
        own = algorithm.configure_optimizers()
        algorithm.own = own["optimizer"] if isinstance(own, dict) else own
        algorithm.on_train_start()
        algorithm.training_step((x, y), STEP)
        if task == 1:
            algorithm.on_train_end()
    return lambda: algorithm.training_step((x, y), STEP)


def _named(optimizer_of: OptimizerOf) -> Callable[..., torch.optim.Optimizer]:
    """CLArena gives parameters by name."""
    return lambda params: optimizer_of(params)


def _untrained(kind: type) -> type:
    """The algorithm without Lightning's trainer, for both packages alike."""

    class Alone(kind):  # type: ignore[misc, valid-type]
        own: Any = None
        trainer: Any = None

        def optimizers(self) -> Any:
            return self.own

        def manual_backward(self, loss: torch.Tensor) -> None:
            loss.backward()

    return Alone


def steps_of(network: str) -> dict[str, Callable[[], None]]:
    """All that can be timed here, each on a network of its own."""
    build, shape = NETWORKS[network]
    x, y = torch.rand(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    widths = PAPER if network.startswith("MLP") else None
    plain, masked = plain_step(build().train()), maskcl_step(build().train(), x)
    steps: dict[str, Callable[[], None]] = {
        "no mask": lambda: plain(x, y),
        "maskcl": lambda: masked(x, y),
    }
    for name, package in HAT_CL.items():
        if importable(package):
            steps[name] = hat_cl_step(package, widths, x, y)
    for name, package in CLARENA.items():
        if network.startswith("MLP") and importable(package):
            steps[name] = clarena_step(package, PAPER, x, y)
    return steps


def importable(package: str) -> bool:
    """Whether it is here, else says that its row is left out."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        print(f"{package} cannot be imported, its row is left out: {error}")
        return False
    return True


def main(rounds: int) -> None:
    """Print medians and ratios."""
    torch.set_num_threads(2)
    print(f"{processor()}, torch {torch.__version__}, {rounds} rounds, commit {commit()}")
    for network in NETWORKS:
        torch.manual_seed(0)
        taken = compare(f"{network}, batch {BATCH}, SGD", steps_of(network), rounds)
        for ours, theirs in (tuple(HAT_CL), tuple(CLARENA)):
            if theirs in taken[0]:
                ratio = statistics.median(t[ours] / t[theirs] for t in taken)
                print(f"  {ours}: {ratio:.3f} of {theirs}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
