"""The loader of graph classification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.scenarios.common import BaseScenarioLoader
from maskcl.compat.begin.scenarios.nodes import CUSTOM
from maskcl.compat.begin.scenarios.places import Places, in_a_row
from maskcl.graph import Graph
from maskcl.scenarios import Scenario
from maskcl.scenarios.graphs.build import graph_scenario
from maskcl.scenarios.graphs.cut import Items, Request, split


class GCScenarioLoader(BaseScenarioLoader):
    """Graph classification; arguments as for `BaseScenarioLoader`.

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

    def _items(self, task: int, graphs: list[Graph], labels: Tensor) -> list[tuple[Any, ...]]:
        mask = (self._task_mask(task),) if self.incr_type == "task" else ()
        return [
            (DataGraph(graph), label, *mask) for graph, label in zip(graphs, labels, strict=True)
        ]
