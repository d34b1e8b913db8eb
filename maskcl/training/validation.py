"""Samples of each task held out of its training: which, and how the network does on them."""

from __future__ import annotations

import dataclasses
import math
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from maskcl.graph import Graph
from maskcl.methods import derive_seed
from maskcl.problems import Problem
from maskcl.randomness import seeded
from maskcl.scenarios.graphs.links import unordered
from maskcl.scenarios.graphs.sets import GraphSet, LinkSet, NodeSet
from maskcl.training.samples import Samples, chance

if TYPE_CHECKING:
    from maskcl.nn.tasks.network import TaskNetwork


@dataclasses.dataclass(frozen=True)
class Validation:
    """A part of each task's training samples is held out, and scored after each epoch.

    Which samples is a function of the seed and the task alone; as many of each class as its share,
    to within one, where a data set has its labels at hand. Nothing is trained or measured on them.
    They are scored with the task's hard mask, as test data are: by the share predicted right, and
    of epochs with equal shares the one with the lower loss is the better. Multi-label targets are
    scored by the share of labels, values by the loss alone.

    Args:
        share: of the samples, above 0 and below 1; at least one sample.
        patience: the task ends after so many epochs in which the score has not risen; None: every
            epoch is trained.
        restore: whether the task ends with the network of its best epoch, gates and all.

    Raises:
        ValueError: an argument is not as above.
    """

    share: float = 0.1
    patience: int | None = None
    restore: bool = True

    def __post_init__(self) -> None:
        share, patience = self.share, self.patience
        is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
        if not is_number or not 0 < share < 1:
            raise ValueError(f"Validation: share is {share!r}, wanted a number above 0 and below 1")
        is_count = isinstance(patience, int) and not isinstance(patience, bool)
        if patience is not None and (not is_count or patience < 1):
            raise ValueError(
                f"Validation: patience is {patience!r}, wanted an integer of at least 1 or None"
            )
        if not isinstance(self.restore, bool):
            raise ValueError(f"Validation: restore is {self.restore!r}, wanted True or False")

    @classmethod
    def of(cls, value: Validation | float | None) -> Validation | None:
        """The same, of a share one with it.

        Raises:
            TypeError: it is none of these.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls(value)
        raise TypeError(
            f"Trainer: validation is {value!r}, wanted a share of the samples such as 0.1, a"
            " Validation or None"
        )

    def count(self, samples: int) -> int:
        """How many of so many samples are held out, at least one and not all."""
        return min(max(round(self.share * samples), 1), samples - 1)


def split(dataset: Any, validation: Validation, seed: int, task: int) -> tuple[Any, Any]:
    """A task's training set in two: what is trained on, and what is held out."""
    total = len(dataset)
    order = torch.randperm(total, generator=chance(seed, "validation", task))
    labels = labels_of(dataset)
    if labels is not None:  # evenly spaced places of an order by class meet each by its share
        order = order[labels[order].argsort(stable=True)]
    count = validation.count(total)
    places = ((torch.arange(count, dtype=torch.float64) + 0.5) * total / count).long()
    is_held = torch.zeros(total, dtype=torch.bool)
    is_held[order[places]] = True
    rest, held = (torch.nonzero(mask).flatten() for mask in (~is_held, is_held))
    if isinstance(dataset, LinkSet):
        return _split_links(dataset, rest, held)
    return rows_of(dataset, rest), rows_of(dataset, held)


def labels_of(dataset: Any) -> Tensor | None:
    """[N], a number for each sample, where a data set says them without reading its samples."""
    found = getattr(dataset, "labels", None)
    if type(dataset) is TensorDataset and len(dataset.tensors) > 1:
        found = dataset.tensors[-1]
    return found.cpu() if isinstance(found, Tensor) and found.dim() == 1 else None


def rows_of(dataset: Any, rows: Tensor) -> Any:
    """Some samples of a data set, as one of its kind that is read as fast."""
    if isinstance(dataset, (NodeSet, LinkSet, GraphSet)):
        labels = None if dataset.labels is None else dataset.labels[rows]
    if isinstance(dataset, NodeSet):
        return NodeSet(dataset.graph, dataset.nodes[rows], labels)
    if isinstance(dataset, LinkSet):
        return LinkSet(dataset.graph, dataset.pairs[rows], labels, dataset.known)
    if isinstance(dataset, GraphSet):
        return GraphSet([dataset.graphs[i] for i in rows.tolist()], labels)
    if hasattr(dataset, "take") or type(dataset) is TensorDataset:
        return _Rows(dataset, rows)
    return Subset(dataset, rows.tolist())


class _Rows(Dataset):
    """Some samples of a data set in memory, of which a batch is read at once."""

    def __init__(self, dataset: Any, rows: Tensor) -> None:
        self._dataset, self._rows = dataset, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._dataset[int(self._rows[index])]

    def take(self, indices: Tensor) -> Any:
        """The samples at ``indices``, int64 [n], as one batch."""
        rows = self._rows[indices]
        if isinstance(self._dataset, TensorDataset):
            return tuple(tensor[rows] for tensor in self._dataset.tensors)
        return self._dataset.take(rows)


def _split_links(dataset: LinkSet, rest: Tensor, held: Tensor) -> tuple[LinkSet, LinkSet]:
    """Of links: no message goes over one that is held out, as none goes over a test link."""
    graph, nodes = dataset.graph, dataset.graph.num_nodes
    ends = unordered(graph.edge_index.T, nodes)
    carries = ~torch.isin(ends, unordered(dataset.pairs[held], nodes))
    cut = Graph(graph.x, graph.edge_index[:, carries])
    thinned = LinkSet(cut, dataset.pairs, dataset.labels, dataset.known)
    return rows_of(thinned, rest), rows_of(thinned, held)


@torch.no_grad()
def score_held_out(
    net: TaskNetwork, problem: Problem, samples: Samples, held: Any, task: int, index: int
) -> tuple[float, float]:
    """The share predicted right (minus the loss, of values) and the mean loss on held-out samples.

    In evaluation; no generator moves, and the network's mode is what it was.

    Args:
        net: on the fabric's device.
        problem: forward, loss and what is right.
        samples: batches of this process, and the fabric.
        held: a task's part from `split`.
        task: of the scenario.
        index: the same task's number in the network.
    """
    fabric, was_training = samples.fabric, net.training
    totals = torch.zeros(3, dtype=torch.float64, device=fabric.device)
    net.eval()
    with (
        seeded(fabric.device, derive_seed("validation", samples.seed, task)),
        net.task(index),
        fabric.autocast(),
    ):
        for batch in samples.task_data(task, held).batches():
            logits, target, weight = problem.forward(net, batch)
            loss, count = problem.loss(logits, target, weight), target.shape[0]
            right = problem.correct(logits, target)
            totals += torch.stack([loss.double() * count, right.double(), totals.new_tensor(count)])
    net.train(was_training)
    summed: Any = fabric.all_reduce(totals, reduce_op="sum")
    loss_sum, right_sum, count = summed.tolist()
    # A loss that is not finite is the worst that a checkpoint's JSON can hold.
    mean = loss_sum / count if math.isfinite(loss_sum) else sys.float_info.max
    return larger_for_better(right_sum / count, mean), mean


def larger_for_better(share: float, loss: float) -> float:
    """The share predicted right; where none can be, as of regression's values, minus the loss."""
    return -loss if math.isnan(share) else share
