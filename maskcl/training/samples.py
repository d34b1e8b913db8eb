"""Which training samples a process sees and when: functions of the seed, the task and the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskcl.methods import TaskData, derive_seed
from maskcl.problems import Problem
from maskcl.problems.loading import Loader
from maskcl.training.class_labels import ClassLabels

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.scenarios.base import Scenario


def chance(seed: int, purpose: str, *parts: int) -> torch.Generator:
    """A generator that depends on the seed, the purpose and these numbers alone."""
    return torch.Generator().manual_seed(derive_seed(purpose, seed, *parts))


@dataclass(frozen=True)
class Samples:
    """This process's share of tasks' training samples.

    Attributes:
        problem: makes batches of them.
        fabric: says how many processes there are, and which this is.
        batch_size: of this process.
        seed: of the order.
        labels: where each task's head has its own classes alone.
        loader: reads samples that are not in memory.
    """

    problem: Problem
    fabric: Fabric
    batch_size: int
    seed: int
    labels: ClassLabels | None = None
    loader: Loader = field(default_factory=Loader)

    def steps(self, dataset: Any) -> int:
        """How many steps an epoch has, the same in every process."""
        return self.problem.num_batches(len(dataset) // self.fabric.world_size, self.batch_size)

    def epoch(self, task: int, epoch: int, dataset: Any) -> Iterator[Any]:
        """An epoch's batches, on the device.

        What samples draw while they are read depends on the seed, the task, the epoch and the
        batch's place alone.
        """
        mine = self.order(task, epoch, len(dataset))
        return self._batches(task, dataset, mine, chance(self.seed, "batches", task, epoch))

    def order(self, task: int, epoch: int, count: int) -> Tensor:
        """This process's samples of an epoch, in order, int64 [n].

        Raises:
            ValueError: there are fewer samples than processes.
        """
        world, rank = self.fabric.world_size, self.fabric.global_rank
        if count < world:
            raise ValueError(f"Trainer: task {task} has {count} training samples, wanted {world}")
        order = torch.randperm(count, generator=chance(self.seed, "shuffle", task, epoch))
        # Every process takes the same number of steps, or the gradients' exchange would hang.
        return order[rank : count - count % world : world]

    def task_data(self, task: int, dataset: Any) -> TaskData:
        """All of a task's samples in order, none left out, for a method that measures on them."""
        mine = torch.arange(self.fabric.global_rank, len(dataset), self.fabric.world_size)

        def forward(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
            outputs, target, _ = self.problem.forward(module, batch)
            return outputs, target

        return TaskData(
            lambda: self._batches(task, dataset, mine, chance(self.seed, "measuring", task)),
            forward,
            getattr(self.problem, "segments", None),
            self.problem.likelihood,
        )

    def _batches(
        self, task: int, dataset: Any, order: Tensor, generator: torch.Generator
    ) -> Iterator[Any]:
        source = self.loader.of(dataset)
        for batch in self.problem.train_batches(source, order, self.batch_size, generator):
            own = batch if self.labels is None else self.labels.batch(task, batch)
            yield self.fabric.to_device(own)


def loader_of(problem: Problem, scenario: Scenario, fabric: Fabric, workers: int) -> Loader:
    """What reads a scenario's samples, where the problem does not on its own.

    Raises:
        ValueError: no such number of workers.
    """
    tasks = range(scenario.num_tasks) if workers else ()
    datasets = [part for t in tasks for part in (scenario.train_set(t), scenario.test_inputs(t))]
    try:
        loader = Loader(workers, datasets, pin=fabric.device.type == "cuda")
    except ValueError as error:
        raise ValueError(f"Trainer: {error}") from None
    return loader if getattr(problem, "reads_items", False) else Loader()
