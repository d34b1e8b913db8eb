"""Baselines in the trainer's own loop: a fresh network for each task, alone or with those before.

Only the network of the last task is kept. None of them keeps the promise of masks, that finished
tasks' outputs stay: there is a new network, or nothing protects the one there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskcl.nn.importance.network import shared_norms
from maskcl.nn.tasks.frozen_modules import thaw_norm
from maskcl.problems import Problem
from maskcl.scenarios.base import Scenario, length
from maskcl.training.plan import Running
from maskcl.training.result import Result
from maskcl.training.run_checkpoint import RunCheckpoint, put_back
from maskcl.training.trainer import Trainer

if TYPE_CHECKING:
    from maskcl.nn import ImportanceNetwork


class FreshTrainer(Trainer):
    """Every task starts from the weights that the network came with.

    Row i of the matrix is of the network of task i. For the method `Joint`, with the problem and
    scenario of `together`.
    """

    net: ImportanceNetwork

    def fit(self, resume: bool = False) -> Result:
        """As `Trainer.fit`.

        Raises:
            ValueError: the network has learned something already.
        """
        if bool(self.net.finished.any()):
            raise ValueError(
                "Trainer: the network has finished tasks, and each task's is trained from its start"
            )
        self._fresh = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        return super().fit(resume)

    def _begin_task(self, task: int, saved: RunCheckpoint | None) -> Running:
        if saved is None:
            put_back(self.net, self._fresh)
            for norm in shared_norms(self.net.model):  # those that an earlier task's end froze
                thaw_norm(norm, self.net.training)
        return super()._begin_task(task, saved)


class IndependentTrainer(FreshTrainer):
    """A network for each task: earlier tasks' scores are those of their own networks."""

    def _end_task(self, run: Running) -> None:
        super()._end_task(run)
        matrix = self.result.matrix
        for task in range(len(matrix)):
            if task != run.task:  # no network has learned a later task yet
                matrix[run.task, task] = matrix[task, task] if task < run.task else math.nan


class Parts:
    """The training sets of several tasks, as one.

    Attributes:
        sets: by task.
        active: for each task, the network's that is active for its samples.
    """

    def __init__(self, sets: list[Any], active: list[int]) -> None:
        self.sets, self.active = sets, active
        self.sizes = [length(part) for part in sets]

    def __len__(self) -> int:
        return sum(self.sizes)


class _SoFar(Scenario):
    """A scenario whose training set of a task is of all tasks up to it."""

    def __init__(self, scenario: Scenario) -> None:
        self.__dict__.update(scenario.__dict__)

    def train_set(self, task: int) -> Any:
        known = self.setting.task_id_at_test
        sets = [super(_SoFar, self).train_set(k) for k in range(task + 1)]
        return Parts(sets, [k if known else task for k in range(task + 1)])


class _Mixed:
    """A problem whose training batches are of one task each, those of several mixed.

    Each task's samples come in the order given, batch by batch, and which task's is next is drawn.

    Args:
        problem: of each task.
        sizes: numbers of training samples of the tasks, in order.
    """

    def __init__(self, problem: Problem, sizes: list[int]) -> None:
        self._problem, self._sizes = problem, sizes
        self.name = problem.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._problem, name)

    def train_batches(
        self,
        dataset: Parts,
        order: Any,
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Iterator[tuple[int, Any]]:
        """(the network's task, a batch of that task)."""
        rows, first, batches, turns = torch.as_tensor(order), 0, [], []
        for index, part in enumerate(dataset.sets):
            last = first + dataset.sizes[index]
            own = rows[(rows >= first) & (rows < last)] - first
            seed = int(torch.randint(2**62, (), generator=generator))
            draws = torch.Generator().manual_seed(seed)
            batches.append(iter(self._problem.train_batches(part, own, batch_size, draws)))
            turns += [index] * self._problem.num_batches(len(own), batch_size)
            first = last
        mixed = torch.randperm(len(turns), generator=generator)
        for turn in mixed.tolist():
            yield dataset.active[turns[turn]], next(batches[turns[turn]])

    def num_batches(self, num_samples: int, batch_size: int) -> int:
        """How many of the first tasks together, which have so many samples."""
        count = 0
        for size in self._sizes:
            if num_samples <= 0:
                break
            count += self._problem.num_batches(size, batch_size)
            num_samples -= size
        return count

    def forward(self, net: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """The problem's, with the batch's task active."""
        task, own = batch
        network: Any = net
        with network.task(task):
            found: tuple[Tensor, Tensor, Tensor | None] = self._problem.forward(net, own)
        return found


def together(problem: Problem, scenario: Scenario) -> tuple[Any, Scenario]:
    """Problem and scenario for `Joint`: each task's training set is of all tasks up to it.

    Batches are of one task each, and mixed. Where the setting hides a sample's task, the network is
    as the latest task sees it. Samples are held out of none, and batches not accumulated; in one
    process.
    """
    return _Mixed(problem, [train for train, _ in scenario.sizes]), _SoFar(scenario)


TRAINERS: dict[str, type[Trainer]] = {"joint": FreshTrainer, "independent": IndependentTrainer}
