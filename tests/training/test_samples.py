"""Batches of an epoch: which samples, how they are read, and that workers change nothing."""

from __future__ import annotations

import multiprocessing
import random

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

import maskcl
from maskcl import models, problems
from maskcl.callback import Callback
from maskcl.problems import Vision
from maskcl.problems.loading import Loader, batches
from maskcl.scenarios import ItemError, from_datasets
from maskcl.training.accelerator import make_fabric
from maskcl.training.samples import Samples, loader_of
from tests import tiny

pytest.importorskip("lightning_fabric", reason="batches reach the device through it")


class Drawing(Dataset):
    """Items that draw from every generator of the process, as random transforms do."""

    def __init__(self, count=12, shift=0.0):
        self.targets = [index % 2 for index in range(count)]
        self.shift = shift
        self.reads = [0] * count

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.reads[index] += 1
        drawn = [float(torch.rand(())), np.random.rand(), random.random()]  # noqa: NPY002
        x = torch.tensor([index + self.shift, *drawn], dtype=torch.float32)
        return x, self.targets[index]


class Small(Drawing):
    """Inputs that a network can learn from."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return torch.cat([x[:1] / 20, x[1:]]), y


class Unlucky(Drawing):
    """An item that cannot be read, one of another shape, one that is not what it says."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        if index == 7:
            raise FileNotFoundError("7.png is not there")
        return (x[:2], y) if index == 9 else (x, 1 - y if index == 3 else y)


def scenario(kind=Drawing, tasks=2):
    return from_datasets([(kind(shift=10.0 * t), Drawing(8, shift=t)) for t in range(tasks)])


def samples(made, workers=0):
    fabric = make_fabric("cpu", "32")
    return Samples(Vision(), fabric, 5, 3, loader=loader_of(Vision(), made, fabric, workers))


def trained(workers, directory=None, callback=None, resume=False, validation=None):
    torch.manual_seed(0)
    made = scenario(Small)
    plain = models.build("mlp", made.input_shape, 2, hidden=(6,), dropout=0.3)
    net = maskcl.nn.to_importance(plain, 2, classes=[2, 2])
    trainer = maskcl.Trainer(
        net, maskcl.MAS(), Vision(), made, lambda p: torch.optim.SGD(p, lr=0.1), epochs=2,
        batch_size=5, device="cpu", workers=workers, directory=directory, callback=callback,
        validation=validation,
    )  # fmt: skip
    trainer.fit(resume=resume)
    return trainer


def bits(trainer):
    return [value.clone() for value in trainer.net.state_dict().values()]


def children():
    return [child for child in multiprocessing.active_children() if child.is_alive()]


def equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_an_epoch_reads_every_sample_once():
    made = scenario()
    dataset = made.train_set(0)
    given = dataset._given.dataset
    given.reads = [0] * 12
    found = list(samples(made).epoch(0, 0, dataset))
    assert given.reads == [1] * 12
    assert sorted(torch.cat([x[:, 0] for x, _ in found]).tolist()) == list(range(12))


