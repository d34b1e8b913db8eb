"""Fresh networks for each task: all of their state, and what joint training sees."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from maskcl import scenarios
from maskcl.methods import Finetune, Independent, Joint
from maskcl.nn import to_importance
from maskcl.problems import Vision
from maskcl.training.baselines import FreshTrainer, IndependentTrainer, together
from maskcl.training.trainer import Trainer


def task(seed, count=20):
    """A (train, test) pair of samples drawn by the seed."""
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=chance)
    data = TensorDataset(x, torch.arange(count) % 2)
    return data, data


def network(tasks=2, classes=None):
    """With a norm that keeps statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        return to_importance(model, tasks, classes=classes)


def fitted(kind, method, parts):
    """The network after training on these tasks in the domain setting."""
    scenario = scenarios.from_datasets(parts, setting="domain")
    net = network(scenario.num_tasks)
    kind(net, method, Vision(), scenario, torch.optim.Adam, epochs=3, batch_size=6, seed=1).fit()
    return net


def test_nothing_of_an_earlier_task_is_left_not_even_a_norms_statistics():
    states = []
    for first in (10, 11):
        net = fitted(IndependentTrainer, Independent(), [task(first), task(20)])
        states.append(net.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    # Finetuning is what differs, and its shared norm stands still after the first task.
    other = [fitted(Trainer, Finetune(), [task(n), task(20)]) for n in (10, 11)]
    weights = [net.model.state_dict() for net in other]
    assert not torch.equal(weights[0]["1.running_mean"], weights[1]["1.running_mean"])
    assert not torch.equal(weights[0]["0.weight"], weights[1]["0.weight"])


def test_a_joint_epoch_has_every_sample_of_all_tasks_so_far_once(monkeypatch):
    parts = [task(1, 20), task(2, 13), task(3, 7)]
    scenario = scenarios.from_datasets(parts, setting="task")
    seen = []
    plain = Vision.forward

    def forward(self, net, batch):
        seen.extend(map(tuple, batch[0].tolist()))
        return plain(self, net, batch)

    monkeypatch.setattr(Vision, "forward", forward)
    problem, so_far = together(Vision(), scenario)
    assert so_far.describe() == scenario.describe()
    net = network(3, classes=[2, 2, 2])
    FreshTrainer(
        net, Joint(), problem, so_far, torch.optim.Adam, epochs=1, batch_size=6, seed=1
    ).fit()
    wanted = Counter()
    for count in (1, 2, 3):
        for data, _ in parts[:count]:
            wanted.update(map(tuple, data.tensors[0].tolist()))
    assert Counter(seen) == wanted
    assert net.finished.tolist() == [True] * 3


def test_joint_training_trains_every_head():
    scenario = scenarios.from_datasets([task(1), task(2)], setting="task")
    problem, so_far = together(Vision(), scenario)
    net = network(2, classes=[2, 2])
    before = {name: tensor.clone() for name, tensor in net.model.state_dict().items()}
    FreshTrainer(
        net, Joint(), problem, so_far, torch.optim.Adam, epochs=2, batch_size=6, seed=1
    ).fit()
    after = net.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved >= {name for name, _ in net.model.named_parameters()}


def test_a_network_that_has_learned_is_refused():
    scenario = scenarios.from_datasets([task(1)], setting="domain")
    net = network(1)
    net.finish_task(0)
    trainer = IndependentTrainer(
        net, Independent(), Vision(), scenario, torch.optim.Adam, epochs=1, batch_size=6
    )
    with pytest.raises(ValueError, match="the network has finished tasks"):
        trainer.fit()
    with pytest.raises(ValueError, match="does not tell the task at test"):
        IndependentTrainer(
            network(2),
            Independent(),
            Vision(),
            scenarios.from_datasets([task(1), task(2)], setting="class"),
            torch.optim.Adam,
            epochs=1,
            batch_size=6,
        )
    with pytest.raises(TypeError, match="wanted an ImportanceNetwork"):
        Finetune().begin_task(nn.Linear(2, 2), 0)
