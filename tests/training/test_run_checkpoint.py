"""A run that is interrupted goes on with the network that it left behind, as in a notebook."""

import pytest
import torch

from maskcl.callback import Callback
from maskcl.methods import EWC, HAT, Piggyback
from maskcl.problems import Vision
from maskcl.training import trainer as module
from maskcl.training.trainer import Trainer
from tests import tiny

TASKS = 3
NETS = {
    "hat": (HAT(), lambda: tiny.network("mlp", TASKS)),
    "piggyback": (Piggyback(), lambda: tiny.piggyback("conv", TASKS, norms="task")),
    "bfloat16": (
        Piggyback(score_dtype="bfloat16"),
        lambda: tiny.piggyback("conv", TASKS, norms="task"),
    ),
    "ewc": (EWC(), lambda: tiny.importance("mlp", TASKS)),
}


def make(method: str, **more) -> Trainer:
    found, net = NETS[method]
    return Trainer(
        net(), found, Vision(), tiny.scenario(TASKS), tiny.OPTIMIZERS["adam"],
        **{"epochs": 2, "batch_size": 8, "device": "cpu", "progress": False} | more,
    )  # fmt: skip


class StopInStep(Callback):
    """In the first step of an epoch."""

    def __init__(self, task: int, epoch: int) -> None:
        self.at = task, epoch

    def on_step(self, task, epoch, batch, loss):
        if (task, epoch) == self.at:
            raise KeyboardInterrupt


def check_equals(trainer: Trainer, result, method: str) -> None:
    whole = make(method)
    wanted = whole.fit()
    # As text NaN equals NaN.
    assert str({**result.to_dict(), "seconds": 0}) == str({**wanted.to_dict(), "seconds": 0})
    found, state = trainer.net.state_dict(), whole.net.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("method", NETS)
def test_inside_a_task(method, epoch, tmp_path):
    trainer = make(method, directory=tmp_path, callback=StopInStep(1, epoch))
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.callback = Callback()
    check_equals(trainer, trainer.fit(resume=True), method)


@pytest.mark.parametrize("method", NETS)
def test_between_a_tasks_end_and_its_checkpoint(method, tmp_path, monkeypatch):
    trainer = make(method, directory=tmp_path)
    calls = []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == 4:  # the end of task 1
            raise OSError("no space left on device")
        save(*arguments)

    save = module.save_run
    monkeypatch.setattr(module, "save_run", full)
    with pytest.raises(OSError, match="no space"):
        trainer.fit()
    assert trainer.net.finished.tolist() == [True, True, False]
    check_equals(trainer, trainer.fit(resume=True), method)
