"""What the loaders share: a scenario of maskcl's behind BeGin's functions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskcl.compat.begin.scenarios.common import BaseScenarioLoader
from maskcl.compat.begin.scenarios.held_out import held_out
from maskcl.compat.begin.scenarios.named import named
from maskcl.compat.begin.scenarios.places import Places
from maskcl.compat.begin.scenarios.scoring import Scoring, scoring_of
from maskcl.compat.begin.trainers.results import metrics_of
from maskcl.scenarios import Scenario
from maskcl.scenarios.graphs.cut import Request
from maskcl.scenarios.labels import local_labels

KEYWORDS = ("task_shuffle", "task_orders", "dataset_load_func", "seed")


class ScenarioLoader(BaseScenarioLoader):
    """A scenario as BeGin's trainers use it: at one task, with that task's dataset.

    Args:
        dataset_name: "cora", "citeseer", "bitcoin" or a name of `maskcl.scenarios.load`.
        save_path: folder with the files, in the layout that their loaders know; unused by data
            that come with scikit-learn.
        num_tasks: how many; None for the scenario's own.
        incr_type: "task", "class", "domain" or "time".
        metric: "accuracy", "rocauc", "hits@K" or one that was put into
            ``scenarios.evaluator_map``; None for the scenario's own.
        kwargs: ``task_shuffle``: classes or domains in an order that the seed draws;
            ``task_orders``: the classes of each task; ``dataset_load_func``: called with
            ``save_path=``, returns the data in place of the name's, see the loader; ``seed``: of
            orders, splits and negatives, None: drawn by torch's generator.

    Attributes:
        num_feats, num_classes, num_tasks: 1 class where one output tells two classes apart.
        task_of_class: int64 [C]; in the task and class settings.
        initial_test_result: scores [T + 1] of the untrained model, which FWT needs, or None.

    Raises:
        TypeError: an unknown keyword.
        ScenarioError, ValueError: there is no such scenario; the message says why.
    """

    problem: ClassVar[str]
    _level: ClassVar[str]
    _scenario: Scenario
    _scoring: Scoring

    def get_eval_result(self, preds: Tensor, target_split: str = "test") -> Tensor:
        """Scores [T + 1] of predictions for the current dataset's ``val`` or ``test`` samples.

        Column j is task j, NaN where it has no sample there; the last one is the mean over those
        that have, weighted by their samples.
        """
        return self._get_eval_result_inner(preds, target_split)

    def get_accum_eval_result(self, preds: Tensor, target_split: str = "test") -> Tensor:
        """As `get_eval_result`, for the accumulated dataset."""
        return self._scores(preds, self._accumulated_places[target_split], target_split)

    def get_simple_eval_result(self, curr_batch_preds: Tensor, curr_batch_gts: Tensor) -> float:
        """The metric of a batch whose labels are known; NaN where it says nothing of them."""
        return self._scoring.simple(curr_batch_preds.detach(), curr_batch_gts.detach())

    def next_task(self, preds: Tensor | None = None) -> dict[str, Any] | None:
        """Go on to the next task.

        Args:
            preds: for the current dataset's test samples; None only where ``export_mode`` is True.

        Returns:
            After the last task ``exp_results`` [T, T + 1], ``AP``, ``AF`` and ``FWT``; else None.
        """
        if not self.export_mode:
            self._rows.append(self.get_eval_result(torch.empty(0) if preds is None else preds))
        super().next_task(preds)
        if self.export_mode or self._curr_task < self.num_tasks:
            return None
        return metrics_of(torch.stack(self._rows), self.initial_test_result)

    def _init_continual_scenario(self) -> None:
        self._rows: list[Tensor] = []
        for name in self.kwargs:
            if name not in KEYWORDS:
                raise TypeError(
                    f"{type(self).__name__}: no keyword {name!r}, known are {', '.join(KEYWORDS)}"
                )
        seed, orders = self.kwargs.get("seed"), self.kwargs.get("task_orders")
        self.seed = int(torch.randint(2**31, ())) if seed is None else int(seed)
        shuffle = bool(self.kwargs.get("task_shuffle")) and orders is None
        self._scoring = scoring_of(type(self).__name__, self.metric)
        request = Request(
            self.dataset_name,
            self.incr_type,
            self.seed,
            (self.num_tasks or None) if orders is None else None,
            shuffle and self.incr_type != "time",
            orders,
            self._scoring.known,
        )
        if self.dataset_load_func is None:
            found = named(type(self).__name__, self.problem, request, self.save_path)
        else:
            found = self._custom(request, self.dataset_load_func(save_path=self.save_path))
        self._scenario = found
        self._scoring.scenario = found
        self.metric = found.metric if self.metric is None else self.metric
        self._describe()
        self._train, self._val = held_out(found, self.seed)

    def _custom(self, request: Request, found: dict[str, Any]) -> Scenario:
        """The scenario of what a ``dataset_load_func`` returned."""
        raise NotImplementedError

    def _describe(self) -> None:
        made = self._scenario
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

    def _update_target_dataset(self) -> None:
        self._target_dataset, self._target_places = self._build([self._curr_task])

    def _update_accumulated_dataset(self) -> None:
        tasks = list(range(self._curr_task + 1))
        self._accumulated_dataset, self._accumulated_places = self._build(tasks)

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
        return self._classes(task, self._scenario.train_set(task).labels)  # type: ignore[attr-defined]

    def _test_labels(self, task: int) -> Tensor:
        """Classes of a task's test samples, for exports and evaluators of the user's own."""
        return self._classes(task, self._scenario._tasks[task].labels)

    def _classes(self, task: int, local: Tensor) -> Tensor:
        return local.unsqueeze(1) if self.num_classes == 1 else self._to_class[task][local]

    def _task_mask(self, task: int) -> Tensor:
        """Classes of a task, bool [C]."""
        mask = torch.zeros(self.num_classes, dtype=torch.bool)
        mask[self._scenario.classes[task]] = True
        return mask

    def _get_eval_result_inner(self, preds: Tensor, target_split: str) -> Tensor:
        """See `get_eval_result`."""
        return self._scores(preds, self._target_places[target_split], target_split)

    def _scores(self, preds: Tensor, places: dict[int, Tensor], split: str) -> Tensor:
        preds = preds.detach().cpu()
        count = sum(map(len, places.values()))
        if len(preds) != count:
            raise ValueError(
                f"{type(self).__name__}: preds has {len(preds)} rows, wanted {count}, one a {split}"
                " sample"
            )
        if self._scoring.known is None and self._scoring.evaluator is not None:
            answers = {task: self._answers(task, split) for task in places}
            return self._scoring.all(preds, places, answers, self.num_tasks)
        row = torch.full((self.num_tasks + 1,), math.nan)
        for task, rows in places.items():
            row[task] = self._task_score(task, preds[rows].flatten(), split)
        weights = torch.tensor([float(len(places.get(k, ()))) for k in range(self.num_tasks)])
        known = ~row[:-1].isnan()
        if bool(known.any()):
            row[-1] = (row[:-1][known] * weights[known]).sum() / weights[known].sum()
        return row

    def _answers(self, task: int, split: str) -> Tensor:
        """Classes of a task's ``val`` or ``test`` samples."""
        if split == "test":
            return self._test_labels(task)
        return self._labels(task)[self._val[task]]

    def _task_score(self, task: int, preds: Tensor, split: str) -> float:
        if self._scenario.metric == "accuracy":
            table = self._to_local[task]
            # A class beyond the table is none of the task's.
            preds = torch.where(preds < len(table), table[preds.clamp(max=len(table) - 1)], -1)
        if split == "test":
            return self._scenario.score(task, preds)
        return self._scoring.of(preds, self._val_labels(task), task)

    def _val_labels(self, task: int) -> Tensor:
        """Local labels of a task's validation samples."""
        return self._scenario.train_set(task).labels[self._val[task]]  # type: ignore[attr-defined]
