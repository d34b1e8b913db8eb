"""What the loaders of nodes and of links share: one graph, each of whose items is some task's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskcl.compat.begin.scenarios.common import BaseScenarioLoader
from maskcl.compat.begin.scenarios.places import Places, flags, places_of


class ItemScenarioLoader(BaseScenarioLoader):
    """A loader whose dataset is one graph; its nodes or its links are the samples."""

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
        for name, chosen in (("train", train), ("val", val), ("test", test)):
            data[f"{name}_mask"] = flags(count, torch.cat(list(chosen.values())))
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
