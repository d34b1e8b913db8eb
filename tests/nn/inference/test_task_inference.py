"""Networks that tell by themselves which finished task a sample is of."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

import maskcl
from maskcl.methods import HAT, MAS, Piggyback, TaskData
from maskcl.nn import to_hat, to_importance, to_piggyback
from tests import tiny

TASKS, PER_TASK = 3, 40


def data(task: int, n: int = PER_TASK, seed: int = 0):
    """Two classes a task, each around a point of its own."""
    centres = torch.randn(2 * TASKS, 36, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(1000 * task + seed)
    y = torch.arange(n) % 2
    x = centres[2 * task + y] + 0.3 * torch.randn(n, 36, generator=generator)
    return x.view(n, 1, 6, 6), y


def task_data(task: int, **changed) -> TaskData:
    x, y = data(task, **changed)
    return TaskData(lambda: zip(x.split(16), y.split(16), strict=True))


NETWORKS = {
    "hat": (HAT(), lambda m: to_hat(m, TASKS, torch.zeros(2, *tiny.SHAPE), classes=[2] * TASKS)),
    "piggyback": (Piggyback(), lambda m: to_piggyback(m, TASKS, classes=[2] * TASKS)),
    "mas": (MAS(), lambda m: to_importance(m, TASKS, classes=[2] * TASKS)),
}


def learned(kind="hat", space="shared", model=tiny.mlp, tasks=TASKS, **options):
    method, convert = NETWORKS[kind]
    torch.manual_seed(0)
    net = convert(model())
    net.inference = maskcl.TaskInference(space, **options)
    for task in range(tasks):
        state = method.begin_task(net, task)
        optimizer = torch.optim.Adam(method.parameter_groups(net, task), lr=0.02)
        guard = method.protect(optimizer, net, state)
        x, y = data(task)
        for step in range(12):
            method.before_step(net, state, step / 11)
            optimizer.zero_grad()
            with net.task(task, state.scale):
                loss = nn.functional.cross_entropy(net(x), y) + method.loss_term(net, state)
                loss.backward()
            method.after_backward(net, state)
            optimizer.step()
            method.after_step(net, state)
        method.end_task(net, state, task_data(task))
        if guard is not None:
            guard.remove()
    return net


def held_out():
    parts = [data(task, seed=5) for task in range(TASKS)]
    x, y = (torch.cat(part) for part in zip(*parts, strict=True))
    return x, y, torch.arange(TASKS).repeat_interleave(PER_TASK)


CASES = [
    ("hat", "shared", tiny.mlp),
    ("hat", "masked", tiny.mlp),
    ("hat", "masked", tiny.conv),
    ("hat", "masked", tiny.Residual),
    ("piggyback", "shared", tiny.mlp),
    ("piggyback", "masked", tiny.conv),
    ("mas", "shared", tiny.mlp),
]


@pytest.mark.parametrize(("kind", "space", "model"), CASES)
def test_tasks_that_differ_are_told_apart_and_answered_under_their_own_mask(kind, space, model):
    net = learned(kind, space, model)
    x, y, task = held_out()
    net.train()
    before = [module.training for module in net.modules()]
    found = net.infer(x)
    assert [module.training for module in net.modules()] == before
    assert (found.task == task).float().mean() > 0.9
    assert (found.alone == y)[found.task == task].float().mean() > 0.9
    assert torch.equal(found.task, found.evidence.argmax(1))
    net.eval()
    for k in range(TASKS):
        rows = found.task == k
        with net.task(k), torch.no_grad():
            outputs = net(x[rows])
        assert torch.equal(found.outputs[rows], outputs)
        assert torch.equal(found.label[rows], outputs.argmax(1))


@pytest.mark.parametrize("space", ["shared", "masked"])
def test_later_tasks_leave_an_earlier_ones_statistics_alone(space):
    two, three = learned(space=space, tasks=2), learned(space=space)
    for task in ("0", "1"):
        first, second = (n.inference.statistics[task].state_dict() for n in (two, three))
        for name, tensor in first.items():
            assert torch.equal(tensor, second[name]), name
    found = two.infer(held_out()[0])
    assert set(found.task.tolist()) == {0, 1}
    assert bool((found.evidence[:, 2] == -torch.inf).all())


@pytest.mark.parametrize("space", ["shared", "masked"])
def test_what_is_forgotten_is_as_if_it_had_never_been_measured(space):
    net, without = learned(space=space), learned(space=space, tasks=2)
    net.forget_task(2)
    net.inference.forget(2)
    assert net.inference.tasks == [0, 1]
    x = held_out()[0]
    assert torch.equal(net.infer(x).evidence, without.infer(x).evidence)


@pytest.mark.parametrize("space", ["shared", "masked"])
def test_a_state_brings_its_statistics(space):
    net = learned(space=space)
    state = copy.deepcopy(net.state_dict())
    x = held_out()[0]
    wanted = net.infer(x)
    for inference in (None, maskcl.TaskInference(space)):
        other = NETWORKS["hat"][1](tiny.mlp())
        other.inference = inference
        other.load_state_dict(state)
        assert torch.equal(other.infer(x).evidence, wanted.evidence)
    copied = copy.deepcopy(net)
    assert torch.equal(copied.infer(x).evidence, wanted.evidence)
    # A state of before there was any has none, and says so when asked.
    plain = {k: v for k, v in state.items() if not k.startswith("inference.")}
    net.load_state_dict(plain)
    with pytest.raises(RuntimeError, match=r"tasks \[0, 1, 2\] were not measured"):
        net.infer(x)
    net.load_state_dict(state)
    assert torch.equal(net.infer(x).evidence, wanted.evidence)


def test_a_state_of_other_statistics_is_refused():
    state = learned().state_dict()
    other = NETWORKS["hat"][1](tiny.mlp())
    other.inference = maskcl.TaskInference("masked")
    with pytest.raises(RuntimeError, match="inference was made with"):
        other.load_state_dict(state)


def test_half_precision_keeps_the_sums():
    net = learned()
    wanted = net.infer(held_out()[0]).task
    net.bfloat16()
    assert net.inference.statistics["0"].scatter.dtype == torch.float32
    assert torch.equal(net.infer(held_out()[0].bfloat16()).task, wanted)


@pytest.mark.parametrize("space", ["shared", "masked"])
def test_autocast_changes_no_evidence(space):
    net = learned(space=space)
    x = held_out()[0]
    wanted = net.infer(x).evidence
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.infer(x).evidence, wanted)


@pytest.mark.parametrize("space", ["shared", "masked"])
def test_threads_infer_while_others_run(space):
    net = learned(space=space).eval()
    x = held_out()[0]
    wanted, faults = net.infer(x), []
    with net.task(1), torch.no_grad():
        own = net(x)

    def infer() -> None:
        same = [torch.equal(net.infer(x).evidence, wanted.evidence) for _ in range(20)]
        faults.extend("evidence" for one in same if not one)

    def run() -> None:
        with torch.no_grad():
            for _ in range(100):
                with net.task(1):
                    if not torch.equal(net(x), own):
                        faults.append("output")

    threads = [threading.Thread(target=f) for f in (infer, run, infer, run)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_inputs_may_be_few_or_none():
    net = learned()
    assert net.infer(held_out()[0][:1]).task.shape == (1,)
    nothing = net.infer(held_out()[0][:0])
    assert nothing.task.shape == nothing.label.shape == (0,)
    assert nothing.evidence.shape == (0, TASKS)


def test_a_growing_head_answers_for_the_inferred_tasks_classes():
    torch.manual_seed(0)
    net = to_importance(tiny.mlp(), TASKS, classes=[2, 4, 6], growing=True)
    net.inference = maskcl.TaskInference()
    method = MAS()
    for task in range(TASKS):
        x, y = data(task)
        state = method.begin_task(net, task)
        given = [(x, y + 2 * task)]
        method.end_task(net, state, TaskData(lambda given=given: given))
    x, y, task = held_out()
    found = net.infer(x)
    assert (found.task == task).float().mean() > 0.9
    assert torch.equal(found.label // 2, found.task)
    assert ((found.outputs > -torch.inf).sum(1) == 2).all()
    assert (found.alone == y + 2 * task).float().mean() > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": "both"}, "space is 'both'"),
        ({"features": 0}, "features is 0"),
        ({"features": 1.5}, "features is 1.5"),
        ({"shrinkage": -1}, "shrinkage is -1"),
        ({"shrinkage": float("nan")}, "shrinkage is nan"),
        ({"shrinkage": "much"}, "shrinkage is 'much'"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        maskcl.TaskInference(**options)


def test_what_is_missing_is_said():
    net = NETWORKS["hat"][1](tiny.mlp())
    x = held_out()[0]
    with pytest.raises(RuntimeError, match=r"net\.inference is None"):
        net.infer(x)
    net.inference = maskcl.TaskInference()
    with pytest.raises(RuntimeError, match="no task is finished"):
        net.infer(x)
    method = HAT()
    state = method.begin_task(net, 0)
    with pytest.raises(RuntimeError, match="wanted a TaskData"):
        method.end_task(net, state)
    assert not net.finished.any()
    for given, message in (
        ([], "no training sample"),
        ([(x, torch.rand(len(x)))], "wanted a class for each"),
        ([(x * torch.nan, torch.zeros(len(x), dtype=torch.long))], "not all finite"),
    ):
        with pytest.raises(ValueError, match=message):
            method.end_task(net, state, TaskData(lambda given=given: given))
        assert not net.finished.any()
    method.end_task(net, state, task_data(0))
    with pytest.raises(ValueError, match="have 128 features, wanted the 576"):
        net.infer(torch.zeros(2, 1, 2, 4))
    importance = learned("mas", tasks=1)
    importance.inference = maskcl.TaskInference("masked")
    with pytest.raises(ValueError, match="no masked layer"):
        importance.measure_task(0, task_data(0))
