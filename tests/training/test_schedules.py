"""Schedulers of torch's in a run: when they are stepped, what they do, and that a run resumes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim import lr_scheduler as lrs

from maskcl.callback import Callback
from maskcl.checkpoint import CheckpointError
from maskcl.methods import EWC, HAT, Piggyback
from maskcl.training.schedules import NAMED, Schedule, named_schedule
from maskcl.training.trainer import Trainer
from tests import tiny
from tests.training.test_trainer import TASKS, make

SCHEDULERS = {
    "LambdaLR": lambda o, n: lrs.LambdaLR(o, lambda step: 1 / (step + 1)),
    "MultiplicativeLR": lambda o, n: lrs.MultiplicativeLR(o, lambda step: 0.9),
    "StepLR": lambda o, n: lrs.StepLR(o, 2),
    "MultiStepLR": lambda o, n: lrs.MultiStepLR(o, [1, 1, 3]),
    "ConstantLR": lambda o, n: lrs.ConstantLR(o),
    "LinearLR": lambda o, n: lrs.LinearLR(o),
    "ExponentialLR": lambda o, n: lrs.ExponentialLR(o, 0.9),
    "CosineAnnealingLR": lambda o, n: lrs.CosineAnnealingLR(o, n),
    "CosineAnnealingWarmRestarts": lambda o, n: lrs.CosineAnnealingWarmRestarts(o, 2),
    "CyclicLR": lambda o, n: lrs.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o, n: lrs.OneCycleLR(o, 0.1, total_steps=n),
    "PolynomialLR": lambda o, n: lrs.PolynomialLR(o, n),
    "SequentialLR": lambda o, n: lrs.SequentialLR(
        o, [lrs.LinearLR(o, total_iters=2), lrs.MultiStepLR(o, [1, 2])], [2]
    ),
    "ChainedScheduler": lambda o, n: lrs.ChainedScheduler(
        [lrs.ConstantLR(o), lrs.ExponentialLR(o, 0.9)]
    ),
    "ReduceLROnPlateau": lambda o, n: lrs.ReduceLROnPlateau(o, patience=0),
}


def rates(schedule: Schedule, count: int) -> list[list[float]]:
    """Rates and first moments' factors of the next steps."""
    found = []
    optimizer = schedule.scheduler.optimizer
    for i in range(count):
        group = optimizer.param_groups[0]
        found.append([float(group["lr"]), group.get("momentum", 0.0)])
        optimizer.step()
        schedule.after_step()
        schedule.after_epoch(loss=1.0 + i % 2, score=0.5)
    return found


def optimizer(*, tensor: bool = False) -> SGD:
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    return SGD([parameter], lr=torch.tensor(0.05) if tensor else 0.05, momentum=0.9)


@pytest.mark.parametrize("tensor", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_goes_on_from_json_as_if_nothing_had_happened(name, tensor):
    from maskcl.checkpoint import load_optimizer, optimizer_state

    first = optimizer(tensor=tensor)
    schedule = Schedule(SCHEDULERS[name](first, 8), "epoch")
    rates(schedule, 4)
    tensors, facts = schedule.state_dict()
    tensors = {key: t.clone() for key, t in tensors.items()}
    moments, saved = optimizer_state(first)
    moments = {key: t.clone() for key, t in moments.items()}
    facts, saved = json.loads(json.dumps([facts, saved], allow_nan=False))
    wanted = rates(schedule, 4)

    second = optimizer(tensor=tensor)
    again = Schedule(SCHEDULERS[name](second, 8), "epoch")
    load_optimizer(second, moments, saved)
    again.load_state_dict(tensors, facts)
    assert rates(again, 4) == wanted
    for old, new in zip(first.state.values(), second.state.values(), strict=True):
        assert torch.equal(old["momentum_buffer"], new["momentum_buffer"])


def test_a_state_of_another_scheduler_or_of_none_is_refused():
    own = Schedule(lrs.StepLR(optimizer(), 2), "epoch")
    for other in (Schedule(lrs.ExponentialLR(optimizer(), 0.9), "epoch").state_dict()[1], None, 3):
        with pytest.raises(CheckpointError, match="is no StepLR"):
            own.load_state_dict({}, other)
    for wrong in ({"tensor": "state.x"}, {"dict": 3}, {"dict": [], "list": []}, {"set": [1]}):
        with pytest.raises(CheckpointError, match="is no StepLR"):
            own.load_state_dict({}, wrong)


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []
        self.made: list[torch.optim.Optimizer] = []

    def make(self, groups):
        self.made.append(SGD(groups, lr=0.1))
        return self.made[-1]

    def on_step(self, task, epoch, batch, loss):
        self.seen.append(self.made[-1].param_groups[0]["lr"])


def test_each_task_has_an_optimizer_and_a_schedule_of_its_own(tmp_path):
    counts = []

    def halve(optimizer, count):
        counts.append(count)
        return lrs.ExponentialLR(optimizer, 0.5)

    for by, directory in (("epoch", None), ("step", tmp_path)):
        counts.clear()
        rates = Rates()
        trainer = make(
            optimizer_fn=rates.make, callback=rates, scheduler_fn=halve, schedule_by=by,
            directory=directory, epochs=2,
        )  # fmt: skip
        trainer.fit()
        assert len(rates.made) == len(counts) == TASKS  # 3 steps an epoch
        one = [0.1] * 3 + [0.05] * 3 if by == "epoch" else [0.1 / 2**i for i in range(1, 7)]
        if by == "epoch":
            assert counts == [2] * TASKS
        else:  # on_step comes after the scheduler's
            assert counts == [6] * TASKS
        assert rates.seen == one * TASKS


@pytest.mark.parametrize("is_tensor", [False, True])
@pytest.mark.parametrize("method", [HAT(sparsity=0.2), EWC()])
def test_a_rate_of_zero_reaches_the_step_that_stands_in_for_the_optimizers(method, is_tensor):
    net = tiny.network("mlp", 1) if isinstance(method, HAT) else tiny.importance("mlp", 1)
    states = [[p.detach().clone() for p in net.parameters()]]

    class Keep(Callback):
        def on_epoch_end(self, *rest):
            states.append([p.detach().clone() for p in net.parameters()])

    def make_adam(groups):
        return Adam(groups, lr=torch.tensor(0.02) if is_tensor else 0.02)

    make(
        net, tiny.scenario(1), method=method, callback=Keep(), epochs=3, optimizer_fn=make_adam,
        scheduler_fn=lambda o, _: lrs.LambdaLR(o, lambda epoch: float(epoch == 0)),
    ).fit()  # fmt: skip
    before, first, second, third = states
    assert not all(map(torch.equal, before, first))
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, third))


