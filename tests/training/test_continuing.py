"""A network with finished tasks goes on: with which task, what is measured, what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskcl.callback import Callback
from maskcl.checkpoint import CheckpointError
from maskcl.methods import EWC, HAT, MAS, Piggyback
from maskcl.metrics import all_metrics
from maskcl.nn import to_hat
from maskcl.training.continuing import first_task_of
from tests import tiny
from tests.training.test_trainer import make

METHODS = {
    "hat": HAT(sparsity=0.2),
    "piggyback": Piggyback(spread="uniform"),
    "mas": MAS(strength=0.1),
    "ewc": EWC(strength=1.0),
}


def network(kind: str, tasks: int):
    if kind == "hat":
        return tiny.network("conv", tasks)
    if kind == "piggyback":
        return tiny.piggyback("conv", tasks, norms="task")
    return tiny.importance("conv", tasks)


def run(net, kind: str, tasks: int, first: int | None = None, **changed):
    return make(net, tiny.scenario(tasks), method=METHODS[kind], first_task=first, **changed)


def fit(*arguments, **changed):
    return run(*arguments, **changed).fit()


def outputs(net, tasks: int) -> list[torch.Tensor]:
    x = tiny.samples(0, seed=1)[0]
    return [tiny.logits(net, task, x) for task in range(tasks)]


@pytest.mark.parametrize(
    ("done", "tasks", "wanted"),
    [
        ([0, 0, 0, 0], 2, 0),
        ([0, 0, 0, 0], 4, 0),
        ([1, 1, 0, 0], 4, 0),  # the same sequence
        ([1, 0, 1, 0], 4, 0),
        ([1, 1, 0, 0], 2, 2),  # there is nothing left to train in the same one
        ([1, 1, 0, 0], 1, 2),
        ([0, 0, 1, 1], 2, 0),
        ([0, 1, 0, 0], 1, ValueError),
        ([1, 1, 0, 0], 3, ValueError),
        ([1, 0, 1, 0, 0], 2, ValueError),
        ([0, 0, 1, 0, 0], 2, ValueError),
        ([1, 1, 1, 1], 4, RuntimeError),
        ([1, 1, 1, 0], 2, RuntimeError),
    ],
)
def test_which_task_is_first(done, tasks, wanted):
    net = tiny.network("mlp", len(done))
    net.finished.copy_(torch.tensor(done, dtype=torch.bool))
    if isinstance(wanted, int):
        assert first_task_of(net, tiny.scenario(tasks), None) == wanted
        return
    with pytest.raises(wanted, match="Trainer: ") as error:
        first_task_of(net, tiny.scenario(tasks), None)
    if wanted is ValueError:
        last = len(done) - done[::-1].index(1)
        assert "first_task=0 says" in str(error.value)
        assert f"first_task={last} that they come after" in str(error.value)
    else:
        assert "net.add_tasks(1) makes" in str(error.value)
    assert "forget" not in str(error.value)


@pytest.mark.parametrize("first", [-1, 3, True, "0", 1.0])
def test_a_first_task_that_cannot_be(first):
    with pytest.raises(ValueError, match=r"first_task is .*, wanted an int from 0 to 2"):
        fit(tiny.network("mlp", 4), "hat", 2, first)


@pytest.mark.parametrize("kind", METHODS)
def test_a_later_scenario_trains_the_tasks_after(kind):
    net = network(kind, 2)
    fit(net, kind, 2)
    before = outputs(net, 2)
    net.add_tasks(2)
    result = fit(net, kind, 2)
    assert net.finished.all()
    assert np.isfinite(result.matrix[np.tril_indices(2)]).all()
    assert len(result.measures) == 2
    if kind in ("hat", "piggyback"):
        assert all(torch.equal(a, b) for a, b in zip(outputs(net, 2), before, strict=True))
    x = torch.stack([tiny.scenario(2).test_inputs(1)[i] for i in range(16)])
    score = tiny.scenario(2).score(1, tiny.logits(net, 3, x).argmax(1))
    assert result.matrix[1, 1] == score


@pytest.mark.parametrize("kind", METHODS)
def test_the_same_sequence_goes_on_as_if_it_had_not_stopped(kind, tmp_path):
    """Two tasks by one trainer and two by another have the bits of four by one."""
    whole = network(kind, 4)
    wanted = fit(whole, kind, 4)
    net = network(kind, 4)
    fit(net, kind, 2)
    result = fit(net, kind, 4)
    assert np.isnan(result.matrix[0]).all()
    for row in range(1, 4):
        assert np.array_equal(result.matrix[row], wanted.matrix[row], equal_nan=True), row
    found = all_metrics(result.matrix, untrained=result.untrained)
    assert np.isfinite(found["ACC"].value)
    assert found["BWT"].reason == "M[0, 0] was not measured"
    assert result.losses[:2] == [[], []]
    assert result.losses[2:] == wanted.losses[2:]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name


def test_a_task_forgotten_in_the_middle_is_trained_and_no_other():
    net = tiny.network("mlp", 4)
    fit(net, "hat", 3)
    net.forget_task(1)
    before = outputs(net, 4)
    result = fit(net, "hat", 4)
    assert [len(losses) > 0 for losses in result.losses] == [False, True, False, True]
    after = outputs(net, 4)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[2], before[2])
    assert not torch.equal(after[1], before[1])
    # Task 2 has stood there all along.
    assert np.isfinite(result.matrix[:, [0, 2]]).all()
    assert np.isfinite(result.matrix[1:, 1]).all()


@pytest.mark.parametrize("kind", METHODS)
def test_a_later_scenario_that_is_interrupted_resumes_with_the_same_bits(kind, tmp_path):
    class Stop(Callback):
        def on_epoch_start(self, task, epoch, batches):
            if (task, epoch) == (1, 1):
                raise KeyboardInterrupt

    def trained():
        net = network(kind, 2)
        fit(net, kind, 2)
        torch.manual_seed(3)
        net.add_tasks(2)
        return net

    whole = trained()
    wanted = fit(whole, kind, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(trained(), kind, 2, callback=Stop(), directory=tmp_path)
    saved = (tmp_path / "checkpoint.safetensors").read_bytes()
    for net in (trained(), network(kind, 4)):  # what it was, or a fresh one of the same kind
        with pytest.raises(CheckpointError, match="first_task 2, this run has 0"):
            run(net, kind, 2, 0, directory=tmp_path).fit(resume=True)
        result = run(net, kind, 2, directory=tmp_path).fit(resume=True)
        assert np.array_equal(result.matrix, wanted.matrix, equal_nan=True)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(net.state_dict()[name], tensor), name
        (tmp_path / "checkpoint.safetensors").write_bytes(saved)


def test_heads_that_do_not_fit_are_named_before_anything_is_trained():
    net = to_hat(tiny.mlp(), 2, torch.zeros(2, *tiny.SHAPE), classes=[2, 5])
    fit(net, "hat", 1)
    with pytest.raises(ValueError, match="head of task 1 has 5 outputs, wanted 2 for the"):
        fit(net, "hat", 1)


def test_a_growing_head_goes_on_with_the_same_sequence_only():
    scenario, method = tiny.scenario(4, setting="class"), METHODS["mas"]
    net = tiny.importance("mlp", 2, setting="class")
    first = tiny.scenario(2, setting="class")
    make(net, first, method=method).fit()
    before = outputs(net, 2)
    net.add_tasks(2)
    assert all(torch.equal(a, b) for a, b in zip(outputs(net, 2), before, strict=True))
    with pytest.raises(ValueError, match="wanted 0 in the class setting"):
        make(net, first, method=method).fit()
    result = make(net, scenario, method=method).fit()
    assert np.isfinite(result.matrix[1:, 1:][np.tril_indices(3)]).all()
    assert net.finished.all()


def test_too_few_tasks_say_how_to_make_room():
    with pytest.raises(ValueError, match=r"net has 2 tasks, the scenario 3; net\.add_tasks\(1\)"):
        make(tiny.network("mlp", 2), tiny.scenario(3))


def test_rules_that_let_weights_move_go_on_too():
    method = HAT(rule="const", rule_value=0.5)
    net = tiny.network("mlp", 1)
    for tasks in (1, 2, 3):
        make(net, tiny.scenario(tasks), method=method).fit()
        net.add_tasks(1)
    assert net.finished.tolist() == [True] * 3 + [False]
