"""Trainers of node classification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.problems.sampling import sample_subgraph

MASK = "task_specific_mask"
Batch = tuple[DataGraph, Tensor]


class NCTrainer(BaseTrainer):
    """Node classification on the whole graph: a batch is ``(graph, mask)``, mask bool [N].

    ``graph.ndata`` has ``feat``, ``label`` (-1 where hidden), ``train_mask``, ``val_mask``,
    ``test_mask`` and, in the task setting, ``task_specific_mask`` bool [N, C].
    """

    problem = "node"

    def prepareLoader(self, curr_dataset: DataGraph, curr_training_states: dict[str, Any]) -> Any:
        """One batch each for training, validation and test."""
        graph = curr_dataset.to(self.device)
        masks = (graph.ndata[f"{split}_mask"] for split in ("train", "val", "test"))
        return tuple([(graph, mask)] for mask in masks)

    def _run(self, model: Any, batch: Batch) -> Tensor:
        graph, mask = batch[0].to(self.device), batch[1]
        given = {"task_masks": graph.ndata[MASK]} if MASK in graph.ndata else {}
        return model(graph, graph.ndata["feat"], **given)[mask.to(self.device)]

    def _answers(self, batch: Batch) -> Tensor:
        return batch[0].ndata["label"][batch[1]].to(self.device)

    def _task_masks(self, batch: Batch) -> Tensor | None:
        masks = batch[0].ndata.get(MASK)
        return None if masks is None else masks[batch[1].to(masks.device)]

    def _seen_labels(self, dataset: DataGraph) -> Tensor:
        return dataset.ndata["label"][dataset.ndata["train_mask"] | dataset.ndata["val_mask"]]

    def _example(self, model: Any, dataset: DataGraph) -> tuple[Any, ...]:
        return model.tensors(dataset, dataset.ndata["feat"])


class NCMinibatchTrainer(NCTrainer):
    """Node classification in batches of training nodes with a sample of their neighbourhood.

    Batches look like NCTrainer's: the graph is the part that was drawn. Validation and test see the
    whole graph.

    Attributes:
        fanouts: neighbours that a node hears from, for each hop outwards; as many as layers.
        batch_size: training nodes a step.
    """

    log_every = 1
    fanouts: ClassVar[tuple[int, ...]] = (10, 10, 5)
    batch_size: ClassVar[int] = 131072

    def prepareLoader(self, curr_dataset: DataGraph, curr_training_states: dict[str, Any]) -> Any:
        """Drawn parts for training, the whole graph for validation and test."""
        _, val, test = super().prepareLoader(curr_dataset, curr_training_states)
        return _Parts(curr_dataset, self.fanouts, self.batch_size, self.seed), val, test


class _Parts:
    """Batches of a graph's training nodes; other ones in every pass, the same for a seed."""

    def __init__(
        self, graph: DataGraph, fanouts: tuple[int, ...], batch_size: int, seed: int
    ) -> None:
        self.graph, self.fanouts, self.batch_size = graph, fanouts, batch_size
        self.nodes = torch.nonzero(graph.ndata["train_mask"]).flatten()
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.nodes) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.nodes), generator=self.generator)
        for seeds in self.nodes[order].split(self.batch_size):
            found, place = sample_subgraph(self.graph.messages, seeds, self.fanouts, self.generator)
            part = DataGraph(found)
            mask = torch.zeros(part.num_nodes(), dtype=torch.bool)
            mask[place] = True
            for name in ("label", MASK):
                if name in self.graph.ndata:
                    rows = self.graph.ndata[name][seeds]
                    part.ndata[name] = rows.new_full((len(mask), *rows.shape[1:]), -1)
                    part.ndata[name][place] = rows
            yield part, mask
