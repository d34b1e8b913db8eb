"""The loader of node classification."""

from __future__ import annotations

from typing import Any

import torch

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.scenarios.common import BaseScenarioLoader
from maskcl.compat.begin.scenarios.places import Places, flags, places_of
from maskcl.scenarios import Scenario
from maskcl.scenarios.graph_build import About, node_scenario
from maskcl.scenarios.graph_cut import Items, Request, split

CUSTOM = About("dataset_load_func", "as given", "as given")


class NCScenarioLoader(BaseScenarioLoader):
    """Node classification; arguments as for `BaseScenarioLoader`.

    A dataset is a `DataGraph` with ``ndata`` as NCTrainer says. In the time setting it has the
    nodes up to the current task.

    A ``dataset_load_func`` returns ``graph``, a DataGraph with ``ndata`` ``feat``, ``label``, where
    there are such ``train_mask``, ``val_mask`` and ``test_mask``, and ``time`` or ``domain``.
    """

    problem = _level = "node"

    def _custom(self, request: Request, found: dict[str, Any]) -> Scenario:
        graph: DataGraph = found["graph"]
        data = graph.ndata
        train, test = split(data["label"], request.seed)
        if "train_mask" in data:
            train = data["train_mask"] | data.get("val_mask", data["train_mask"])
            test = data["test_mask"]
        items = Items(data["label"], train, test, data.get("domain"), data.get("time"))
        return node_scenario(request, data["feat"], torch.stack(graph.edges()), items, CUSTOM)

    def _build(self, tasks: list[int]) -> tuple[DataGraph, Places]:
        sets = {task: self._scenario.train_set(task) for task in range(self.num_tasks)}
        graph = DataGraph(sets[self._curr_task].graph)  # type: ignore[attr-defined]
        count, data = graph.num_nodes(), graph.ndata
        test = {
            task: self._scenario.test_inputs(task).nodes  # type: ignore[attr-defined]
            for task in self._tested()
        }
        nodes: dict[int, Any] = {task: sets[task].nodes for task in tasks}  # type: ignore[attr-defined]
        train = {task: nodes[task][self._train[task]] for task in tasks}
        val = {task: nodes[task][self._val[task]] for task in tasks}
        for name, rows in (("train", train), ("val", val), ("test", test)):
            data[f"{name}_mask"] = flags(count, torch.cat(list(rows.values())))
        first = self._labels(tasks[0])
        data["label"] = first.new_full((count, *first.shape[1:]), -1)
        for task in tasks:
            data["label"][nodes[task]] = self._labels(task)
        if self.incr_type == "task":
            masks = torch.ones(count, self.num_classes, dtype=torch.bool)
            for task in range(self.num_tasks):
                own = self._scenario.train_set(task).nodes  # type: ignore[attr-defined]
                masks[torch.cat([own, test[task]])] = self._task_mask(task)
            data["task_specific_mask"] = masks
        places = {
            "val": places_of(data["val_mask"], val),
            "test": places_of(data["test_mask"], test),
        }
        return graph, places
