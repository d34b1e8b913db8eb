"""Regression and multi-label targets through the trainer: kept, learned, resumed, refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import maskcl
from maskcl.methods import EWC, HAT, MAS, Joint, Piggyback
from maskcl.nn import to_hat, to_importance, to_piggyback
from maskcl.problems import Graphs, MultiLabel, Regression, Vision
from maskcl.scenarios import Scenario, from_datasets
from maskcl.settings import TIME
from maskcl.training.baselines import FreshTrainer, together
from maskcl.training.references import references
from maskcl.training.trainer import Trainer
from tests import tiny

WIDTHS = (2, 1, 3)
KINDS = {"values": Regression(), "multilabel": MultiLabel()}


def data(task: int, width: int, targets: str, count: int = 96):
    """Waves of the task's own frequency over the plane, or where they are above 0."""
    generator = torch.Generator().manual_seed(task)
    x = 2 * torch.rand(count, 2, generator=generator) - 1
    phases = torch.arange(width) * 0.7
    y = torch.sin((1.0 + task) * (x @ torch.tensor([1.0, 0.5]))[:, None] + phases)
    return x, y if targets == "values" else (y > 0).long()


def scenario(targets: str, setting: str = "task") -> Scenario:
    widths = WIDTHS if setting == "task" else (2, 2, 2)
    pairs = []
    for task, width in enumerate(widths):
        x, y = data(task, width, targets)
        pairs.append((TensorDataset(x[:64], y[:64]), TensorDataset(x[64:], y[64:])))
    return from_datasets(pairs, targets=targets, setting=setting)


def network(method, cut: Scenario):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    heads = None if cut.setting.head == "shared" else cut.outputs
    if isinstance(method, HAT):
        return to_hat(model, 3, torch.zeros(2, 2), classes=heads)
    if isinstance(method, Piggyback):
        return to_piggyback(model, 3, classes=heads)
    return to_importance(model, 3, classes=heads)


def make(method, targets: str, setting: str = "task", net=None, problem=None, **changed) -> Trainer:
    cut = changed.pop("scenario", None) or scenario(targets, setting)
    return Trainer(
        network(method, cut) if net is None else net,
        method,
        problem or KINDS[targets],
        cut,
        lambda p: torch.optim.Adam(p, lr=0.01),
        **{"epochs": 25, "batch_size": 8, "device": "cpu", **changed},
    )


@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize("setting", ["task", "domain"])
@pytest.mark.parametrize("method", [HAT(), Piggyback(lr=0.01)], ids=["hat", "piggyback"])
def test_masks_keep_earlier_outputs_to_the_last_bit(method, setting, targets):
    kept = {}

    class Keep(maskcl.callback.Callback):
        def on_task_end(self, task, scores):
            kept[task] = tiny.logits(trainer.net, task, x)
            for earlier in range(task):
                assert torch.equal(tiny.logits(trainer.net, earlier, x), kept[earlier])

    x = data(0, 1, targets)[0]
    trainer = make(method, targets, setting, callback=Keep())
    result = trainer.fit()
    assert len(kept) == 3
    assert (result.matrix.diagonal() == result.matrix[-1]).all()
    above = np.array(result.matrix.diagonal()) - trainer.scenario.chance
    assert above[0] > (0.2 if targets == "values" else 0.1)


@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize(
    ("method", "strength"),
    [(MAS, 10.0), (EWC, 3000.0), (lambda strength: EWC(strength, labels="sampled"), 100.0)],
    ids=["mas", "ewc", "ewc-sampled"],
)
def test_importances_forget_less_than_none(method, strength, targets):
    left = [make(method(strength=s), targets).fit().matrix for s in (0.0, strength)]
    lost = [np.sum(m.diagonal() - m[-1]) for m in left]
    assert lost[1] < 0.6 * lost[0]


@pytest.mark.parametrize("targets", KINDS)
def test_a_run_without_task_ids_learns_one_drifting_function(targets):
    made = scenario(targets, "domain")
    cut = Scenario("drift", TIME, 0, made._tasks, (2,), targets=targets)
    matrix = make(MAS(heads=True), targets, scenario=cut).fit().matrix
    assert not np.isnan(matrix).any()


def test_training_accuracy_is_that_of_labels_and_none_of_values():
    result = make(HAT(), "multilabel", epochs=2).fit()
    assert all(0 < value <= 1 for part in result.accuracies for value in part)
    result = make(HAT(), "values", epochs=2).fit()
    assert result.accuracies == [[], [], []]
    assert [len(part) for part in result.losses] == [2, 2, 2]


@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize(
    "method", [HAT(), EWC(strength=10.0, labels="sampled")], ids=["hat", "ewc"]
)
def test_a_killed_run_resumes_to_the_same_bits(method, targets, tmp_path):
    class Stop(maskcl.callback.Callback):
        def on_epoch_start(self, task, epoch, batches):
            if (task, epoch) == (1, 1):
                raise KeyboardInterrupt

    whole = make(method, targets, epochs=2)
    wanted = whole.fit()
    with pytest.raises(KeyboardInterrupt):
        make(method, targets, epochs=2, directory=tmp_path, callback=Stop()).fit()
    resumed = make(method, targets, epochs=2, directory=tmp_path)
    found = resumed.fit(resume=True)
    np.testing.assert_array_equal(found.matrix, wanted.matrix)
    assert found.losses == wanted.losses
    state, other = whole.net.state_dict(), resumed.net.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in state.items())


