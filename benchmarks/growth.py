"""Many tasks on a network that is soon full, with and without growth, beside fresh networks.

    python -m benchmarks.growth --seeds 100,101,102

Permuted digits, each task with a head of its own. Before a task that would find fewer units free
than a share of the start's, the network grows by as many as it started with; or it never does. A
fresh network learns one task alone, with the same recipe and the width of the start. A row is a
seed: mean test accuracy of the tasks after the first eight, the tasks before which the network
grew, and the first that found less than 2 % free where it did not. Finished tasks' outputs are
compared bit for bit.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from maskcl import models, scenarios
from maskcl.methods import HAT, derive_seed
from maskcl.nn import HATNetwork, to_hat
from maskcl.ops import epoch_progress
from maskcl.problems import Vision
from maskcl.scenarios import Scenario

FULL_BEFORE = 8
LEAST_FREE = 0.02


def tensors_of(scenario: Scenario, task: int) -> tuple[Tensor, Tensor]:
    """All training samples of a task and their labels."""
    data = scenario.train_set(task)
    pairs = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
    return torch.stack([x for x, _ in pairs]), torch.tensor([int(y) for _, y in pairs])


def learn(
    net: HATNetwork, task: int, scenario: Scenario, options: argparse.Namespace, seed: int
) -> float:
    """Train a task; returns its test accuracy."""
    method = HAT(sparsity=options.sparsity)
    state = method.begin_task(net, task, seed=seed)
    optimizer = torch.optim.Adam(method.parameter_groups(net, task), lr=options.lr)
    guard = method.protect(optimizer, net, state)
    x, y = tensors_of(scenario, task)
    generator = torch.Generator().manual_seed(derive_seed("order", seed, task))
    net.train()
    for _ in range(options.epochs):
        batches = torch.randperm(len(x), generator=generator).split(options.batch_size)
        for step, rows in enumerate(batches):
            method.before_step(net, state, epoch_progress(step, len(batches)))
            optimizer.zero_grad()
            with net.task(task, state.scale):
                loss = F.cross_entropy(net(x[rows]), y[rows]) + method.loss_term(net, state)
            loss.backward()
            method.after_backward(net, state)
            optimizer.step()
            method.after_step(net, state)
    if guard is not None:
        guard.remove()
    method.end_task(net, state)
    return scenario.score(task, outputs(net, task, scenario).argmax(1))


@torch.no_grad()
def outputs(net: HATNetwork, task: int, scenario: Scenario) -> Tensor:
    """Logits of a task's test samples."""
    (x,) = Vision().test_batches(scenario.test_inputs(task), 1_000_000)
    net.eval()
    with net.task(task):
        return net(x)


def network(scenario: Scenario, width: int, seed: int) -> HATNetwork:
    """An MLP of two hidden layers, its weights from the seed."""
    torch.manual_seed(derive_seed("model", seed))
    model = models.mlp(scenario.input_shape, 10, hidden=(width, width))
    example = torch.zeros(2, *scenario.input_shape)
    return to_hat(model, scenario.num_tasks, example, classes=scenario.outputs)


def run(
    scenario: Scenario, options: argparse.Namespace, seed: int, *, grows: bool
) -> tuple[list[float], list[int]]:
    """Accuracy of each task, and before which the network was full (and, maybe, grew)."""
    net = network(scenario, options.width, seed)
    found: list[float] = []
    full: list[int] = []
    known: list[Tensor] = []
    for task in range(scenario.num_tasks):
        capacity = net.capacity()
        free = sum(capacity.free_units.values())
        # Growing asks for a share of the width of the start, being full for one of all units.
        width = 2 * options.width if grows else sum(capacity.units.values())
        if free < (options.least_free if grows else LEAST_FREE) * width:
            full.append(task)
            if grows:
                net.grow(options.width, seed=seed)
        found.append(learn(net, task, scenario, options, seed))
        known.append(outputs(net, task, scenario))
    for task, wanted in enumerate(known):
        assert torch.equal(outputs(net, task, scenario), wanted), f"task {task} was forgotten"
    return found, full


def _fresh(scenario: Scenario, options: argparse.Namespace, seed: int, task: int) -> float:
    """Accuracy of a task that a network of its own learns."""
    net = network(scenario, options.width, derive_seed("fresh", seed, task))
    return learn(net, task, scenario, options, seed)


def main(arguments: list[str]) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="100,101,102")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--width", type=int, default=100)
    parser.add_argument("--least-free", type=float, default=0.5)
    parser.add_argument("--sparsity", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=0.005)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    later = range(FULL_BEFORE, options.tasks)
    print("seed  grown   full    fresh   grown - fresh  grew before tasks   full from task")
    for seed in map(int, options.seeds.split(",")):
        scenario = scenarios.load("permuted-digits", seed=seed, tasks=options.tasks, setting="task")
        grown, grew = run(scenario, options, seed, grows=True)
        kept, full = run(scenario, options, seed, grows=False)
        fresh = [_fresh(scenario, options, seed, task) for task in later]
        later_of = [[part[task] for task in later] for part in (grown, kept)]
        means = [sum(part) / len(later) for part in (*later_of, fresh)]
        first = full[0] if full else "never"
        print(
            f"{seed:4}  {means[0]:.4f}  {means[1]:.4f}  {means[2]:.4f}  {means[0] - means[2]:+.4f}"
            f"        {grew}   {first}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
