"""Which training samples a process sees and when: functions of the seed, the task and the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Share(NamedTuple):
    """What a process has of one batch of all processes.

    Attributes:
        batch: samples of the whole batch.
        own: how many of them its gradients count for; they add up to ``batch``.
        is_counted: whether they go into sums here; where all processes have the same rows, in the
            first alone.
    """

    batch: int
    own: float
    is_counted: bool


@dataclass(frozen=True)
class Samples:
    """This process's share of tasks' training samples.

    The order of an epoch is cut into batches of all processes together, as the problem cuts one of
    that size; each is dealt to the processes, to within one sample. Where that left a process less
    than two samples, whose batch statistics would not exist, every process takes the whole batch.

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
        """How many batches an epoch has, the same in every process."""
        return self.problem.num_batches(len(dataset), self.batch_size * self.fabric.world_size)

    def shares(self, dataset: Any) -> list[Share]:
        """This process's share of each batch of an epoch."""
        world, rank = self.fabric.world_size, self.fabric.global_rank
        size, steps = self.batch_size * world, self.steps(dataset)
        sizes = [size] * (steps - 1)
        sizes.append(max(len(dataset) - sum(sizes), 1))  # the last has what is left over
        return [
            Share(n, n / world, rank == 0)
            if self._is_taken_whole(n)
            else Share(n, len(range(rank, n, world)), True)
            for n in sizes
        ]

    def epoch(self, task: int, epoch: int, dataset: Any) -> Iterator[Any]:
        """An epoch's batches, on the device.

        What samples draw while they are read depends on the seed, the task, the epoch, the batch's
        place and, of several processes, on which it is, alone.
        """
        parts = self._parts(task, epoch, len(dataset))
        generator = self._chance("batches", task, epoch)
        if self._is_cut_so(parts):
            yield from self._batches(task, dataset, torch.cat(parts), self.batch_size, generator)
            return
        *head, tail = parts
        if head:
            rows = torch.cat(head)
            yield from self._batches(task, dataset, rows, self.batch_size, generator)
        size = max(len(tail), self.batch_size)
        yield from self._batches(task, dataset, tail, size, generator)

    def order(self, task: int, epoch: int, count: int) -> Tensor:
        """This process's samples of an epoch, in order, int64 [n]."""
        return torch.cat(self._parts(task, epoch, count))

    def task_data(self, task: int, dataset: Any, *, whole: bool = False) -> TaskData:
        """All of a task's samples in order, none left out, for a method that measures on them.

        Args:
            task: whose head's labels they have.
            dataset: the samples.
            whole: each process has whole batches of all processes' size, for what depends on which
                samples a batch has; else its share of the samples, which may be none.
        """
        rows = torch.arange(len(dataset))
        world, rank = self.fabric.world_size, self.fabric.global_rank
        size, parts = self.batch_size, [rows[rank::world]] if rank < len(rows) else []
        if whole and world > 1:
            size, parts = size * world, self._cut(rows)[rank::world]

        def batches() -> Iterator[Any]:
            generator = self._chance("measuring", task)
            for part in parts:
                yield from self._batches(task, dataset, part, size, generator)

        def forward(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
            outputs, target, _ = self.problem.forward(module, batch)
            return outputs, target

        segments = getattr(self.problem, "segments", None)
        return TaskData(batches, forward, segments, self.problem.likelihood)

    def _chance(self, purpose: str, *parts: int) -> torch.Generator:
        """Of this process: one that is alone has no number."""
        rank = (self.fabric.global_rank,) if self.fabric.world_size > 1 else ()
        return chance(self.seed, purpose, *parts, *rank)

    def _parts(self, task: int, epoch: int, count: int) -> list[Tensor]:
        """This process's rows of each batch of an epoch, int64 [n] each."""
        order = torch.randperm(count, generator=chance(self.seed, "shuffle", task, epoch))
        world, rank = self.fabric.world_size, self.fabric.global_rank
        if world == 1:
            return [order]  # the problem cuts it
        return [
            rows if self._is_taken_whole(len(rows)) else rows[rank::world]
            for rows in self._cut(order)
        ]

    def _cut(self, order: Tensor) -> list[Tensor]:
        """Batches of all processes together; the last has what is left over."""
        size, steps = self.batch_size * self.fabric.world_size, self.steps(order)
        starts = range(0, steps * size, size)
        return [order[i : i + size] for i in starts[:-1]] + [order[starts[-1] :]]

    def _is_taken_whole(self, count: int) -> bool:
        """Whether every process takes all of a batch of so many samples."""
        world = self.fabric.world_size
        return world > 1 and count // world < min(2, self.batch_size)

    def _is_cut_so(self, parts: list[Tensor]) -> bool:
        """Whether the problem would cut these rows, one after the other, into the same batches."""
        rows = sum(map(len, parts))
        is_one = self.fabric.world_size == 1
        return is_one or self.problem.num_batches(rows, self.batch_size) == len(parts)

    def _batches(
        self, task: int, dataset: Any, order: Tensor, size: int, generator: torch.Generator
    ) -> Iterator[Any]:
        source = self.loader.of(dataset)
        for batch in self.problem.train_batches(source, order, size, generator):
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
