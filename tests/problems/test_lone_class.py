"""A growing head that sees one class: its probability is 1, and there is nothing to train."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import maskcl
from maskcl import problems, scenarios
from maskcl.methods import PlanWarning


def run(method) -> tuple[maskcl.nn.ImportanceNetwork, list[torch.Tensor]]:
    scenario = scenarios.load("split-digits", tasks=10, setting="class")
    torch.manual_seed(0)
    net = maskcl.nn.to_importance(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
        10, classes=scenario.classes_per_task, growing=True,
    )  # fmt: skip
    trainer = maskcl.Trainer(
        net, method, problems.Vision(), scenario,
        lambda p: torch.optim.Adam(p, lr=0.005), epochs=1, batch_size=16,
    )  # fmt: skip
    return net, trainer


@pytest.mark.parametrize("method", [maskcl.EWC(heads=True), maskcl.EWC(strength=0.0)])
def test_the_first_class_is_not_trained_away(method) -> None:
    net, trainer = run(method)
    scenario, vision = trainer.scenario, trainer.problem
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    state = method.begin_task(net, 0)
    optimizer = torch.optim.Adam(method.parameter_groups(net, 0), lr=0.005)
    rows = list(range(48))
    for batch in vision.train_batches(scenario.train_set(0), rows, 16):
        optimizer.zero_grad()
        with net.task(0):
            logits, target, weight = vision.forward(net, batch)
            loss = vision.loss(logits, target, weight)
        assert logits.shape[1] == 1 and float(loss) == 0.0
        assert bool((vision.predictions(logits) == target).all())
        loss.backward()
        method.after_backward(net, state)
        optimizer.step()
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name]), name
    with torch.no_grad(), net.task(0):
        x = torch.stack([scenario.test_inputs(0)[i] for i in range(5)])
        assert vision.predict(net, x).tolist() == [0] * 5


def test_a_run_of_one_class_a_task_learns_from_the_second_on() -> None:
    _, trainer = run(maskcl.EWC(heads=True))
    with pytest.warns(PlanWarning, match="task 0: all importances are 0"):
        result = trainer.fit()
    assert result.losses[0] == [0.0] and result.accuracies[0] == [1.0]
    assert result.matrix[0, 0] == 1.0
    assert result.losses[1][0] > 0.0


def test_one_logit_that_answers_a_question_still_trains() -> None:
    vision = problems.Vision()
    logits = torch.zeros(4, 1, requires_grad=True)
    vision.loss(logits, torch.tensor([0, 0, 1, 0])).backward()
    assert torch.equal(logits.grad.sign().flatten(), torch.tensor([1.0, 1.0, -1.0, 1.0]))
