"""Node, link and graph problems in the task setting: what a task computes keeps its bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from maskcl import HAT, Piggyback
from maskcl.callback import Callback
from maskcl.nn import to_hat, to_piggyback
from maskcl.problems import Graphs, Link, Node
from maskcl.scenarios import load
from maskcl.training.trainer import Trainer

pytest.importorskip("torch_geometric")

from maskcl.models import example_inputs
from maskcl.models.graph import build

PROBLEMS = {"node": ("nodes-digits", Node), "link": ("links-digits", Link)}
PROBLEMS["graph"] = ("graphs-digits", Graphs)


class Remember(Callback):
    """Logits of every finished task, looked at again when each later one ends."""

    def __init__(self) -> None:
        self.trainer: Any = None
        self.known: dict[int, Tensor] = {}

    def on_task_end(self, task: int, scores: object) -> None:
        for earlier, wanted in self.known.items():
            assert torch.equal(self.logits(earlier), wanted)
        self.known[task] = self.logits(task)

    @torch.no_grad()
    def logits(self, task: int) -> Tensor:
        trainer = self.trainer
        trainer.net.eval()
        with trainer.net.task(task):
            batches = trainer.problem.test_batches(trainer.scenario.test_inputs(task), 64)
            return torch.cat([trainer.net(*batch[:-1]) for batch in batches])


def trainer_of(problem: str, encoder: str, method: Any, **options: Any) -> Trainer:
    name, kind = PROBLEMS[problem]
    scenario = load(name, tasks=3)
    torch.manual_seed(0)
    (features,) = scenario.input_shape
    outputs = scenario.classes_per_task
    model = build(problem, encoder, features, outputs[0], hidden=(24, 24), norm=True)
    adjacency = model.encoder.adjacency
    if isinstance(method, HAT):
        given = example_inputs(problem, adjacency, features)
        net: Any = to_hat(model, 3, given, classes=outputs)
    else:
        net = to_piggyback(model, 3, classes=outputs, norms="task")
    remember = Remember()
    decay = 0.01 if isinstance(method, HAT) else 0.0
    trainer = Trainer(
        net,
        method,
        kind(adjacency),
        scenario,
        lambda groups: torch.optim.AdamW(groups, lr=0.01, weight_decay=decay),
        epochs=2,
        batch_size=256,
        callback=remember,
        **options,
    )
    remember.trainer = trainer
    return trainer


@pytest.mark.parametrize("encoder", ["gcn", "sage", "gin", "gat"])
@pytest.mark.parametrize(
    "method", [HAT(sparsity=0.1), Piggyback(lr=0.01)], ids=["hat", "piggyback"]
)
def test_nodes(method: Any, encoder: str) -> None:
    trainer = trainer_of("node", encoder, method)
    result = trainer.fit()
    assert len(trainer.callback.known) == 3
    assert (result.matrix[2, :2] == result.matrix.diagonal()[:2]).all()


@pytest.mark.parametrize("problem", ["link", "graph"])
@pytest.mark.parametrize(
    "method", [HAT(sparsity=0.1), Piggyback(lr=0.01)], ids=["hat", "piggyback"]
)
def test_links_and_graphs(method: Any, problem: str) -> None:
    trainer = trainer_of(problem, "gin" if problem == "graph" else "gcn", method)
    result = trainer.fit()
    assert len(trainer.callback.known) == 3
    assert (result.matrix[2, :2] == result.matrix.diagonal()[:2]).all()


def test_a_killed_run_of_sampled_neighbours_ends_as_one_that_was_not(tmp_path: Any) -> None:
    """Neighbours are a function of (seed, task, epoch): resuming in the middle draws the same."""

    class StopError(Exception):
        pass

    class Kill(Callback):
        def on_epoch_start(self, task: int, epoch: int, batches: int) -> None:
            if (task, epoch) == (1, 1):
                raise StopError

    def sampled(**options: Any) -> Trainer:
        trainer = trainer_of("node", "gcn", HAT(sparsity=0.1), **options)
        trainer.problem = Node("gcn", fanouts=(5, 5))
        return trainer

    whole = sampled()
    whole.fit()
    killed = sampled(directory=tmp_path)
    killed.callback = Kill()
    with pytest.raises(StopError):
        killed.fit()
    resumed = sampled(directory=tmp_path)
    resumed.callback = Callback()
    resumed.fit(resume=True)
    theirs = resumed.net.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in whole.net.state_dict().items())


def test_a_precision_that_sparse_products_have_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision is bf16, .* node problems need; wanted 32"):
        trainer_of("node", "gcn", HAT(), device="cpu", precision="bf16")
