"""What the loaders share: a scenario of maskcl's behind BeGin's functions."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskcl.compat.begin.scenarios.named import named
from maskcl.compat.begin.scenarios.places import Places
from maskcl.compat.begin.trainers.results import metrics_of
from maskcl.scenarios import Scenario, scores
from maskcl.scenarios.graphs.cut import Request
from maskcl.scenarios.labels import local_labels

METRICS = {"rocauc": "auroc", "aucroc": "auroc"}

# Of a task's training samples of each class, in hundredths; at least one.
VALIDATION_PERCENT = 10


class BaseScenarioLoader:
    """A scenario as BeGin's trainers use it: at one task, with that task's dataset.

    Args:
        dataset_name: "cora", "citeseer", "bitcoin" or a name of `maskcl.scenarios.load`.
        save_path: folder with the files, in the layout that their loaders know; unused by data
            that come with scikit-learn.
        num_tasks: how many; None for the scenario's own.
        incr_type: "task", "class", "domain" or "time".
        metric: "accuracy", "rocauc" or "hits@K"; None for the scenario's own.
        task_shuffle: classes or domains in an order that the seed draws.
        task_orders: the classes of each task.
        dataset_load_func: called with ``save_path=``, returns the data in place of the name's; see
            the loader.
        seed: of orders, splits and negatives; None: drawn by torch's generator.

    Attributes:
        num_feats, num_classes, num_tasks: 1 class where one output tells two classes apart.
        task_of_class: int64 [C]; in the task and class settings.
        initial_test_result: scores [T + 1] of the untrained model, which FWT needs, or None.

    Raises:
        ScenarioError, ValueError: there is no such scenario; the message says why.
    """

    problem: ClassVar[str]
    _level: ClassVar[str]

    def __init__(
        self,
        dataset_name: str,
        save_path: str | os.PathLike[str] | None = None,
        num_tasks: int | None = None,
        incr_type: str = "task",
        metric: str | None = None,
        *,
        task_shuffle: bool | int = False,
        task_orders: Sequence[Sequence[int]] | None = None,
        dataset_load_func: Callable[..., dict[str, Any]] | None = None,
        seed: int | None = None,
    ) -> None:
        self.dataset_name, self.save_path, self.incr_type = dataset_name, save_path, incr_type
        self.seed = int(torch.randint(2**31, ())) if seed is None else seed
        self.metric = metric if metric is None else METRICS.get(metric, metric)
        request = Request(
            dataset_name,
            incr_type,
            self.seed,
            None if task_orders is not None else num_tasks,
            bool(task_shuffle) and task_orders is None and incr_type != "time",
            task_orders,
            self.metric,
        )
        if dataset_load_func is None:
            self._scenario = named(type(self).__name__, self.problem, request, save_path)
        else:
            self._scenario = self._custom(request, dataset_load_func(save_path=save_path))
        self._describe()
        self._hold_out()
        self._curr_task = 0
        self.initial_test_result: Tensor | None = None
        self._rows: list[Tensor] = []
        self._update()

    def __len__(self) -> int:
        return self.num_tasks

    def get_current_dataset(self) -> Any:
        """The current task's data; None after the last task."""
        return self._current[0] if self._curr_task < self.num_tasks else None

    def get_accumulated_dataset(self) -> Any:
        """The data of all tasks up to the current one; None after the last task."""
        return self._accumulated[0] if self._curr_task < self.num_tasks else None

    def get_eval_result(self, preds: Tensor, target_split: str = "test") -> Tensor:
        """Scores [T + 1] of predictions for the current dataset's ``val`` or ``test`` samples.

        Column j is task j, NaN where it has no sample there; the last one is the mean over those
        that have, weighted by their samples.
        """
        return self._scores(preds, self._current[1][target_split], target_split)

    def get_accum_eval_result(self, preds: Tensor, target_split: str = "test") -> Tensor:
        """As `get_eval_result`, for the accumulated dataset."""
        return self._scores(preds, self._accumulated[1][target_split], target_split)

    def get_simple_eval_result(self, curr_batch_preds: Tensor, curr_batch_gts: Tensor) -> float:
        """The metric of a batch whose labels are known; NaN where it says nothing of them."""
        labels = curr_batch_gts.detach().flatten().cpu()
        return self._score(0, curr_batch_preds.detach().flatten().cpu(), labels)

    def next_task(self, preds: Tensor) -> dict[str, Any] | None:
        """Go on to the next task.

        Args:
            preds: for the current dataset's test samples.

        Returns:
            After the last task ``exp_results`` [T, T + 1], ``AP``, ``AF`` and ``FWT``; else None.
        """
        self._rows.append(self.get_eval_result(preds))
        self._curr_task += 1
        if self._curr_task < self.num_tasks:
            self._update()
            return None
        return metrics_of(torch.stack(self._rows), self.initial_test_result)

    def _custom(self, request: Request, found: dict[str, Any]) -> Scenario:
        """The scenario of what a ``dataset_load_func`` returned."""
        raise NotImplementedError

    def _describe(self) -> None:
        made = self._scenario
        self.metric = made.metric
        self.num_tasks, self.num_feats = made.num_tasks, made.input_shape[0]
        one = made.outputs[0] == 1
        self.num_classes = 1 if one else 1 + max(label for group in made.classes for label in group)
        tables = local_labels(made.classes, made.setting)
        self._to_class = [torch.full((max(table.values()) + 1,), -1) for table in tables]
        self._to_local = [torch.full((max(table) + 1,), -1) for table in tables]
        self.task_of_class = torch.zeros(max(self.num_classes, 2), dtype=torch.int64)
        for task, (table, local) in enumerate(zip(tables, self._to_local, strict=True)):
            local[list(table)] = torch.tensor(list(table.values()))
            self._to_class[task][list(table.values())] = torch.tensor(list(table))
            if self.incr_type in ("task", "class"):
                self.task_of_class[made.classes[task]] = task

    def _hold_out(self) -> None:
        """For each task, which of its training samples train and which validate, of each class."""
        self._train: list[Tensor] = []
        self._val: list[Tensor] = []
        for task in range(self.num_tasks):
            found: Any = self._scenario.train_set(task)
            labels = torch.zeros(len(found)) if found.labels is None else found.labels
            chance = torch.Generator().manual_seed(self.seed + task)
            held = torch.zeros(len(found), dtype=torch.bool)
            for label in labels.unique():
                rows = torch.nonzero(labels == label).flatten()
                rows = rows[torch.randperm(len(rows), generator=chance)]
                held[rows[: min(max(1, len(rows) * VALIDATION_PERCENT // 100), len(rows) - 1)]] = (
                    True
                )
            self._val.append(torch.nonzero(held).flatten())
            self._train.append(torch.nonzero(~held).flatten())

    def _update(self) -> None:
        task = self._curr_task
        self._current = self._build([task])
        self._accumulated = self._build(list(range(task + 1)))

    def _tested(self) -> list[int]:
        """Tasks whose test samples a dataset has: those of nodes and links that exist by now."""
        last = self._curr_task if self.incr_type == "time" and self._level != "graph" else None
        return list(range(self.num_tasks if last is None else last + 1))

    def _build(self, tasks: list[int]) -> tuple[Any, Places]:
        """The dataset whose training is these tasks'; and where their predictions will be.

        Returns:
            (dataset, places): by split and task, int64 places among the split's predictions.
        """
        raise NotImplementedError

    def _labels(self, task: int) -> Tensor:
        """Classes of a task's training samples; with one output, [n, 1]."""
        local = self._scenario.train_set(task).labels  # type: ignore[attr-defined]
        return local.unsqueeze(1) if self.num_classes == 1 else self._to_class[task][local]

    def _task_mask(self, task: int) -> Tensor:
        """Classes of a task, bool [C]."""
        mask = torch.zeros(self.num_classes, dtype=torch.bool)
        mask[self._scenario.classes[task]] = True
        return mask

    def _scores(self, preds: Tensor, places: dict[int, Tensor], split: str) -> Tensor:
        preds = preds.detach().cpu()
        row = torch.full((self.num_tasks + 1,), math.nan)
        count = sum(map(len, places.values()))
        if len(preds) != count:
            raise ValueError(
                f"{type(self).__name__}: preds has {len(preds)} rows, wanted {count}, one a {split}"
                " sample"
            )
        for task, rows in places.items():
            row[task] = self._task_score(task, preds[rows].flatten(), split)
        weights = torch.tensor([float(len(places.get(k, ()))) for k in range(self.num_tasks)])
        known = ~row[:-1].isnan()
        if bool(known.any()):
            row[-1] = (row[:-1][known] * weights[known]).sum() / weights[known].sum()
        return row

    def _task_score(self, task: int, preds: Tensor, split: str) -> float:
        if self.metric == "accuracy":
            table = self._to_local[task]
            # A class beyond the table is none of the task's.
            preds = torch.where(preds < len(table), table[preds.clamp(max=len(table) - 1)], -1)
        if split == "test":
            return self._scenario.score(task, preds)
        return self._score(task, preds, self._val_labels(task))

    def _val_labels(self, task: int) -> Tensor:
        """Local labels of a task's validation samples."""
        return self._scenario.train_set(task).labels[self._val[task]]  # type: ignore[attr-defined]

    def _score(self, task: int, preds: Tensor, labels: Tensor) -> float:
        assert self.metric is not None
        if scores.metric_reasons(self.metric, labels) is not None:
            return math.nan
        return scores.score(self.metric, task, preds, labels)
