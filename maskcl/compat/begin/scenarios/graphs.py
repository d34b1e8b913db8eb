"""The loader of graph classification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.scenarios.loader import ScenarioLoader
from maskcl.compat.begin.scenarios.nodes import CUSTOM
from maskcl.compat.begin.scenarios.places import Places, flags, in_a_row
from maskcl.graph import Graph
from maskcl.scenarios import Scenario
from maskcl.scenarios.graphs.build import graph_scenario
from maskcl.scenarios.graphs.cut import Items, Request, split


class GCScenarioLoader(ScenarioLoader):
    """Graph classification; arguments as for `ScenarioLoader`.

    A dataset is a dict of lists, ``train``, ``val`` and ``test``, of (DataGraph, label) or, in the
    task setting, (DataGraph, label, classes of its task bool [C]); a hidden label is -1.

    A ``dataset_load_func`` returns ``graphs``, an iterable of (DataGraph with ``ndata["feat"]``,
    label), and ``domain_info`` or ``time_info``, int64 [n]. Test graphs are drawn by the seed.
    """

    problem = _level = "graph"

    def _custom(self, request: Request, found: dict[str, Any]) -> Scenario:
        items = list(found["graphs"])
        graphs = [Graph(g.ndata["feat"], torch.stack(g.edges())) for g, *_ in items]
        labels = torch.tensor([int(label) for _, label, *_ in items])
        train, test = split(labels, request.seed)
        rows = Items(labels, train, test, found.get("domain_info"), found.get("time_info"))
        return graph_scenario(request, graphs, rows, CUSTOM)

    def _build(self, tasks: list[int]) -> tuple[dict[str, Any], Places]:
        test: dict[int, Any] = {task: self._scenario.test_inputs(task) for task in self._tested()}
        dataset: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
        for task in tasks:
            found: Any = self._scenario.train_set(task)
            labels = self._labels(task)
            for name, rows in (("train", self._train[task]), ("val", self._val[task])):
                chosen = [found.graphs[row] for row in rows.tolist()]
                dataset[name] += self._items(task, chosen, labels[rows])
        for task, inputs in test.items():
            first = self._labels(task)[:1]
            hidden = torch.full((len(inputs), *first.shape[1:]), -1)
            dataset["test"] += self._items(task, inputs.graphs, hidden)
        places = {
            "val": in_a_row({task: len(self._val[task]) for task in tasks}),
            "test": in_a_row({task: len(inputs) for task, inputs in test.items()}),
        }
        return dataset, places

    def get_current_dataset_for_export(self, _global: bool = False) -> dict[str, Any]:
        """The current task's part of `export_dataset`, or what is of all tasks together.

        Together: ``num_classes``, ``graphs``, each ``edges`` and ``ndata_feat``; a graph each
        ``task``, ``labels``, ``train_mask``, ``val_mask``, ``test_mask`` and, in the task setting,
        ``task_specific_mask``; and ``test_indices``. Of a task ``train_indices``, ``val_indices``.
        """
        tasks = range(self.num_tasks)
        sets: list[Any] = [self._scenario.train_set(task) for task in tasks]
        inputs: list[Any] = [self._scenario.test_inputs(task) for task in tasks]
        sizes = [len(found.graphs) + len(held.graphs) for found, held in zip(sets, inputs)]
        start = [sum(sizes[:task]) for task in tasks]
        if not _global:
            task = self._curr_task
            return {
                "train_indices": start[task] + self._train[task],
                "val_indices": start[task] + self._val[task],
            }
        graphs = [g for found, held in zip(sets, inputs) for g in (*found.graphs, *held.graphs)]
        test = [torch.arange(start[k] + len(sets[k].graphs), start[k] + sizes[k]) for k in tasks]
        labels = [torch.cat([self._labels(k), self._test_labels(k)]) for k in tasks]
        rows = {
            "train_mask": [start[k] + self._train[k] for k in tasks],
            "val_mask": [start[k] + self._val[k] for k in tasks],
            "test_mask": test,
        }
        task_of = torch.repeat_interleave(torch.arange(self.num_tasks), torch.tensor(sizes))
        found = {
            "num_classes": self.num_classes,
            "task": task_of,
            "graphs": [
                {"edges": g.edges(), "ndata_feat": g.ndata["feat"]} for g in map(DataGraph, graphs)
            ],
            "labels": torch.cat(labels),
            **{name: flags(len(graphs), torch.cat(chosen)) for name, chosen in rows.items()},
            "test_indices": torch.cat(test),
        }
        if self.incr_type == "task":
            found["task_specific_mask"] = torch.stack([self._task_mask(k) for k in tasks])[task_of]
        return found

    def _items(self, task: int, graphs: list[Graph], labels: Tensor) -> list[tuple[Any, ...]]:
        mask = (self._task_mask(task),) if self.incr_type == "task" else ()
        return [
            (DataGraph(graph), label, *mask) for graph, label in zip(graphs, labels, strict=True)
        ]
