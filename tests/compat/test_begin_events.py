"""Event functions in subclasses: when they are called, with what, and what overriding them does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from maskcl.compat.begin.algorithms import hat, mas
from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.compat.begin.trainers.graphs import GCTrainer
from maskcl.compat.begin.trainers.links import LCTrainer, LPTrainer
from maskcl.compat.begin.trainers.nodes import NCMinibatchTrainer, NCTrainer
from tests.compat.begin_tiny import CLASSES, TASKS, make

EVENTS = (
    "initTrainingStates",
    "prepareLoader",
    "processBeforeTraining",
    "beforeInference",
    "inference",
    "afterInference",
    "processTrainIteration",
    "processEvalIteration",
    "predictionFormat",
    "processTrainingLogs",
    "processAfterEachIteration",
    "processAfterTraining",
)
Call = tuple[str, tuple[Any, ...]]


def mine(base: type[BaseTrainer], **body: Any) -> type[Any]:
    """A subclass as a user would write it."""
    return type(f"My{base.__name__}", (base,), body)


def recording(base: type[BaseTrainer]) -> tuple[type[Any], list[Call]]:
    calls: list[Call] = []

    def noting(name: str) -> Callable[..., Any]:
        def event(self: Any, *args: Any) -> Any:
            calls.append((name, args))
            return getattr(super(kind, self), name)(*args)

        return event

    kind = mine(base, **{name: noting(name) for name in EVENTS})
    return kind, calls


def test_events_come_in_begins_order() -> None:
    kind, calls = recording(hat.NCTaskILHATTrainer)
    trainer = make(kind, verbose=True)
    model = trainer.model
    trainer.run(1)
    names = [name for name, args in calls if model in args or not isinstance(args[0], nn.Module)]
    names = [name for name in names if name != "predictionFormat"]
    assert names[0] == "initTrainingStates" and names.count("initTrainingStates") == 1
    first = names.index("beforeInference")
    assert names[first - 2 :][:11] == [
        "processBeforeTraining",
        "processTrainIteration",
        "beforeInference",
        "inference",
        "afterInference",
        "processEvalIteration",  # of the validation nodes
        "inference",
        "processTrainingLogs",
        "processAfterEachIteration",
        "processAfterTraining",
        "prepareLoader",
    ]
    for name in ("processTrainIteration", "processAfterTraining", "processAfterEachIteration"):
        assert names.count(name) == TASKS


def test_events_get_begins_arguments() -> None:
    kind, calls = recording(mas.NCTaskILMASTrainer)
    trainer = make(kind, verbose=True)
    trainer.run(1)
    given = {name: args for name, args in calls if trainer.model in args or name not in given_once}
    scenario, model, optimizer = dict(calls)["initTrainingStates"]
    assert scenario.num_tasks == TASKS and model is trainer.model
    assert isinstance(optimizer, torch.optim.Adam)
    task, dataset, model, optimizer, states = given["processBeforeTraining"]
    assert task == TASKS - 1 and isinstance(dataset, DataGraph) and model is trainer.model
    assert isinstance(optimizer, torch.optim.Adam) and isinstance(states, dict)
    model, optimizer, batch, states_then = given["beforeInference"]
    assert states_then is states and isinstance(batch[0], DataGraph)
    assert batch[1].dtype == torch.bool and int(batch[1].sum()) > 0
    results = given["afterInference"][0]
    assert set(results) == {"preds", "loss", "_before_inference"}
    task, epoch, metric, train_stats, val_stats = dict(calls)["processTrainingLogs"]
    assert (task, epoch) == (TASKS - 1, 0) and 0 <= metric <= 1
    assert set(train_stats) == {"loss", "acc"} and set(val_stats) == {"loss"}
    assert set(given["processAfterEachIteration"][3]) == {"val_metric", "train_stats", "val_stats"}


given_once = ("processBeforeTraining", "beforeInference", "afterInference")


@pytest.mark.parametrize(
    ("base", "setting", "form"),
    [
        (NCTrainer, "task", (DataGraph, Tensor)),
        (NCMinibatchTrainer, "class", (Tensor, Tensor, list)),
        (LCTrainer, "class", (DataGraph, Tensor, Tensor, Tensor)),
        (LCTrainer, "task", (DataGraph, Tensor, Tensor, Tensor, Tensor)),
        (LPTrainer, "time", (Tensor, Tensor)),
        (GCTrainer, "class", (DataGraph, Tensor)),
        (GCTrainer, "task", (DataGraph, Tensor, Tensor)),
    ],
)
def test_batches_have_begins_form(base: type[BaseTrainer], setting: str, form: Any) -> None:
    kind, calls = recording(base)
    make(kind, setting).run(1)
    batch = dict(calls)["beforeInference"][2]
    assert tuple(type(part) for part in batch) == form


def test_an_overridden_inference_sees_node_data_and_is_masked() -> None:
    seen: list[Tensor] = []

    def inference(self: Any, model: Any, curr_batch: Any, states: Any) -> dict[str, Any]:
        graph, mask = curr_batch
        feat = graph.ndata["feat"].to(self.device)
        preds = model(graph.to(self.device), feat, task_masks=graph.ndata["task_specific_mask"])
        seen.append(preds)
        labels = graph.ndata["label"][mask].to(self.device)
        return {"preds": preds[mask], "loss": self.loss_fn(preds[mask], labels)}

    kept = {}
    for base in (hat.NCTaskILHATTrainer, mine(hat.NCTaskILHATTrainer, inference=inference)):
        kept[base.__name__] = make(base).run(3)["exp_test"]
    first, second = kept.values()
    assert torch.equal(first, second)  # the user's own does what the default does
    assert all(preds.shape == (90, CLASSES) and bool(preds.isfinite().all()) for preds in seen)


def test_an_overridden_after_inference_cannot_forget_under_hat() -> None:
    """The optimizer is guarded, so that a plain step keeps what earlier tasks need."""

    def after(self: Any, results: Any, model: Any, optimizer: Any, batch: Any, states: Any) -> Any:
        results["loss"].backward()
        optimizer.step()
        return {"loss": results["loss"].item(), "acc": 0.0}

    kind = mine(hat.NCTaskILHATTrainer, afterInference=after)
    rows = make(kind, optimizer_fn=lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.1)).run(5)
    assert torch.equal(rows["exp_test"][0, 0], rows["exp_test"][-1, 0])


def test_a_subclass_may_be_a_method_of_the_users_own() -> None:
    """A penalty on leaving the last task's weights, by states that travel through the events."""

    class MyNCTrainer(NCTrainer):
        keywords = ("pull",)

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.pull = kwargs.get("pull", 1.0)

        def initTrainingStates(self, scenario: Any, model: Any, optimizer: Any) -> dict[str, Any]:
            return {"anchors": {}}

        def afterInference(
            self, results: Any, model: Any, optimizer: Any, batch: Any, states: Any
        ) -> dict[str, Any]:
            away = [
                (p - states["anchors"][name]).square().sum()
                for name, p in model.named_parameters()
                if name in states["anchors"]
            ]
            (results["loss"] + self.pull * sum(away)).backward()
            optimizer.step()
            return {"loss": results["loss"].item(), "acc": 0.0}

        def processAfterTraining(
            self, task_id: int, dataset: Any, model: Any, optimizer: Any, states: Any
        ) -> None:
            super().processAfterTraining(task_id, dataset, model, optimizer, states)
            states["anchors"] = {n: p.detach().clone() for n, p in model.named_parameters()}

    moved = {}
    for pull in (0.0, 1e3):
        trainer = make(MyNCTrainer, "domain", pull=pull)
        start: dict[int, Tensor] = {}

        def note(model: Any, start: dict[int, Tensor] = start) -> None:
            start[len(start)] = model.core.nodes.convs[1].lin.weight.detach().clone()

        original = trainer.processAfterTraining
        trainer.processAfterTraining = lambda *a, o=original, n=note: (o(*a), n(a[2]))[0]  # type: ignore[method-assign]
        trainer.run(5)
        moved[pull] = float((start[TASKS - 1] - start[0]).norm())
    assert 0 < moved[1e3] < 0.5 * moved[0.0]


