"""Held-out samples: which they are, what they decide, and that training does not see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from maskcl import problems
from maskcl.callback import Callback
from maskcl.graph import Graph
from maskcl.methods import EWC, HAT, MAS, Piggyback
from maskcl.scenarios.graphs.sets import GraphSet, LinkSet, NodeSet
from maskcl.training.best_epoch import BestEpoch
from maskcl.training.validation import Validation, labels_of, split
from tests import tiny
from tests.training.test_trainer import TASKS, make


class Lazy(Dataset):
    """A data set whose labels are known only by reading it."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(index)), index % 2


def graph() -> Graph:
    ring = torch.arange(20)
    edges = torch.stack([ring, ring.roll(-1)])
    return Graph(torch.arange(20.0)[:, None], torch.cat([edges, edges.flip(0)], 1))


LABELS = torch.arange(20) // 5
SETS = {
    "tensors": TensorDataset(torch.arange(20.0)[:, None], LABELS),
    "lazy": Lazy(),
    "nodes": NodeSet(graph(), torch.arange(20), LABELS),
    "links": LinkSet(graph(), torch.stack([torch.arange(20), (torch.arange(20) + 1) % 20], 1)),
    "graphs": GraphSet(
        [Graph(torch.full((2, 1), float(i)), graph().edge_index[:, :0]) for i in range(20)], LABELS
    ),
}


def firsts(dataset) -> list[float]:
    """A number that names each sample."""
    found = [dataset[i][0] for i in range(len(dataset))]
    return [float(x.x[0, 0] if isinstance(x, Graph) else x.flatten()[0]) for x in found]


@pytest.mark.parametrize("name", SETS)
def test_the_two_parts_make_up_the_whole_and_follow_from_seed_and_task(name):
    whole, share = SETS[name], Validation(0.2)
    train, held = split(whole, share, 0, 0)
    assert len(held) == 4
    assert sorted(firsts(train) + firsts(held)) == firsts(whole)
    assert firsts(train) == sorted(firsts(train))
    assert firsts(split(whole, share, 0, 0)[1]) == firsts(held)
    others = [firsts(split(whole, share, seed, task)[1]) for seed, task in ((1, 0), (0, 1))]
    assert firsts(held) not in others
    if labels_of(whole) is not None:
        assert sorted(int(label) // 5 for label in firsts(held)) == [0, 1, 2, 3]


def test_a_batch_of_a_part_is_read_as_one_of_the_whole():
    vision, (train, held) = problems.Vision(), split(SETS["tensors"], Validation(0.2), 0, 0)
    for part in (train, held):
        ((x, y),) = vision.train_batches(part, range(len(part)), 32)
        assert x.flatten().tolist() == firsts(part)
        assert torch.equal(y, LABELS[x.flatten().long()])
    assert isinstance(split(SETS["lazy"], Validation(0.2), 0, 0)[0], Subset)


def test_no_message_goes_over_a_link_that_is_held_out():
    train, held = split(SETS["links"], Validation(0.2), 0, 0)
    for part in (train, held):
        edges = {tuple(sorted(pair)) for pair in part.graph.edge_index.T.tolist()}
        assert edges == {tuple(sorted(pair)) for pair in train.pairs.tolist()}
        assert part.known.shape[1] == 40  # none of them is drawn as no link


def test_shares_of_few_samples():
    assert [Validation(0.1).count(n) for n in (2, 5, 14, 100)] == [1, 1, 1, 10]
    assert Validation(0.99).count(3) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"share": 0}, "share is 0, wanted a number above 0 and below 1"),
        ({"share": 1.0}, "share is 1.0"),
        ({"share": float("nan")}, "share is nan"),
        ({"share": True}, "share is True"),
        ({"patience": 0}, "patience is 0, wanted an integer of at least 1 or None"),
        ({"patience": 1.5}, "patience is 1.5"),
        ({"restore": 1}, "restore is 1, wanted True or False"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=f"Validation: {message}"):
        Validation(**changed)


def test_a_task_with_too_few_samples_is_told_before_training():
    x, y = tiny.samples(0, 1)
    one = (TensorDataset(x, y), TensorDataset(x, y))
    small = tiny.from_datasets([one], setting="task")
    with pytest.raises(ValueError, match=r"task 0 has 1 in all; wanted at least 2"):
        make(tiny.network("mlp", 1), small, validation=0.5)
    with pytest.raises(TypeError, match="validation is 'yes', wanted a share"):
        make(validation="yes")


METHODS = {
    "hat": (HAT(sparsity=0.2), lambda: tiny.network("conv", TASKS)),
    "piggyback": (Piggyback(lr=0.02), lambda: tiny.piggyback("conv", TASKS, norms="task")),
    "mas": (MAS(strength=0.1), lambda: tiny.importance("conv", TASKS)),
    "ewc": (EWC(strength=0.1), lambda: tiny.importance("dropout", TASKS)),
}