def test_a_plateau_watches_the_mode_that_it_has():
    for mode, kind in (("min", "loss"), ("max", "score")):
        schedule = Schedule(lrs.ReduceLROnPlateau(optimizer(), mode=mode, patience=0), "epoch")
        schedule.after_epoch(loss=1.0, score=0.5)
        worse = {"loss": 1.0, "score": 0.5, kind: 2.0 if mode == "min" else 0.4}
        schedule.after_epoch(**worse)
        assert schedule.scheduler.optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"scheduler_fn": lrs.StepLR(optimizer(), 2)}, TypeError, "scheduler_fn is a StepLR"),
        ({"scheduler_fn": lambda o: lrs.StepLR(o, 2)}, TypeError, "takes no two arguments"),
        ({"schedule_by": "batch"}, ValueError, "schedule_by is 'batch', wanted one of epoch, step"),
    ],
)
def test_wrong_schedules_are_refused_at_once(changed, error, message):
    with pytest.raises(error, match=message):
        make(**changed)


@pytest.mark.parametrize(
    ("made", "by", "error", "message"),
    [
        (lambda o, n: None, "epoch", TypeError, "scheduler_fn returned None"),
        (lambda o, n: lrs.StepLR(optimizer(), 2), "epoch", TypeError, "of another optimizer"),
        (SCHEDULERS["ReduceLROnPlateau"], "step", ValueError, "waits for an epoch's figure"),
    ],
)
def test_what_makes_no_schedule_is_refused_before_a_step(made, by, error, message):
    with pytest.raises(error, match=message):
        make(scheduler_fn=made, schedule_by=by).fit()


def test_a_state_that_no_checkpoint_holds_is_refused_where_there_are_checkpoints(tmp_path):
    class Odd(lrs.StepLR):
        def __init__(self, optimizer):
            self.odd = object()
            super().__init__(optimizer, 2)

    make(scheduler_fn=lambda o, n: Odd(o), epochs=1).fit()
    with pytest.raises(TypeError, match=r"Odd: state\.odd is a object, which a checkpoint cannot"):
        make(scheduler_fn=lambda o, n: Odd(o), directory=tmp_path).fit()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMED)
def test_named_schedules_start_and_end_where_they_say(name):
    make_one, by = named_schedule(name)
    own = optimizer()
    if make_one is None:
        assert name == "constant"
        return
    schedule = Schedule(make_one(own, 40), by)
    found = [rate for rate, _ in rates(schedule, 40)]
    ends = {
        "cosine": (0.05, 0.0), "step": (0.05, 5e-4), "onecycle": (0.002, 0.0),
        "plateau": (0.05, 0.05 / 3**6),
    }  # fmt: skip
    assert (found[0], found[-1]) == pytest.approx(ends[name], abs=1e-4)
    assert max(found) == pytest.approx(0.05)


def test_a_warmup_rises_to_the_rate():
    make_one, by = named_schedule("cosine", 0.25)
    assert make_one is not None
    found = [rate for rate, _ in rates(Schedule(make_one(optimizer(), 40), by), 40)]
    assert found[:11] == sorted(found[:11])
    assert found[10] == max(found) == pytest.approx(0.05)
    assert found[10:] == sorted(found[10:], reverse=True)
    for name, warmup, message in (
        ("linear", 0.0, "schedule is 'linear'"),
        ("cosine", 1.0, "warmup is 1.0, wanted a share"),
        ("plateau", 0.1, "has none"),
    ):
        with pytest.raises(ValueError, match=message):
            named_schedule(name, warmup)


def test_a_resumed_run_with_another_schedule_is_refused(tmp_path):
    class Stop(Callback):
        def on_task_start(self, task, epochs, first_epoch):
            if task == 1:
                raise KeyboardInterrupt

    def run(name: str, callback=None) -> Trainer:
        net = tiny.piggyback("mlp", TASKS)
        return make(
            net, method=Piggyback(lr=0.1), scheduler_fn=SCHEDULERS[name], directory=tmp_path,
            callback=callback,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run("StepLR", Stop()).fit()
    other = run("ExponentialLR")
    before = {name: t.clone() for name, t in other.net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"scheduler .*StepLR.*ExponentialLR"):
        other.fit(resume=True)
    after = other.net.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(t, before[name]) for name, t in after.items())
    run("StepLR").fit(resume=True)
