"""Trainers of graph classification."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from maskcl.compat.begin import data
from maskcl.compat.begin.spelling import either_name
from maskcl.compat.begin.trainers.common import BaseTrainer


class GCTrainer(BaseTrainer):
    """Graph classification in batches of graphs.

    A batch is ``(graph, labels)``, in the task setting ``(graph, labels, task_masks)``; the graph
    is several ones in one, task_masks bool [n, C].
    A task's dataset is a dict of sequences of such items, ``train``, ``val`` and ``test``.

    Attributes:
        batch_size: graphs a step.
    """

    problem = "graph"
    log_every = 1
    batch_size = 128

    @either_name
    def preparePretrainLoader(
        self, curr_dataset: dict[str, Any], curr_training_states: dict[str, Any]
    ) -> Any:
        """Shuffled batches of the training graphs."""
        return self.prepareLoader(curr_dataset, curr_training_states)[0]

    @either_name
    def processEvalIteration(self, model: Any, curr_batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """As for the others, with the metric and the number of graphs."""
        predictions, stats = super().processEvalIteration(model, curr_batch)
        answers = self._answers(curr_batch)
        hidden = bool((answers < 0).all())
        score = float("nan") if hidden else self.eval_fn(predictions, answers)
        return predictions, {"_num_items": len(answers), **stats, "acc": score}

    @either_name
    def prepareLoader(
        self, curr_dataset: dict[str, Any], curr_training_states: dict[str, Any]
    ) -> Any:
        """Shuffled batches for training, others in order."""
        chance = torch.Generator().manual_seed(self.seed)
        options: dict[str, Any] = {"batch_size": self.batch_size, "collate_fn": collate}
        return (
            DataLoader(curr_dataset["train"], shuffle=True, generator=chance, **options),
            DataLoader(curr_dataset["val"], **options),
            DataLoader(curr_dataset["test"], **options),
        )

    def _pretraining_inputs(self, learner: Any, batch: Any) -> Iterable[Any]:
        return [batch[0].to(self.device)]

    def _run(self, model: Any, batch: tuple[Any, ...]) -> Tensor:
        graph, masks = batch[0].to(self.device), self._task_masks(batch)
        given = {} if masks is None else {"task_masks": masks.to(self.device)}
        return model(graph, graph.ndata["feat"], **given)

    def _answers(self, batch: tuple[Any, ...]) -> Tensor:
        return batch[1].to(self.device)

    def _task_masks(self, batch: tuple[Any, ...]) -> Tensor | None:
        return batch[2] if len(batch) == 3 else None

    def _seen_labels(self, dataset: dict[str, Any]) -> Tensor:
        labels = [item[1] for split in ("train", "val") for item in dataset[split]]
        return torch.stack([torch.as_tensor(label) for label in labels])

    def _example(self, model: Any, dataset: dict[str, Any]) -> tuple[Any, ...]:
        graph = data.batch([dataset["train"][i][0] for i in range(min(2, len(dataset["train"])))])
        return model.tensors(graph, graph.ndata["feat"])

    def _segments(self) -> Callable[[Any], Tensor]:
        def graph_of_node(batch: tuple[Any, ...]) -> Tensor:
            sizes = batch[0].batch_num_nodes()
            return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(self.device)

        return graph_of_node


def collate(items: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Items as one batch."""
    graphs, *columns = zip(*items, strict=True)
    stacked = [torch.stack([torch.as_tensor(value) for value in column]) for column in columns]
    return (data.batch(list(graphs)), *stacked)
