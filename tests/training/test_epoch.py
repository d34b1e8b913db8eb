"""Steps of an epoch: gradients of several batches are those of one, in every method."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from maskcl.callback import Callback
from maskcl.methods import EWC, HAT, MAS, Piggyback
from maskcl.problems import Vision
from maskcl.scenarios import from_datasets
from maskcl.training.trainer import Trainer
from tests import tiny

METHODS = {
    "hat": HAT(sparsity=0.7, clip=0.5),
    "hat-min": HAT(sparsity=0.7, protection="min", rule="adahat", rule_value=0.5),
    "piggyback": Piggyback(lr=0.01),
    "mas": MAS(strength=2.0),
    "ewc": EWC(strength=2.0),
}


def double(count: int):
    """Two tasks in float64."""
    pairs = []
    for task in range(2):
        x, y = tiny.samples(task, count)
        data = TensorDataset(x.double(), y)
        pairs.append((data, data))
    return from_datasets(pairs, setting="task")


class Count(Callback):
    def __init__(self) -> None:
        self.batches: list[int] = []
        self.steps = 0

    def on_epoch_start(self, task, epoch, batches):
        self.batches.append(batches)

    def on_step(self, task, epoch, batch, loss):
        self.steps += 1


def train(name: str, count: int, **batches: int):
    method = METHODS[name]
    kind = name.split("-")[0]
    build = {"hat": tiny.network, "piggyback": tiny.piggyback}.get(kind, tiny.importance)
    net = build("mlp", 2).double()
    seen = Count()
    trainer = Trainer(
        net, method, Vision(), double(count), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        epochs=2, device="cpu", callback=seen, **batches,
    )  # fmt: skip
    result = trainer.fit()
    assert seen.steps == sum(seen.batches)
    return net, result, seen.batches


@pytest.mark.parametrize("count", [64, 70, 81])
@pytest.mark.parametrize("name", METHODS)
def test_two_batches_of_16_are_one_of_32(name, count):
    """With what is left over as well: the last step has 6 samples, or 17."""
    one, wanted, steps = train(name, count, batch_size=32)
    two, found, others = train(name, count, batch_size=16, accumulate=2)
    assert steps == others
    for (key, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-12, msg=key)
        else:
            assert torch.equal(a, b), key
    torch.testing.assert_close(found.losses, wanted.losses, rtol=1e-9, atol=1e-12)
    assert found.accuracies == wanted.accuracies


def test_a_problem_that_gives_another_number_of_batches_is_told():
    class Odd(Vision):
        def train_batches(self, *args):
            found = list(super().train_batches(*args))
            return iter(found[:-1] if self.less else found * 2)

    for less in (True, False):
        problem = Odd()
        problem.less = less
        trainer = Trainer(
            tiny.network("mlp", 1), HAT(), problem, tiny.scenario(1), tiny.OPTIMIZERS["sgd"],
            epochs=1, batch_size=8, device="cpu",
        )  # fmt: skip
        with pytest.raises(RuntimeError, match="fewer" if less else "more"):
            trainer.fit()
