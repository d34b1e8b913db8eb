"""The loaders of link classification and link prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.scenarios.items import ItemScenarioLoader, given_split
from maskcl.compat.begin.scenarios.loader import ScenarioLoader
from maskcl.compat.begin.scenarios.nodes import CUSTOM
from maskcl.compat.begin.scenarios.places import Places, in_a_row
from maskcl.graph import Graph
from maskcl.problems.sampling import draw_negatives
from maskcl.scenarios import Scenario, scores
from maskcl.scenarios.graphs.cut import Items, Request
from maskcl.scenarios.graphs.links import link_scenario, split_links


class LCScenarioLoader(ItemScenarioLoader):
    """Link classification; arguments as for `ScenarioLoader`.

    A dataset is a `DataGraph` whose ``edges()`` are links with ``edata`` as LCTrainer says; in the
    time setting those up to the current task.

    A ``dataset_load_func`` returns ``graph``, a DataGraph with ``ndata["feat"]`` and ``edata``
    ``label``, where there are such ``train_mask``, ``val_mask`` and ``test_mask``, and ``time`` or
    ``domain``.
    """

    problem = _level = "link"

    def _custom(self, request: Request, found: dict[str, Any]) -> Scenario:
        graph: DataGraph = found["graph"]
        data, pairs = graph.edata, torch.stack(graph.edges(), dim=1)
        labels = data["label"].flatten()
        train, test = given_split(data) or split_links(
            pairs, graph.num_nodes(), labels, request.seed
        )
        items = Items(labels, train, test, data.get("domain"), data.get("time"))
        x = graph.ndata["feat"]
        return link_scenario(request, x, graph.num_nodes(), pairs, items, CUSTOM)

    def _build(self, tasks: list[int]) -> tuple[DataGraph, Places]:
        graph, rows, test = self._upto(self._curr_task, self._tested())
        return graph, self._write_items(graph.edata, graph.num_edges(), tasks, rows, test)

    def _whole(self) -> tuple[DataGraph, dict[int, Tensor], dict[int, Tensor]]:
        return self._upto(self.num_tasks - 1, list(range(self.num_tasks)))

    def _upto(
        self, task: int, tested: list[int]
    ) -> tuple[DataGraph, dict[int, Tensor], dict[int, Tensor]]:
        """A task's graph with these tasks' links, and by task the training and the test links."""
        links, rows, test = _links(self._scenario, tested)
        found: Any = self._scenario.train_set(task)
        return DataGraph(found.graph, links=links, loops=True), rows, test


def _links(
    scenario: Scenario, tasks: list[int]
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
    """All links of these tasks [n, 2], and the rows of each task's training and test links."""
    train: dict[int, Tensor] = {}
    test: dict[int, Tensor] = {}
    parts, start = [], 0
    for task in tasks:
        sets: tuple[Any, Any] = (scenario.train_set(task), scenario.test_inputs(task))
        for rows, found in zip((train, test), sets, strict=True):
            rows[task] = torch.arange(start, start + len(found))
            parts.append(found.pairs)
            start += len(found)
    return torch.cat(parts), train, test


