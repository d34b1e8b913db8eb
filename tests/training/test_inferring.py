"""A trainer whose tasks are inferred at test: both views, resumed, continued, in every setting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import maskcl
import maskcl.callback
import maskcl.settings
from maskcl.methods import HAT, MAS, Piggyback
from maskcl.nn import to_hat, to_importance, to_piggyback
from maskcl.problems import Vision
from maskcl.scenarios import from_datasets
from maskcl.training.class_labels import ClassLabels
from maskcl.training.result import Result
from maskcl.training.trainer import Trainer
from tests import tiny
from tests.nn.inference.test_task_inference import data

TASKS = 3


def scenario(setting: str = "class", tasks: int = TASKS, first: int = 0):
    parts = []
    for task in range(first, first + tasks):
        own = 2 * task if setting == "class" else 0
        (x, y), (a, b) = data(task % 3), data(task % 3, seed=9)
        parts.append((TensorDataset(x, y + own), TensorDataset(a, b + own)))
    return from_datasets(parts, setting=setting)


def network(kind: str = "hat", setting: str = "class", tasks: int = TASKS):
    torch.manual_seed(0)
    classes = None if setting == "domain" else [2] * tasks
    if kind == "hat":
        return to_hat(tiny.mlp(), tasks, torch.zeros(2, *tiny.SHAPE), classes=classes)
    if kind == "piggyback":
        return to_piggyback(tiny.mlp(), tasks, classes=[2] * tasks)
    return to_importance(tiny.mlp(), tasks, classes=[2, 4, 6], growing=True)


METHODS = {"hat": HAT(), "piggyback": Piggyback(), "mas": MAS()}


def trainer(net, cut, kind="hat", space="shared", **options) -> Trainer:
    options = {"epochs": 3, "batch_size": 8, "device": "cpu"} | options
    inference = None if space is None else maskcl.TaskInference(space)
    return Trainer(
        net, METHODS[kind], Vision(), cut, tiny.OPTIMIZERS["adam"], inference=inference, **options
    )


@pytest.mark.parametrize(
    ("kind", "space"),
    [
        ("hat", "shared"),
        ("hat", "masked"),
        ("piggyback", "base"),
        ("piggyback", "masked"),
        ("mas", "shared"),
    ],
)
def test_both_views_and_what_inference_got_right(kind, space):
    cut = scenario()
    run = trainer(network(kind), cut, kind, space)
    result = run.fit()
    found = result.inference
    lower = np.tril(np.ones((TASKS, TASKS), dtype=bool))
    for matrix in (result.matrix, found.identified, found.alone):
        assert not np.isnan(matrix[lower]).any()
        assert np.isnan(matrix[~lower]).all()
        assert matrix[-1].mean() > 0.8
    assert found.confusion.sum(1).tolist() == [test for _, test in cut.sizes]
    assert found.confusion.diagonal() / 40 == pytest.approx(found.identified[-1])
    # By hand, from the network's own answer.
    for task in range(TASKS):
        x = cut.test_inputs(task)
        x = torch.stack([x[i] for i in range(len(x))])
        inferred = run.net.infer(x)
        named = inferred.label if kind == "mas" else 2 * inferred.task + inferred.label
        assert cut.score(task, named) == result.matrix[-1, task] == run.evaluate(task)
        if kind != "mas":
            with run.net.task(task), torch.no_grad():
                told = run.net.eval()(x).argmax(1) + 2 * task
            assert cut.score(task, told) == found.told[-1, task]
    again = Result.from_dict(result.to_dict())
    assert again.to_dict() == result.to_dict() or np.isnan(result.matrix).any()
    assert np.array_equal(again.inference.told, found.told, equal_nan=True)


@pytest.mark.parametrize("space", ["shared", "masked"])
@pytest.mark.parametrize("stop", ["inside", "between"])
def test_an_interrupted_run_ends_as_one_that_was_not(space, stop, tmp_path):
    whole = trainer(network(), scenario(), space=space)
    wanted = whole.fit()

    class Stop(maskcl.callback.Callback):
        def on_epoch_start(self, task, epoch, batches):
            if (task, epoch) == ((1, 2) if stop == "inside" else (2, 0)):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(network(), scenario(), space=space, directory=tmp_path, callback=Stop()).fit()
    resumed = trainer(network(), scenario(), space=space, directory=tmp_path)
    found = resumed.fit(resume=True)
    for name in ("told", "identified", "alone", "confusion"):
        first, second = (getattr(r.inference, name) for r in (wanted, found))
        assert np.array_equal(first, second, equal_nan=True), name
    assert np.array_equal(wanted.matrix, found.matrix, equal_nan=True)
    states = whole.net.state_dict(), resumed.net.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_a_run_with_another_inference_is_not_gone_on_with(tmp_path):
    trainer(network(), scenario(), directory=tmp_path).fit()
    with pytest.raises(ValueError, match="inference"):
        trainer(network(), scenario(), space="masked", directory=tmp_path).fit(resume=True)


def test_domains_are_told_unless_inference_is_given():
    result = trainer(network(setting="domain"), scenario("domain"), space=None).fit()
    assert result.inference is None
    inferred = trainer(network(setting="domain"), scenario("domain")).fit()
    assert inferred.inference.identified[-1].mean() > 0.9
    assert np.array_equal(np.diag(inferred.inference.told), np.diag(result.matrix))


@pytest.mark.parametrize("space", [None, "shared"])
def test_tasks_that_come_later_are_told_from_those_before(space):
    net = network(tasks=4)
    trainer(net, scenario(tasks=2)).fit()
    kept = {k: v.clone() for k, v in net.inference.state_dict().items()}
    with pytest.raises(ValueError, match=r"by which tasks \[0, 1\] of the network were measured"):
        trainer(net, scenario(tasks=2, first=2), space="masked", first_task=2)
    found = trainer(net, scenario(tasks=2, first=2), space=space, first_task=2).fit()
    assert net.inference.tasks == [0, 1, 2, 3]
    for name, tensor in kept.items():
        assert torch.equal(net.inference.state_dict()[name], tensor), name
    assert found.inference.told[-1].min() > 0.8
    # Task 3 has task 0's samples: what is taken for a task of before counts as wrong.
    assert found.inference.confusion[1].sum() < 40


def test_finished_tasks_of_the_scenario_are_measured_and_others_asked_for():
    net = network()
    first = from_datasets([(TensorDataset(*data(0)), TensorDataset(*data(0, seed=9)))])
    Trainer(
        net, HAT(), Vision(), first, tiny.OPTIMIZERS["adam"], epochs=2, batch_size=8, device="cpu"
    ).fit()
    assert net.inference is None
    run = trainer(net, scenario())
    assert run.fit().inference.identified[-1].mean() > 0.9
    assert net.inference.tasks == [0, 1, 2]
    other = network(tasks=4)
    Trainer(
        other, HAT(), Vision(), first, tiny.OPTIMIZERS["adam"], epochs=2, batch_size=8, device="cpu"
    ).fit()
    with pytest.raises(ValueError, match="task 0 is finished and was not measured"):
        trainer(other, scenario(tasks=2, first=1), first_task=1).fit()
    assert other.finished.tolist() == [True, False, False, False]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="the task setting tells the task"):
        trainer(network(), scenario("task"))
    with pytest.raises(ValueError, match="which the class setting does not tell"):
        trainer(network(), scenario(), space=None)
    wide = to_hat(tiny.mlp(), TASKS, torch.zeros(2, *tiny.SHAPE), classes=[2, 4, 6])
    with pytest.raises(ValueError, match="the head of task 1 has 4 outputs, wanted 2"):
        trainer(wide, scenario()).fit()
    with pytest.raises(ValueError, match="has no frozen base"):
        trainer(network(), scenario(), space="base").fit()


def test_labels_go_to_heads_and_back():
    labels = ClassLabels([[7, 3], [5], [3, 9, 8]], maskcl.settings.CLASS)
    x, y = torch.zeros(3), torch.tensor([1, 3, 4])  # of 3, 9 and 8, in the order of first sight
    assert labels.batch(2, (x, y))[1].tolist() == [0, 1, 2]
    tasks, own = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 0, 0, 1, 2])
    assert labels.of_scenario(tasks, own).tolist() == [0, 1, 2, 1, 3, 4]