@pytest.mark.parametrize("targets", KINDS)
def test_references_are_scored_with_the_same_metric(targets):
    cut = scenario(targets)
    found = references(
        lambda: network(MAS(), cut),
        KINDS[targets],
        cut,
        lambda p: torch.optim.Adam(p, lr=0.01),
        epochs=10,
        batch_size=8,
        device="cpu",
    )
    assert (found.joint > cut.chance).all()
    assert np.isfinite(found.scratch).all()


def test_graphs_with_values_are_kept_and_learned():
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    from maskcl.scenarios import Task
    from maskcl.scenarios.graphs.sets import GraphSet
    from maskcl.settings import TASK
    from tests import graph_zoo

    tasks = []
    for width in (1, 2):
        graphs = [graph_zoo.graph(5 + seed % 5, seed=seed) for seed in range(64)]
        share = torch.stack([4 * graph.x.mean(0)[:width] for graph in graphs])
        train, test = GraphSet(graphs[:48], share[:48]), GraphSet(graphs[48:])
        tasks.append(Task(list(range(width)), train, test, share[48:]))
    cut = Scenario("shares", TASK, 0, tasks, (6,), problem="graph", targets="values")
    method, problem = EWC(strength=10.0), Regression(Graphs("gcn"))
    net = to_importance(
        graph_zoo.model("graph", "gcn", classes=1, hidden=(32, 32)), 2, classes=cut.outputs
    )
    matrix = make(method, "values", net=net, problem=problem, scenario=cut).fit().matrix
    assert matrix[0, 0] > 0.3


@pytest.mark.parametrize(
    ("targets", "problem", "text"),
    [
        ("values", Vision(), "problem is Vision, which learns classes, and the scenario's targets"),
        ("multilabel", Vision(), "are multilabel; wanted MultiLabel"),
        (
            "values",
            MultiLabel(),
            "problem is MultiLabel, which learns multilabel.* wanted Regression",
        ),
        ("values", Regression(Graphs()), "problem is of graph data, and the scenario's are vision"),
    ],
)
def test_a_problem_of_another_kind_is_refused(targets, problem, text):
    with pytest.raises(ValueError, match=text):
        make(HAT(), targets, problem=problem)


def test_regression_is_refused_on_classes():
    with pytest.raises(ValueError, match="which learns values, and the scenario's targets are cl"):
        Trainer(
            tiny.network(),
            HAT(),
            Regression(),
            tiny.scenario(),
            tiny.OPTIMIZERS["sgd"],
            epochs=1,
            batch_size=1,
        )


def test_inference_of_tasks_needs_classes():
    with pytest.raises(ValueError, match="inference tells tasks apart by their classes"):
        make(HAT(), "values", "domain", inference=maskcl.TaskInference())


def test_the_likeliest_value_tells_ewc_nothing():
    with pytest.raises(ValueError, match='labels="predicted" measures nothing in regression'):
        make(EWC(labels="predicted"), "values")
    make(EWC(labels="predicted"), "multilabel")


def test_heads_of_another_size_are_told_before_training():
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))
    wrong = to_hat(model, 3, torch.zeros(2, 2), classes=[2, 2, 3])
    with pytest.raises(ValueError, match="head of task 1 has 2 outputs, wanted 1"):
        make(HAT(), "values", net=wrong).fit()


@pytest.mark.parametrize("targets", KINDS)
def test_the_best_epoch_is_found_and_restored(targets, tmp_path):
    """By the share of labels that are right; values have none, and go by the loss."""
    options = {"validation": 0.25, "epochs": 6}
    trainer = make(HAT(), targets, **options)
    result = trainer.fit()
    for task, found in enumerate(result.validation):
        assert len(found) == 6
        assert all(math.isfinite(value) for value in found)
        assert found[result.best_epochs[task]] == max(found)
        assert found[-1] > found[0]

    class Stop(maskcl.callback.Callback):
        def on_epoch_start(self, task, epoch, batches):
            if (task, epoch) == (1, 3):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(HAT(), targets, directory=tmp_path, callback=Stop(), **options).fit()
    resumed = make(HAT(), targets, directory=tmp_path, **options).fit(resume=True)
    assert resumed.best_epochs == result.best_epochs
    np.testing.assert_array_equal(resumed.matrix, result.matrix)


def test_a_plateau_of_the_score_is_one_of_the_loss():
    seen = []

    class Plateau(torch.optim.lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics, epoch=None):
            seen.append(metrics)
            super().step(metrics, epoch)

    make(
        HAT(), "values", epochs=2, scheduler_fn=lambda optimizer, _: Plateau(optimizer, mode="max")
    ).fit()
    assert len(seen) == 6
    assert all(value < 0 for value in seen)


@pytest.mark.parametrize("targets", KINDS)
def test_joint_training_takes_tasks_of_different_widths(targets):
    cut = scenario(targets)
    problem, mixed = together(KINDS[targets], cut)
    matrix = (
        FreshTrainer(
            network(Joint(), cut),
            Joint(),
            problem,
            mixed,
            lambda p: torch.optim.Adam(p, lr=0.01),
            epochs=10,
            batch_size=8,
            device="cpu",
        )
        .fit()
        .matrix
    )
    assert (matrix[-1] > cut.chance).all()


def test_a_run_is_reported_by_the_name_of_its_metric(tmp_path):
    pytest.importorskip("matplotlib", reason="the report needs maskcl[train]")
    for targets, name in (("values", "R2"), ("multilabel", "mAP")):
        result = make(HAT(), targets, epochs=1).fit()
        result.report(tmp_path / targets)
        page = (tmp_path / targets / "report.html").read_text()
        assert name in page
        found = json.loads((tmp_path / targets / "result.json").read_text())
        assert found["scenario"]["targets"] == targets
