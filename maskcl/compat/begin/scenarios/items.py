"""What the loaders of nodes and of links share: one graph, each of whose items is some task's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.scenarios.loader import ScenarioLoader
from maskcl.compat.begin.scenarios.places import Places, flags, places_of

SPLITS = ("train_mask", "val_mask", "test_mask")


class ItemScenarioLoader(ScenarioLoader):
    """A loader whose dataset is one graph; its nodes or its links are the samples.

    `export_dataset` gives for all tasks together ``num_classes``, ``ndata_feat``, ``task`` (T for
    items of none), in the task setting ``task_specific_mask``, ``edges``, ``train_mask``,
    ``val_mask``, ``test_mask`` and ``label``, those of test items too; for each task ``edges``,
    ``train_mask``, ``val_mask`` and ``label``, -1 where it is hidden. In the time setting a task's
    tensors have the items up to it, which come first.
    """

    def get_current_dataset_for_export(self, _global: bool = False) -> dict[str, Any]:
        """The current task's part of `export_dataset`, or what is of all tasks together."""
        if not _global:
            graph, data = self._target_dataset, self._items_of(self._target_dataset)
            masks = {name: data[name] for name in SPLITS[:2]}
            return {"edges": graph.edges(), **masks, "label": data["label"].clone()}
        graph, train, test = self._whole()
        data = self._items_of(graph)
        places = self._write_items(data, self._count(graph), list(train), train, test)
        assert set(places) == {"val", "test"}
        task = torch.full((self._count(graph),), self.num_tasks)
        for k in train:
            task[torch.cat([train[k], test[k]])] = k
            data["label"][test[k]] = self._test_labels(k)
        found = {"num_classes": self.num_classes, "ndata_feat": graph.ndata["feat"], "task": task}
        if "task_specific_mask" in data:
            found["task_specific_mask"] = data["task_specific_mask"]
        masks = {name: data[name] for name in SPLITS}
        return {**found, "edges": graph.edges(), **masks, "label": data["label"]}

    def _whole(self) -> tuple[DataGraph, dict[int, Tensor], dict[int, Tensor]]:
        """The graph of the last task; by task, int64 of its training and of its test items."""
        raise NotImplementedError

    def _items_of(self, graph: DataGraph) -> dict[str, Tensor]:
        """Where the items' tensors are: of nodes or of links."""
        return graph.ndata if self._level == "node" else graph.edata

    def _count(self, graph: DataGraph) -> int:
        return graph.num_nodes() if self._level == "node" else graph.num_edges()

    def _write_items(
        self,
        data: dict[str, Tensor],
        count: int,
        tasks: list[int],
        rows: dict[int, Tensor],
        test: dict[int, Tensor],
    ) -> Places:
        """Write the items' masks and labels into a graph; returns as `_build`.

        Args:
            data: of the graph's nodes or links.
            count: how many there are.
            tasks: whose items train.
            rows: by task, int64 of its training items; in the task setting of every task.
            test: by task, int64 of its test items.
        """
        train = {task: rows[task][self._train[task]] for task in tasks}
        val = {task: rows[task][self._val[task]] for task in tasks}
        for name, chosen in zip(SPLITS, (train, val, test), strict=True):
            data[name] = flags(count, torch.cat(list(chosen.values())))
        first = self._labels(tasks[0])
        data["label"] = first.new_full((count, *first.shape[1:]), -1)
        for task in tasks:
            data["label"][rows[task]] = self._labels(task)
        if self.incr_type == "task":
            masks = torch.ones(count, self.num_classes, dtype=torch.bool)
            for task, own in rows.items():
                masks[torch.cat([own, test[task]])] = self._task_mask(task)
            data["task_specific_mask"] = masks
        return {
            "val": places_of(data["val_mask"], val),
            "test": places_of(data["test_mask"], test),
        }


def given_split(data: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """(train, test), bool, as a graph's own masks have it, validation in train; None without."""
    if "train_mask" not in data:
        return None
    train = data["train_mask"]
    return train | data.get("val_mask", train), data["test_mask"]