def test_what_samples_draw_is_the_seeds_and_the_epochs():
    made = scenario()
    source, first = samples(made), samples(made).epoch(0, 1, made.train_set(0))
    first = [x for x, _ in first]
    torch.rand(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = [x for x, _ in source.epoch(0, 1, made.train_set(0))]
    assert equal(first, again)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert np.array_equal(before[2], after[2])
    drawn = torch.cat(first)[:, 1:]
    assert len(drawn.unique()) == drawn.numel()
    for task, epoch in ((0, 0), (1, 1)):
        other = torch.cat([x for x, _ in source.epoch(task, epoch, made.train_set(0))])
        assert not set(other[:, 1].tolist()) & set(drawn[:, 0].tolist())


def test_workers_change_no_bit_and_end_with_the_run(tmp_path):
    wanted = trained(0, validation=0.25)
    seen = set()

    class Looking(Callback):
        def on_epoch_end(self, *_):
            seen.add(frozenset(child.pid for child in children()))

    found = trained(2, tmp_path, Looking(), validation=0.25)
    assert len(seen) == 1  # the same two for all epochs and both tasks
    assert len(seen.pop()) == 2
    assert not children()
    assert equal(bits(found), bits(wanted))
    assert found.result.losses == wanted.result.losses
    assert np.array_equal(found.result.matrix, wanted.result.matrix, equal_nan=True)
    assert found.config == wanted.config


def test_a_run_goes_on_with_other_workers_after_ctrl_c(tmp_path):
    class Stopping(Callback):
        def on_step(self, task, epoch, step, loss):
            if (task, epoch, step) == (1, 1, 0):
                assert children()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(1, tmp_path, Stopping())
    assert not children()
    assert equal(bits(trained(0, tmp_path, resume=True)), bits(trained(0)))


def test_a_worker_that_is_killed_is_told():
    class Killing(Callback):
        def on_step(self, *_):
            for child in children():
                child.kill()

    with pytest.raises(RuntimeError, match=r"Trainer: a worker process .* 1 workers\?"):
        trained(1, callback=Killing())
    assert not children()


def test_a_worker_says_which_sample_cannot_be_read():
    made = scenario(Unlucky)
    source = samples(made, workers=1)
    rows = {7: "FileNotFoundError: 7.png is not there", 9: "has the shape", 3: "has the target 0"}
    with source.loader as loader:
        for row, reason in rows.items():
            for dataset in (made.train_set(1), loader.of(made.train_set(1))):
                with pytest.raises(ItemError, match=f"task 1's training set: item {row}") as error:
                    list(batches(dataset, [torch.tensor([0, row])]))
                assert reason in str(error.value)
                assert "\n" not in str(error.value)
                assert (type(error.value.__cause__) is FileNotFoundError) == (row == 7)
        # What was asked for after the failure is not what comes next.
        ((x, _),) = batches(loader.of(made.train_set(1)), [torch.tensor([4, 5])])
        assert x[:, 0].tolist() == [14.0, 15.0]
        # A batch of another dataset while one is open is read here.
        outer = batches(loader.of(made.train_set(0)), [torch.tensor([0]), torch.tensor([1])])
        assert int(next(outer)[0][0, 0]) == 0
        ((x, _),) = batches(loader.of(made.train_set(1)), [torch.tensor([5])])
        assert int(x[0, 0]) == 15
        assert int(next(outer)[0][0, 0]) == 1
    assert not children()


def test_what_cannot_be_sent_to_a_worker_is_told():
    dataset = Drawing()
    dataset.transform = lambda x: x
    loader = Loader(1, context="spawn")
    with pytest.raises(RuntimeError, match=r"cannot be sent to a process .*lambda.* workers=0"):
        list(batches(loader.of(dataset), [torch.tensor([0])]))
    assert not children()


@pytest.mark.parametrize("workers", [-1, 1.0, True, "2", None])
def test_workers_are_a_number(workers):
    with pytest.raises(
        ValueError, match=r"Trainer: workers is .*, wanted an integer of at least 0"
    ):
        trained(workers)


def test_what_is_in_memory_needs_no_worker():
    x, y = torch.rand(6, 2), torch.tensor([0, 1] * 3)
    data = TensorDataset(x, y)
    made = from_datasets([(data, data)])
    assert samples(made, workers=2).loader.of(made.train_set(0)) is made.train_set(0)
    graphs = loader_of(problems.Node(), tiny.scenario(1), make_fabric("cpu", "32"), 2)
    assert graphs.of(Drawing()).targets == [0, 1] * 6


def test_samples_that_do_not_go_into_a_batch_are_named():
    class Mixed(Drawing):
        def __getitem__(self, index):
            return torch.zeros(2 if index == 2 else 3), 0

    with pytest.raises(ItemError, match=r"Mixed: items 4 and 2 .* \(float32 \[3\], int\) and"):
        list(batches(Mixed(), [torch.tensor([4, 2])]))
    with pytest.raises(ItemError, match="Broken: item 1 cannot be read: KeyError: 'x'"):
        list(batches(type("Broken", (dict,), {"__getitem__": lambda *_: {}["x"]})(),
                     [torch.tensor([1])]))  # fmt: skip


class Rank:
    """What `Samples` asks a Fabric, of one process among several."""

    def __init__(self, rank, world):
        self.global_rank, self.world_size = rank, world

    def to_device(self, batch):
        return batch


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 24, 25, 26, 30, 31, 49])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_every_sample_of_every_batch(count, size, world):
    x = torch.arange(count)
    data = TensorDataset(x, x)
    one = Samples(Vision(), Rank(0, 1), size * world, 3)
    wanted = [sorted(rows.tolist()) for rows, _ in one.epoch(0, 1, data)]
    ranks = [Samples(Vision(), Rank(rank, world), size, 3) for rank in range(world)]
    found = [[rows.tolist() for rows, _ in rank.epoch(0, 1, data)] for rank in ranks]
    shares = [rank.shares(data) for rank in ranks]
    assert {len(part) for part in [*found, *shares]} == {len(wanted)}
    for batch, rows in enumerate(wanted):
        parts, own = [part[batch] for part in found], [share[batch] for share in shares]
        assert sum(share.own for share in own) == pytest.approx(len(rows))
        assert {share.batch for share in own} == {len(rows)}
        counted = [p for p, share in zip(parts, own, strict=True) if share.is_counted]
        assert sorted(row for part in counted for row in part) == rows
        if len(counted) > 1:  # dealt, to within one sample
            sizes = [len(part) for part in parts]
            assert sizes == [share.own for share in own]
            assert max(sizes) - min(sizes) <= 1
            assert min(sizes) >= min(2, size)
        else:
            assert all(sorted(part) == rows for part in parts)
    for whole in (False, True):
        measured = [b for rank in ranks for b, _ in rank.task_data(0, data, whole=whole).batches()]
        assert sorted(torch.cat(measured).tolist()) == list(range(count))
        if whole:
            alone = [b.tolist() for b, _ in one.task_data(0, data).batches()]
            assert sorted(b.tolist() for b in measured) == alone