class LPScenarioLoader(ScenarioLoader):
    """Link prediction, in the domain and time settings; arguments as for `ScenarioLoader`.

    A dataset is a dict: ``graph``, a `DataGraph` whose edges are the training links; and
    ``train``, ``val`` and ``test``, each with ``edge`` int64 [n, 2] and ``label``, 1 for a link, 0
    for none and -1 where hidden. In the time setting it has the nodes up to the current task.

    A ``dataset_load_func`` returns ``graph``, a DataGraph with ``ndata["feat"]`` and ``edata``
    ``time`` or ``domain``, every link there twice in a row, once in each direction; and
    ``tvt_splits`` int64 [E], 2 for test links. Pairs that are no links are drawn.
    """

    problem = "link prediction"
    _level = "link"

    def _custom(self, request: Request, found: dict[str, Any]) -> Scenario:
        graph: DataGraph = found["graph"]
        data = {name: values[::2] for name, values in graph.edata.items()}
        pairs = torch.stack(graph.edges(), dim=1)[::2]
        test = torch.as_tensor(found["tvt_splits"])[::2] == 2
        ones = torch.ones(len(pairs), dtype=torch.int64)
        items = Items(ones, ~test, test, data.get("domain"), data.get("time"))
        x = graph.ndata["feat"]
        return link_scenario(request, x, graph.num_nodes(), pairs, items, CUSTOM, prediction=True)

    def _build(self, tasks: list[int]) -> tuple[dict[str, Any], Places]:
        sets: dict[int, Any] = {task: self._scenario.train_set(task) for task in self._tested()}
        test: dict[int, Any] = {task: self._scenario.test_inputs(task) for task in sets}
        train = [sets[task].pairs[self._train[task]] for task in tasks]
        val = {task: self._val_pairs(task) for task in tasks}
        held = [sets[task].pairs[self._val[task]] for task in sets]
        current = sets[self._curr_task]
        hidden = [torch.full((len(found),), -1) for found in test.values()]
        dataset = {
            "graph": DataGraph(_without(current.graph, torch.cat(held)), loops=True),
            "known": current.known,
            "train": _labelled(train, [torch.ones(len(pairs)).long() for pairs in train]),
            "val": _labelled(*zip(*val.values(), strict=True)),
            "test": _labelled([found.pairs for found in test.values()], hidden),
        }
        places = {
            "val": in_a_row({task: len(pairs) for task, (pairs, _) in val.items()}),
            "test": in_a_row({task: len(found) for task, found in test.items()}),
        }
        return dataset, places

    def _val_pairs(self, task: int) -> tuple[Tensor, Tensor]:
        """A task's held out links and pairs that are none, enough of them for Hits@K; labels."""
        found: Any = self._scenario.train_set(task)
        links = found.pairs[self._val[task]]
        count = max(len(links), scores.hits_at(self._scenario.metric) or 0)
        like = links.repeat(-(-count // len(links)), 1)[:count]
        chance = torch.Generator().manual_seed(self.seed + task)
        none = draw_negatives(like, found.known, found.graph.num_nodes, chance)
        labels = torch.cat([torch.ones(len(links)), torch.zeros(len(none))]).long()
        return torch.cat([links, none]), labels

    def _val_labels(self, task: int) -> Tensor:
        return self._val_pairs(task)[1]

    def _answers(self, task: int, split: str) -> Tensor:
        return self._val_labels(task) if split == "val" else self._test_labels(task).flatten()

    def get_current_dataset_for_export(self, _global: bool = False) -> dict[str, Any]:
        """The current task's part of `export_dataset`, or what is of all tasks together.

        Together: ``ndata_feat``, ``edges`` and, an edge each, ``task``; ``neg_edges`` by split;
        ``test_edges`` and ``test_labels``, the number of its task and 1 for a link, 0 for none. Of
        a task: ``edges``, and ``_edges`` and ``_labels`` of ``train`` and ``val``.
        """
        if not _global:
            data = self._target_dataset
            found = {"edges": data["graph"].edges()}
            for split in ("train", "val"):
                found[f"{split}_edges"] = data[split]["edge"]
                found[f"{split}_labels"] = data[split]["label"]
            return found
        tasks = range(self.num_tasks)
        sets: list[Any] = [self._scenario.train_set(task) for task in tasks]
        inputs: list[Any] = [self._scenario.test_inputs(task) for task in tasks]
        right = [self._test_labels(task).flatten() for task in tasks]
        tests = [found.pairs for found in inputs]
        vals = [pairs[labels == 0] for pairs, labels in map(self._val_pairs, tasks)]
        links = [
            torch.cat([found.pairs, pairs[labels == 1]])
            for found, pairs, labels in zip(sets, tests, right, strict=True)
        ]
        negatives = {
            "val": torch.cat(vals),
            "test": torch.cat([pairs[labels == 0] for pairs, labels in zip(tests, right)]),
        }
        edges = torch.cat(links)
        return {
            "ndata_feat": DataGraph(sets[-1].graph).ndata["feat"],
            "task": torch.repeat_interleave(
                torch.arange(len(links)), torch.tensor([*map(len, links)])
            ),
            "edges": (edges[:, 0], edges[:, 1]),
            "neg_edges": negatives,
            "test_edges": torch.cat(tests),
            "test_labels": torch.cat([(k + 1) * labels for k, labels in enumerate(right)]),
        }


def _labelled(pairs: Any, labels: Any) -> dict[str, Tensor]:
    return {"edge": torch.cat(list(pairs)), "label": torch.cat(list(labels))}


def _without(graph: Graph, links: Tensor) -> Graph:
    """The graph without the edges of these links, in both directions."""
    count = graph.num_nodes
    both = torch.cat([links, links.flip(1)])
    source, target = graph.edge_index
    keys = source * count + target
    return Graph(graph.x, graph.edge_index[:, ~torch.isin(keys, both[:, 0] * count + both[:, 1])])
