"""The loader of node classification."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.scenarios.items import ItemScenarioLoader, given_split
from maskcl.compat.begin.scenarios.places import Places
from maskcl.scenarios import Scenario
from maskcl.scenarios.graphs.build import About, node_scenario
from maskcl.scenarios.graphs.cut import Items, Request, split

CUSTOM = About("dataset_load_func", "as given", "as given")


class NCScenarioLoader(ItemScenarioLoader):
    """Node classification; arguments as for `ScenarioLoader`.

    A dataset is a `DataGraph` with ``ndata`` as NCTrainer says. In the time setting it has the
    nodes up to the current task.

    A ``dataset_load_func`` returns ``graph``, a DataGraph with ``ndata`` ``feat``, ``label``, where
    there are such ``train_mask``, ``val_mask`` and ``test_mask``, and ``time`` or ``domain``.
    """

    problem = _level = "node"

    def _custom(self, request: Request, found: dict[str, Any]) -> Scenario:
        graph: DataGraph = found["graph"]
        data = graph.ndata
        train, test = given_split(data) or split(data["label"], request.seed)
        items = Items(data["label"], train, test, data.get("domain"), data.get("time"))
        return node_scenario(request, data["feat"], torch.stack(graph.edges()), items, CUSTOM)

    def _build(self, tasks: list[int]) -> tuple[DataGraph, Places]:
        graph, nodes, test = self._upto(self._curr_task, self._tested())
        return graph, self._write_items(graph.ndata, graph.num_nodes(), tasks, nodes, test)

    def _whole(self) -> tuple[DataGraph, dict[int, Tensor], dict[int, Tensor]]:
        return self._upto(self.num_tasks - 1, list(range(self.num_tasks)))

    def _upto(
        self, task: int, tested: list[int]
    ) -> tuple[DataGraph, dict[int, Tensor], dict[int, Tensor]]:
        """A task's graph, and by task the training and the test nodes."""
        sets: dict[int, Any] = {k: self._scenario.train_set(k) for k in range(self.num_tasks)}
        inputs: dict[int, Any] = {k: self._scenario.test_inputs(k) for k in tested}
        nodes = {k: found.nodes for k, found in sets.items()}
        test = {k: found.nodes for k, found in inputs.items()}
        return DataGraph(sets[task].graph, loops=True), nodes, test
