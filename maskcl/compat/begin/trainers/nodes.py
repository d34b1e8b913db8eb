"""Trainers of node classification."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskcl.compat.begin.data import Block, DataGraph, heard
from maskcl.compat.begin.spelling import either_name
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.graph import Graph
from maskcl.problems.sampling import SampledGraph, rows, sample_subgraph

MASK = "task_specific_mask"
MiniBatch = tuple[Tensor, Tensor, list[Block]]


class NCTrainer(BaseTrainer):
    """Node classification on the whole graph: a batch is ``(graph, mask)``, mask bool [N].

    ``graph.ndata`` has ``feat``, ``label`` (-1 where hidden), ``train_mask``, ``val_mask``,
    ``test_mask`` and, in the task setting, ``task_specific_mask`` bool [N, C].
    """

    problem = "node"

    @either_name
    def preparePretrainLoader(
        self, curr_dataset: DataGraph, curr_training_states: dict[str, Any]
    ) -> list[DataGraph]:
        """The graph without nodes that no edge joins to another."""
        return [heard(curr_dataset)]

    @either_name
    def prepareLoader(self, curr_dataset: DataGraph, curr_training_states: dict[str, Any]) -> Any:
        """One batch each for training, validation and test."""
        graph = curr_dataset.to(self.device)
        masks = (graph.ndata[f"{split}_mask"] for split in ("train", "val", "test"))
        return tuple([(graph, mask)] for mask in masks)

    def _run(self, model: Any, batch: Any) -> Tensor:
        graph, mask = batch[0].to(self.device), batch[1]
        given = {"task_masks": graph.ndata[MASK]} if MASK in graph.ndata else {}
        return model(graph, graph.ndata["feat"], **given)[mask.to(self.device)]

    def _answers(self, batch: Any) -> Tensor:
        return batch[0].ndata["label"][batch[1]].to(self.device)

    def _task_masks(self, batch: Any) -> Tensor | None:
        masks = batch[0].ndata.get(MASK)
        return None if masks is None else masks[batch[1].to(masks.device)]

    def _seen_labels(self, dataset: DataGraph) -> Tensor:
        return dataset.ndata["label"][dataset.ndata["train_mask"] | dataset.ndata["val_mask"]]

    def _example(self, model: Any, dataset: DataGraph) -> tuple[Any, ...]:
        return model.tensors(dataset, dataset.ndata["feat"])


class NCMinibatchTrainer(NCTrainer):
    """Node classification in batches of nodes with a sample of their neighbourhood.

    A batch is ``(input_nodes, output_nodes, blocks)``: int64 numbers of the nodes that are read and
    of those that are classified, and a `Block` for each layer, with ``srcdata`` and ``dstdata``
    named as in NCTrainer's graphs. All layers of a batch hear over one part of the graph.
    Validation and test see the whole graph.

    Attributes:
        fanouts: neighbours that a node hears from, for each hop outwards; as many as layers.
        batch_size: training nodes a step.
    """

    log_every = 1
    fanouts: ClassVar[tuple[int, ...]] = (10, 10, 5)
    batch_size: ClassVar[int] = 131072

    @either_name
    def prepareLoader(self, curr_dataset: DataGraph, curr_training_states: dict[str, Any]) -> Any:
        """Drawn parts for training, the whole graph for validation and test."""
        graph, hops = curr_dataset.to(self.device), len(self.fanouts)
        nodes = torch.arange(graph.num_nodes())
        whole = []
        for split in ("val", "test"):
            found = torch.nonzero(graph.ndata[f"{split}_mask"]).flatten().cpu()
            whole.append([(nodes, found, blocks_of(graph, found, hops))])
        return _Parts(curr_dataset, self.fanouts, self.batch_size, self.seed), *whole

    def _run(self, model: Any, batch: Any) -> Tensor:
        blocks = [block.to(self.device) for block in batch[2]]
        masks = self._task_masks(batch)
        given = {} if masks is None else {"task_masks": masks.to(self.device)}
        return model.bforward(blocks, blocks[0].srcdata["feat"], **given)

    def _answers(self, batch: Any) -> Tensor:
        return batch[2][-1].dstdata["label"].to(self.device)

    def _task_masks(self, batch: Any) -> Tensor | None:
        return batch[2][-1].dstdata.get(MASK)


def blocks_of(graph: DataGraph, rows: Tensor, layers: int) -> list[Block]:
    """A block for each layer over one graph, the last of which answers for ``rows``."""
    return [*(Block(graph) for _ in range(layers - 1)), Block(graph, rows)]


class _Parts:
    """Batches of a graph's training nodes; other ones in every pass, the same for a seed."""

    def __init__(
        self, graph: DataGraph, fanouts: tuple[int, ...], batch_size: int, seed: int
    ) -> None:
        self.graph, self.fanouts, self.batch_size = graph, fanouts, batch_size
        self.nodes = torch.nonzero(graph.ndata["train_mask"]).flatten()
        self.generator = torch.Generator().manual_seed(seed)
        # Whose features are its nodes' numbers, so that a part says which nodes it has.
        count = torch.arange(graph.num_nodes(), dtype=torch.float64)
        self.numbered = Graph(count.unsqueeze(1), graph.messages.edge_index)

    def __len__(self) -> int:
        return -(-len(self.nodes) // self.batch_size)

    def __iter__(self) -> Iterator[MiniBatch]:
        order = torch.randperm(len(self.nodes), generator=self.generator)
        for seeds in self.nodes[order].split(self.batch_size):
            drawn, place = sample_subgraph(self.numbered, seeds, self.fanouts, self.generator)
            nodes = drawn.x.long().flatten()
            part = DataGraph(self._with_features(drawn, nodes), loops=True)
            for name in ("label", MASK):
                if name in self.graph.ndata:
                    # Of the nodes that are heard alone nothing but features is to be known.
                    known = self.graph.ndata[name][seeds]
                    part.ndata[name] = known.new_full((len(nodes), *known.shape[1:]), -1)
                    part.ndata[name][place] = known
            yield nodes, seeds, blocks_of(part, place, len(self.fanouts))

    def _with_features(self, drawn: SampledGraph, nodes: Tensor) -> SampledGraph:
        whole = self.graph.messages
        x = rows(whole.x, nodes)
        return SampledGraph(x, drawn.edge_index, drawn._weight, whole.degree[nodes])