class States(Callback):
    """What the network does not keep of its bookkeeping, after each epoch and task."""

    def __init__(self, net, method) -> None:
        self.net, self.method, self.epochs, self.ends = net, method, {}, {}

    def on_epoch_end(self, task, epoch, *rest):
        self.epochs[task, epoch] = self.learned(task, is_over=False)

    def on_task_end(self, task, scores):
        self.ends[task] = self.learned(task, is_over=True)

    def learned(self, task, *, is_over):
        names = dict(self.net.named_parameters())
        found = {k: v.clone() for k, v in self.net.state_dict().items() if k in names}
        found |= {k: v.clone() for k, v in self.net.named_buffers() if "running" in k}
        if isinstance(self.method, Piggyback):  # whose scores end as a mask
            found = {k: v for k, v in found.items() if not k.endswith("scores")}
            found |= self.net.words(task) if is_over else self.method._words(self.net)
        return found


@pytest.mark.parametrize("name", METHODS)
def test_a_task_ends_with_its_best_epoch(name, monkeypatch):
    """Its second; the fourth ends it, as for two epochs the score has not risen."""
    scores = {task: iter([0.5, 0.75, 0.25, 0.5, 1.0]) for task in range(TASKS)}

    def told(net, problem, samples, held, task, index):
        return next(scores[task]), 1.0

    monkeypatch.setattr("maskcl.training.epoch.score_held_out", told)
    method, build = METHODS[name]
    net = build()
    seen = States(net, method)
    result = make(net, method=method, epochs=9, callback=seen, validation=Validation(0.2, 2)).fit()
    assert result.best_epochs == [1] * TASKS
    assert result.validation == [[0.5, 0.75, 0.25, 0.5]] * TASKS
    assert [len(losses) for losses in result.losses] == [4] * TASKS
    for task in range(TASKS):
        end, best, last = seen.ends[task], seen.epochs[task, 1], seen.epochs[task, 3]
        assert end.keys() == best.keys()
        assert all(torch.equal(end[key], best[key]) for key in end)
        assert not all(torch.equal(last[key], best[key]) for key in end)


def test_the_held_out_samples_are_scored_with_the_hard_mask_and_move_no_generator():
    class Draws(Callback):
        def __init__(self) -> None:
            self.states: list[Tensor] = []

        def on_epoch_end(self, *rest):
            self.states.append(torch.get_rng_state())

    runs = []
    for validation in (Validation(0.25), Validation(0.25, restore=False)):
        net = tiny.network("dropout", 1)
        draws = Draws()
        trainer = make(
            net, tiny.scenario(1), epochs=4, validation=validation, callback=draws, seed=2
        )
        result = trainer.fit()
        runs.append((draws.states, result, net))
    (first, result, _), (second, kept, net) = runs
    assert all(map(torch.equal, first, second))
    assert result.losses == kept.losses
    assert result.validation == kept.validation
    # With its last epoch kept, the network gives the last epoch's score.
    _, held = split(tiny.scenario(1).train_set(0), Validation(0.25), 2, 0)
    net.eval()
    with torch.no_grad(), net.task(0):
        right = [int(net(held[i][0][None]).argmax()) == int(held[i][1]) for i in range(len(held))]
    assert kept.validation[0][-1] == pytest.approx(np.mean(right))


def test_what_is_scored_does_not_change_what_is_trained(monkeypatch):
    """The same samples, never scored: the same bits."""
    validation = Validation(0.25, restore=False)
    first = make(tiny.network("dropout", 2), tiny.scenario(2), validation=validation)
    first.fit()
    monkeypatch.setattr("maskcl.training.epoch.score_held_out", lambda *rest: (0.5, 1.0))
    second = make(tiny.network("dropout", 2), tiny.scenario(2), validation=validation)
    second.fit()
    state = second.net.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in first.net.state_dict().items())


def test_without_validation_there_is_none_and_hat_has_its_free_share():
    result = make().fit()
    assert result.validation == [[]] * TASKS
    assert result.best_epochs == [None] * TASKS
    assert [len(free) for free in result.free] == [2] * TASKS
    assert all(0 <= share <= 1 for free in result.free for share in free)
    piggyback = make(tiny.piggyback("mlp", TASKS), method=Piggyback(lr=0.1)).fit()
    assert piggyback.free == [[]] * TASKS


def test_of_equal_scores_the_lower_loss_is_best_and_patience_counts_scores():
    net = tiny.network("mlp", 1)
    best = BestEpoch(net, keep=False)
    for epoch, (score, loss) in enumerate([(0.5, 1.0), (0.5, 0.9), (0.5, 0.95), (0.4, 0.1)]):
        best.offer(epoch, score, loss)
    assert (best.epoch, best.rose) == (1, 0)
    assert best.is_over(3, 3)
    assert not best.is_over(3, 4)
    assert not best.is_over(3, None)
