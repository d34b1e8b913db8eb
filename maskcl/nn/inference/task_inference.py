"""Infer which task a sample is of, where nobody tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maskcl.nn.inference.measuring import measure
from maskcl.nn.inference.sample_features import SPACES, PerSample, SampleFeatures
from maskcl.nn.inference.scoring import Scorer
from maskcl.nn.inference.stored_statistics import StoredStatistics, arguments_of


class Inferred(NamedTuple):
    """What was inferred of n samples, T tasks.

    Attributes:
        task: int64 [n], the task whose statistics fit best.
        label: int64 [n], what the network says under that task's mask: a class of the task's head.
        outputs: [n, C], the network's outputs there; -inf where that task has no such class.
        alone: int64 [n], the class of that task that the statistics say without the network.
        evidence: [n, T], the best score among each task's classes; -inf of tasks not finished.
    """

    task: Tensor
    label: Tensor
    outputs: Tensor
    alone: Tensor
    evidence: Tensor


class Nearest(NamedTuple):
    """The task and the class whose statistics fit best; as in `Inferred`, label its ``alone``."""

    task: Tensor
    label: Tensor
    evidence: Tensor


class TaskInference(StoredStatistics):
    """Statistics of the finished tasks' training samples, and the task that fits a sample best.

    Put into a network as ``net.inference``, or given to a Trainer, it is filled by the methods'
    ``end_task``: sums in evaluation under hard masks; no sample is kept. ``net.infer(x)`` asks it.

    ``space="shared"``: random features of the input, which no task changes, class means and one
    scatter summed over tasks: linear discriminant analysis of all classes; the class says the task
    (RanPAC, McDonnell et al. 2023, arXiv 2307.02251; RanDumb, Prabhu et al. 2024, 2402.08823).
    ``space="base"``: the same of what a PiggybackNetwork's frozen base gives its heads, no weight
    masked. ``space="masked"``: under each task's mask, Gaussian scores of its classes on the first
    masked layer, relative to the training samples' own: for inputs of no fixed size.

    Args:
        space: as above.
        features: random ones, how many; None: 16 for each number of the input, at most 2,000. A
            task takes two bytes for the square of it.
        shrinkage: added to the variances, as a share of their mean; None: features over samples,
            of random ones a tenth of that.
        seed: of the random features.
        per_sample: (rows [R, F], the network's arguments) -> [n, F'], where the rows that a network
            is given are not its samples (nodes, links, graphs): the problems' ``per_sample``.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        space: str = "shared",
        *,
        features: int | None = None,
        shrinkage: float | None = None,
        seed: int = 0,
        per_sample: PerSample | None = None,
    ) -> None:
        if space not in SPACES:
            raise ValueError(f"TaskInference: space is {space!r}, wanted one of {SPACES}")
        _check_whole("features", features, 1)
        _check_whole("seed", seed, 0)
        is_number = isinstance(shrinkage, (int, float)) and not isinstance(shrinkage, bool)
        if shrinkage is not None and not (is_number and 0 <= shrinkage < float("inf")):
            raise ValueError(
                f"TaskInference: shrinkage is {shrinkage!r}, wanted a finite number of at least 0"
            )
        super().__init__(
            {"space": space, "features": features, "shrinkage": shrinkage, "seed": seed}
        )
        self.shrinkage = shrinkage
        self.features = SampleFeatures(space, features, seed, per_sample)
        self._scorer: Scorer | None = None

    @classmethod
    def of(cls, config: Tensor) -> TaskInference:
        """One without statistics, with the arguments that a state's ``config`` says."""
        return cls(**arguments_of(config))

    def forget(self, task: int) -> None:
        """Drop a task's statistics, and what was made of them."""
        super().forget(task)
        self._scorer = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_scorer": None}

    @property
    def space(self) -> str:
        """The argument."""
        return self.features.space

    @torch.no_grad()
    def measure(self, net: Any, task: int, data: Any) -> None:
        """Gather a task's statistics; what was measured of it before is replaced.

        Args:
            net: the network, whose mask of the task is final.
            task: its index.
            data: a ``methods.TaskData`` of its training samples; where processes share the work,
                this one's.

        Raises:
            ValueError: there is no sample, features are not finite, or targets are no classes.
        """
        with evaluation(net), self._in_full_precision(), net.task(task):
            found = measure(
                task,
                lambda args: self.features(net, args),
                data,
                self.shrinkage,
                own=self.space == "masked",
                device=net.finished.device,
            )
        # Of the same size as those of any other task, which are all of one size.
        other = next((int(k) for k in self.statistics if int(k) != task), task)
        width = len(found.varies)
        was = width if self.space == "masked" or other == task else len(self._of(other).varies)
        if width != was:
            raise ValueError(
                f"TaskInference: inputs of task {task} have {width} features, those of task"
                f" {other} {was}: wanted one size, or space='masked'"
            )
        self.statistics[str(task)] = found

    @torch.no_grad()
    def infer(self, net: Any, *args: Any) -> Inferred:
        """The task of each sample, and the network's output under its mask, in evaluation.

        Args:
            net: the network that was measured.
            args: of its forward; a single tensor is split by task, several are run as a whole under
                each task that occurs.

        Raises:
            RuntimeError: no task is finished, or one was not measured.
            ValueError: the arguments need ``per_sample``, or inputs are of another size.
        """
        nearest = self.nearest(net, *args)
        classes = {task: self._of(task).labels for task in self._measured(net)}
        with evaluation(net):
            outputs, label = net.answers(nearest.task, classes, args)
        return Inferred(nearest.task, label, outputs, nearest.label, nearest.evidence)

    @torch.no_grad()
    def nearest(self, net: Any, *args: Any) -> Nearest:
        """What the statistics say without the network's outputs; else as `infer`."""
        tasks = self._measured(net)
        statistics = [self._of(task) for task in tasks]
        scorer = self._scorer
        if scorer is None or not scorer.is_of(tasks, statistics):
            # Tensors made in inference mode could take no part in training later.
            with torch.inference_mode(False), torch.no_grad():
                scorer = Scorer(tasks, statistics, self.space, self.shrinkage)
            self._scorer = scorer
        with evaluation(net), self._in_full_precision():
            scores = scorer.scores(net, self.features, args)
        best = torch.stack([s.amax(1) for s in scores], 1)
        labels = [s.labels[x.argmax(1)] for s, x in zip(statistics, scores, strict=True)]
        place = best.argmax(1, keepdim=True)
        evidence = best.new_full((len(best), net.num_tasks), -torch.inf)
        evidence[:, tasks] = best
        task = torch.tensor(tasks, device=best.device)[place[:, 0]]
        return Nearest(task, torch.stack(labels, 1).gather(1, place)[:, 0], evidence)

    def _in_full_precision(self) -> torch.autocast:
        """No autocast: what is measured in one precision does not compare with another."""
        return torch.autocast(self.config.device.type, enabled=False)

    def _measured(self, net: Any) -> list[int]:
        """The finished tasks."""
        finished: list[int] = torch.nonzero(net.finished).flatten().tolist()
        if not finished:
            raise RuntimeError("TaskInference: no task is finished, so there is none to infer")
        if missing := [task for task in finished if str(task) not in self.statistics]:
            raise RuntimeError(
                f"TaskInference: tasks {missing} were not measured: a method's end_task does it"
                " where net.inference was set before, net.measure_task(task, data) afterwards"
            )
        return finished


def _check_whole(name: str, value: Any, low: int) -> None:
    if value is None and name == "features":
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(
            f"TaskInference: {name} is {value!r}, wanted a whole number of at least {low}"
        )


@contextmanager
def evaluation(net: nn.Module) -> Iterator[None]:
    """Every module in evaluation, and back as it was."""
    training = [module for module in net.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
