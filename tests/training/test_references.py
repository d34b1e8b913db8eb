"""What plain networks reach together and alone: right data, right heads, one seed."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from maskcl.methods import MAS, derive_seed
from maskcl.nn import to_importance
from maskcl.problems import Vision
from maskcl.scenarios import Scenario, from_datasets, load
from maskcl.training.references import References, references
from maskcl.training.trainer import Trainer

ADAM = {"optimizer_fn": lambda groups: torch.optim.Adam(groups, lr=0.01)}
SMALL = {"epochs": 2, "batch_size": 16, "device": "cpu", **ADAM}


def maker(scenario, dropout=0.0):
    """Fresh networks with the setting's heads."""
    classes, head = scenario.classes_per_task, scenario.setting.head

    def make():
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(16, classes[0]),
        )  # fmt: skip
        return to_importance(
            model,
            scenario.num_tasks,
            classes=None if head == "shared" else classes,
            growing=head == "growing",
        )

    return make


def of(scenario, dropout=0.0, **other):
    return references(maker(scenario, dropout), Vision(), scenario, **{**SMALL, "seed": 0, **other})


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    return load("split-digits", tasks=3)


@pytest.fixture(scope="module")
def found(digits):
    return of(digits, dropout=0.2)


def test_every_network_learns_what_it_was_trained_on(found):
    assert np.isnan(found.together[np.triu_indices(3, 1)]).all()
    assert found.together[np.tril_indices(3)].min() > 0.85
    assert found.scratch.min() > 0.85
    # Task 0 together with nothing else is task 0 alone.
    assert found.together[0, 0] == found.scratch[0]


def test_metrics_get_the_diagonal_and_the_last_row():
    together = np.array([[0.5, np.nan], [0.6, 0.7]])
    made = References(together, np.array([0.5, 0.8]))
    assert made.joint.tolist() == [0.5, 0.7]
    assert made.joint_last.tolist() == [0.6, 0.7]


def test_the_seed_decides_and_the_process_stays_as_it_was(digits, found):
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    again = of(digits, dropout=0.2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert random.getstate() == before[2]
    np.testing.assert_array_equal(again.together, found.together)
    np.testing.assert_array_equal(again.scratch, found.scratch)


def test_another_seed_gives_other_networks(digits):
    nets = []

    def watched():
        nets.append(maker(digits)())
        return nets[-1]

    for seed in (0, 1):
        references(watched, Vision(), digits, **{**SMALL, "epochs": 1, "seed": seed})
    weights = [net.model[1].weight.detach() for net in nets]
    # 2 T - 1 networks a seed, all different in the end.
    assert len(weights) == 10
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


@pytest.mark.parametrize("setting", ["task", "domain", "class"])
def test_together_sees_every_sample_once_an_epoch_and_alone_only_its_own(setting):
    """Samples are recognised by their pixels: task t's i-th is all t + i / 100."""
    count = 5
    datasets = []
    for task in range(3):
        x = (task + torch.arange(count) / 100).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        y = torch.arange(count) % 2 + (2 * task if setting == "class" else 0)
        datasets.append((TensorDataset(x.contiguous(), y), TensorDataset(x.contiguous(), y)))
    scenario = from_datasets(datasets, setting=setting, name="made")
    seen = []

    class Watching(Vision):
        def forward(self, net, batch):
            seen.append(sorted(batch[0][:, 0, 0, 0].tolist()))
            return super().forward(net, batch)

    references(
        maker(scenario), Watching(), scenario, seed=0, epochs=1, batch_size=2, device="cpu", **ADAM
    )
    wanted = [np.array([task + i / 100 for i in range(count)]) for task in range(3)]
    # 5 samples in batches of 2 are 2 and 3. Networks: 0; 0 1; 1; 0 1 2; 2.
    at = 0
    for tasks in ([0], [0, 1], [1], [0, 1, 2], [2]):
        batches = seen[at : at + 2 * len(tasks)]
        at += 2 * len(tasks)
        flat = sorted(value for batch in batches for value in batch)
        np.testing.assert_allclose(flat, np.concatenate([wanted[task] for task in tasks]))
        # A batch is of one task.
        assert all(round(batch[0]) == round(batch[-1]) for batch in batches)
    assert at == len(seen)


def test_together_in_the_class_setting_chooses_among_all_classes_so_far(digits):
    scenario = load("split-digits", tasks=2, setting="class")
    found = of(scenario, epochs=4)
    assert found.together[1].min() > 0.85
    # Alone it has learned never to answer with the first task's classes.
    assert found.scratch[1] > 0.85


def test_the_first_is_what_a_trainer_makes_of_the_first_task(digits):
    nets = []

    def watched():
        nets.append(maker(digits)())
        return nets[-1]

    references(watched, Vision(), digits, seed=3, **SMALL)
    torch.manual_seed(derive_seed("reference", 3))
    net = maker(digits)()
    one = Scenario("one", digits.setting, 3, digits._tasks[:1], digits.input_shape)
    Trainer(net, MAS(), Vision(), one, seed=3, **SMALL).fit()
    for mine, other in zip(net.model.parameters(), nets[0].model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_progress_names_each_network_in_turn(digits):
    said = []
    found = of(digits, epochs=1, callback=lambda *what: said.append(what))
    assert [(name, task) for name, task, _ in said] == [
        (name, task) for task in range(3) for name in ("joint", "scratch")
    ]
    assert [score for name, _, score in said if name == "joint"] == found.joint.tolist()


def test_what_cannot_be_trained_is_said(digits):
    for name in ("epochs", "batch_size"):
        with pytest.raises(ValueError, match=f"references: {name} is 0, wanted an integer"):
            of(digits, **{name: 0})
    with pytest.raises(RuntimeError, match="references: the loss is not finite in epoch 1"):
        of(digits, optimizer_fn=lambda groups: torch.optim.SGD(groups, lr=1e30))