def test_prediction_format_decides_what_is_scored() -> None:
    kind = mine(NCTrainer, predictionFormat=lambda self, results: results["preds"].argmin(-1))
    # After the first task a class that it has not shown has the lowest logit, and is never right.
    assert make(kind, "class").run(2)["exp_test"][0, 0] == 0


def test_stats_are_weighted_by_their_number_of_items() -> None:
    trainer = make(NCTrainer)
    stats = {"_num_items": [3, 1], "loss": [1.0, 5.0]}
    assert trainer._reduceTrainingStats(stats) == {"loss": 2.0}
    assert trainer._reduceEvalStats({"loss": [1.0, 5.0]}) == {"loss": 3.0}


def test_the_best_weights_come_back_at_a_tasks_end() -> None:
    found: list[tuple[float, Tensor]] = []
    final: list[Tensor] = []

    def weights(model: Any) -> Tensor:
        return model.core.nodes.convs[0].lin.weight.detach().clone()

    def each(self: Any, model: Any, optimizer: Any, states: Any, results: Any) -> bool:
        found.append((results["val_stats"]["loss"], weights(model)))
        return super(kind, self).processAfterEachIteration(model, optimizer, states, results)

    def after(self: Any, task: int, dataset: Any, model: Any, optimizer: Any, states: Any) -> None:
        super(kind, self).processAfterTraining(task, dataset, model, optimizer, states)
        final.append(weights(model))

    kind = mine(NCTrainer, processAfterEachIteration=each, processAfterTraining=after)
    make(kind, "class", optimizer_fn=lambda p: torch.optim.SGD(p, lr=2.0)).run(6)
    first = found[:6]
    best = min(range(6), key=lambda i: first[i][0])
    assert best < 5  # else the test says nothing
    assert torch.equal(final[0], first[best][1])


def test_hidden_labels_never_reach_the_loss() -> None:
    def loss(preds: Tensor, answers: Tensor) -> Tensor:
        assert bool((answers >= 0).all())
        return F.cross_entropy(preds, answers)

    assert make(hat.GCTaskILHATTrainer, loss_fn=loss).run(1)["exp_test"].shape == (TASKS, TASKS + 1)


@pytest.mark.parametrize("algorithm", [hat, mas])
def test_a_scaler_of_another_network_does_not_concern_it(algorithm: Any) -> None:
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.ones(()))
    base = algorithm.NCTaskILHATTrainer if algorithm is hat else algorithm.NCTaskILMASTrainer
    make(base).run(1)  # does not refuse: its own loss is not scaled
    assert scaler.is_enabled()
