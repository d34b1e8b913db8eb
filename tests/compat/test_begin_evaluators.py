"""BeGin's evaluators, exports of its loaders, and loaders of the users."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from maskcl.compat.begin import scenarios
from maskcl.compat.begin.algorithms import bare, hat
from maskcl.compat.begin.data import DataGraph
from maskcl.compat.begin.evaluators import (
    AccuracyEvaluator,
    BaseEvaluator,
    HitsEvaluator,
    MAEEvaluator,
    ROCAUCEvaluator,
)
from maskcl.compat.begin.scenarios.common import BaseScenarioLoader
from maskcl.compat.begin.trainers.nodes import NCTrainer
from maskcl.compat.begin.utils import GCNNode
from tests.compat.begin_tiny import CLASSES, TASKS, nodes, ring, scenario


def test_evaluators_score_each_task_and_all() -> None:
    tasks, where = torch.tensor([0, 0, 1, 1, 2]), torch.arange(5)
    answer = torch.tensor([1, 0, 1, 1, 0])
    accuracy = AccuracyEvaluator(2, tasks)
    found = accuracy(_prediction=torch.tensor([1, 1, 1, 1, 1]), _answer=answer, indices=where)
    assert found.tolist() == [0.5, 1.0, 0.75]  # the last instance is of no task
    assert accuracy.simple_eval(torch.tensor([1]), torch.tensor([0])) == 0
    assert AccuracyEvaluator(3, tasks)(answer[:2], answer[:2], where[:2])[1:3].isnan().all()
    off = MAEEvaluator(2, tasks)(answer + torch.tensor([0.0, 1, 2, 0, 9]), answer, where)
    assert off.tolist() == [0.5, 1.0, 0.75]
    scores = torch.tensor([[0.9], [0.1], [0.3], [0.2]])
    ranked = ROCAUCEvaluator(2, tasks)(scores, torch.tensor([[1], [0], [0], [1]]), where[:4])
    assert ranked.tolist() == [1.0, 0.0, 0.75]
    assert math.isnan(ROCAUCEvaluator(1, tasks).simple_eval(scores, torch.ones(4, 1)))
    links, of = torch.tensor([1, 1, 0, 0, 0]), torch.tensor([0, 1, -1, -1, -1])
    scores = torch.tensor([0.5, 0.1, 0.9, 0.3, 0.2])
    assert HitsEvaluator(2, 2)(scores, links, of).tolist() == [1.0, 0.0, 0.5]
    assert HitsEvaluator(2, 4)(scores, links, of).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(NotImplementedError):
        BaseEvaluator(1, tasks).simple_eval(answer, answer)


def test_a_loader_takes_an_evaluator_of_the_users() -> None:
    class Recall(BaseEvaluator):
        """Of the class with the highest number."""

        def simple_eval(self, prediction: Tensor, answer: Tensor) -> float:
            return (prediction[answer == answer.max()] == answer.max()).double().mean().item()

    scenarios.evaluator_map["recall"] = Recall
    try:
        found = scenario("NC", "class", metric="recall")
        truth = nodes(None)["graph"].ndata["label"]
        test = found.get_current_dataset().ndata["test_mask"]
        guesses = torch.where(truth[test] == 1, 1, 0)
        assert found.metric == "recall"
        assert found.get_eval_result(guesses).tolist() == [1.0, 0.0, 0.0, 0.0]
        assert found.get_simple_eval_result(torch.tensor([1, 2]), torch.tensor([1, 2])) == 1
    finally:
        del scenarios.evaluator_map["recall"]
    with pytest.raises(ValueError, match="metric is 'recall', wanted one of accuracy, rocauc"):
        scenario("NC", "class", metric="recall")
    assert scenario("LC", "time").metric == "rocauc"  # as it was given


@pytest.mark.parametrize(
    ("problem", "setting"), [("NC", "task"), ("NC", "time"), ("LC", "class"), ("GC", "task")]
)
def test_an_export_has_the_labels_and_each_tasks_part(problem: str, setting: str) -> None:
    found = scenario(problem, setting).export_dataset()
    whole, parts = found["global"], found["tasks"]
    assert sorted(parts) == list(range(TASKS)) and whole["num_classes"] == CLASSES
    labels = whole["labels" if problem == "GC" else "label"]
    masks = [whole[f"{name}_mask"] for name in ("train", "val", "test")]
    assert torch.equal(sum(mask.long() for mask in masks), torch.ones(len(labels)).long())
    assert bool((labels >= 0).all()) and sorted(whole["task"].unique().tolist()) == [0, 1, 2]
    if setting in ("task", "class"):
        assert torch.equal(whole["task"], labels // 2)
    for task, part in parts.items():
        if problem == "GC":
            assert bool((whole["task"][part["train_indices"]] == task).all())
            assert bool(whole["train_mask"][part["train_indices"]].all())
        else:
            rows = torch.nonzero(part["train_mask"]).flatten()
            assert bool((whole["task"][rows] == task).all())
            assert torch.equal(part["label"][rows], labels[rows])
    used = scenario(problem, setting)
    assert "tasks" not in used.export_dataset(full=False)
    used.export_dataset()
    with pytest.raises(RuntimeError, match="the scenario is at task 3, wanted a new one"):
        used.export_dataset()


def test_an_export_of_link_prediction() -> None:
    found = scenario("LP", "time").export_dataset()["global"]
    labels, links = found["test_labels"], found["test_edges"]
    assert len(labels) == len(links) and set(labels.tolist()) == {0, 1, 2, 3}
    edges = torch.stack(found["edges"], 1)
    pairs = {tuple(pair) for pair in edges.tolist()}
    assert len(found["task"]) == len(edges)
    assert all((tuple(p) in pairs) == bool(k) for p, k in zip(links.tolist(), labels.tolist()))
    assert not any(tuple(pair) in pairs for pair in found["neg_edges"]["test"].tolist())


class OwnLoader(BaseScenarioLoader):
    """Two tasks of two classes each, on a ring."""

    def _init_continual_scenario(self) -> None:
        self.num_tasks, self.num_classes, self.num_feats = 2, 4, 4
        self.labels = torch.arange(40) // 10
        self.rows: list[Tensor] = []

    def _dataset(self, tasks: list[int]) -> DataGraph:
        made = ring(40, F.one_hot(self.labels).float())
        own = torch.isin(self.labels // 2, torch.tensor(tasks))
        fold = torch.arange(40) % 3
        data = {"train_mask": own & (fold == 0), "val_mask": own & (fold == 1)}
        masks = F.one_hot(self.labels // 2, 2).bool().repeat_interleave(2, 1)
        data |= {"test_mask": fold == 2, "task_specific_mask": masks}
        made.ndata |= {**data, "label": torch.where(own & (fold < 2), self.labels, -1)}
        return made

    def _update_target_dataset(self) -> None:
        self._target_dataset = self._dataset([self._curr_task])

    def _update_accumulated_dataset(self) -> None:
        self._accumulated_dataset = self._dataset(list(range(self._curr_task + 1)))

    def _score(self, dataset: DataGraph, preds: Tensor, split: str) -> Tensor:
        where = torch.nonzero(dataset.ndata[f"{split}_mask"]).flatten()
        return AccuracyEvaluator(2, self.labels // 2)(preds, self.labels[where], where)

    def get_eval_result(self, preds: Tensor, target_split: str = "test") -> Tensor:
        return self._score(self._target_dataset, preds, target_split)

    def get_accum_eval_result(self, preds: Tensor, target_split: str = "test") -> Tensor:
        return self._score(self._accumulated_dataset, preds, target_split)

    def get_simple_eval_result(self, curr_batch_preds: Tensor, curr_batch_gts: Tensor) -> float:
        return (curr_batch_preds == curr_batch_gts).double().mean().item()

    def next_task(self, preds: Any = None) -> Any:
        self.rows.append(self.get_eval_result(preds))
        super().next_task(preds)
        return {"AP": float(self.rows[-1][:-1].mean()), "AF": 0.0, "FWT": None}


@pytest.mark.parametrize("kind", [hat.NCTaskILHATTrainer, bare.NCTaskILBareTrainer, NCTrainer])
def test_trainers_take_a_loader_of_the_users(kind: type[Any]) -> None:
    loader = OwnLoader("rings", None, 2, "task", "accuracy", depth=3)
    assert loader.kwargs == {"depth": 3} and len(loader) == 2
    torch.manual_seed(0)
    trainer = kind(
        GCNNode(4, 4, 16),
        loader,
        lambda p: torch.optim.Adam(p, lr=0.02),
        nn.CrossEntropyLoss(ignore_index=-1),
        "cpu",
        verbose=False,
        benchmark=True,
    )
    found = trainer.run(15)
    assert found["exp_AP"] > 0.9 and trainer._task_of_class.tolist() == [0, 0, 1, 1]
