"""What concerns one task costs the same however many there are; what concerns all, in proportion.

Not time is measured but work: calls of Python and C functions, which are the same in every run.
"""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import maskcl
from maskcl.methods import HAT, MAS, Method, Piggyback, TaskData

METHODS: dict[str, Method] = {"hat": HAT(), "piggyback": Piggyback(spread="uniform"), "mas": MAS()}


def network(name: str, tasks: int) -> Any:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()]
    model, classes = nn.Sequential(*layers, nn.Linear(8, 2)), [2] * tasks
    if name == "hat":
        return maskcl.nn.to_hat(model, tasks, torch.zeros(2, 6), classes=classes)
    if name == "piggyback":
        return maskcl.nn.to_piggyback(model, tasks, classes=classes, norms="task")
    return maskcl.nn.to_importance(model, tasks, classes=classes, norms="task")


def with_finished(name: str, tasks: int) -> Any:
    """All tasks but the last are finished."""
    net = network(name, tasks)
    state = net.state_dict()
    state["finished"] = torch.arange(tasks) < tasks - 1
    net.load_state_dict(state)
    return net.eval()


class Ops(TorchDispatchMode):
    """Counts torch's ops and the bytes of the largest tensor that one returned."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        result = op(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel() * result.element_size())
        return result


def work(run: Callable[[], Any]) -> int:
    """How many functions are called, those written in C too, with torch's ops."""
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    gc.collect()
    gc.disable()  # what it frees, and when, is not this work
    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(before)
        gc.enable()
    with Ops() as ops:
        run()
    return calls + ops.count


# --- one task -----------------------------------------------------------------------------------


def begin(net: Any, method: Any) -> Any:
    return method.begin_task(net, net.num_tasks - 1)


def begin_and_end(net: Any, method: Any) -> None:
    state = method.begin_task(net, net.num_tasks - 1)
    x, y = torch.ones(4, 6), torch.tensor([0, 1, 0, 1])
    for scores in getattr(net, "scores", list)():
        scores.data.neg_()
    method.end_task(net, state, TaskData(lambda: [(x, y)]))
    if isinstance(method, MAS):
        net.finished[-1] = False  # it forgets no task
        net._follow_finished()
    else:
        net.forget_task(net.num_tasks - 1)


def step(net: Any, method: Any) -> None:
    state = method.begin_task(net, net.num_tasks - 1)
    optimizer = torch.optim.SGD(method.parameter_groups(net, state.task), lr=0.1)
    handle = method.protect(optimizer, net, state)
    method.before_step(net, state, 0.5)
    with net.task(state.task, state.scale):
        (net(torch.ones(4, 6)).sum() + method.loss_term(net, state)).backward()
    method.after_backward(net, state)
    optimizer.step()
    method.after_step(net, state)
    if handle is not None:
        handle.remove()


def forward(net: Any, method: Any) -> None:
    with torch.no_grad(), net.task(net.num_tasks - 2):
        net(torch.ones(4, 6))


def questions(net: Any, method: Any) -> None:
    task = net.num_tasks - 2
    net.task_parameters(task)
    method.measure(net, task)
    maskcl.nn.to_plain(net, task)
    for name in ("hard_mask", "words", "own_state"):
        getattr(net, name, int)(task)


def outlook(net: Any, method: Any) -> None:
    method.begin_task(net, net.num_tasks - 1)
    method.outlook(net, net.num_tasks - 1)


@pytest.mark.parametrize("asked", [begin, begin_and_end, step, forward, questions, outlook])
@pytest.mark.parametrize("name", METHODS)
def test_what_concerns_one_task_does_not_depend_on_how_many_there_are(
    name: str, asked: Callable[[Any, Any], Any]
) -> None:
    found = []
    for tasks in (10, 50):
        net = with_finished(name, tasks)
        asked(net, METHODS[name])
        found.append(work(lambda net=net: asked(net, METHODS[name])))  # type: ignore[misc]
    assert found[1] <= 1.1 * found[0] + 5


# --- all tasks ----------------------------------------------------------------------------------

ALL: dict[str, Callable[[Any], Any]] = {
    "state_dict": lambda net: net.state_dict(),
    "load_state_dict": lambda net: net.load_state_dict(net.state_dict()),
    "kept_bits": lambda net: net.kept_bits(),
    "check_kept": lambda net: net.check_kept(),
    "forward_tasks": lambda net: net.forward_tasks(torch.ones(4, 6)),
    "deepcopy": copy.deepcopy,
    "add_tasks": lambda net: copy.deepcopy(net).add_tasks(net.num_tasks),
    "capacity": lambda net: getattr(net, "capacity", int)(),
    "unmasked_weights": lambda net: getattr(net, "unmasked_weights", int)(),
}


def is_in_proportion(count: Callable[[int], int]) -> bool:
    """Whether twice as many more tasks add twice as much work; squares would add four times."""
    few, some, many = map(count, (8, 16, 32))
    return many - some <= 2.3 * (some - few) + 20


@pytest.mark.parametrize("asked", ALL)
@pytest.mark.parametrize("name", METHODS)
def test_what_concerns_all_tasks_is_in_proportion(name: str, asked: str) -> None:
    def count(tasks: int) -> int:
        net = with_finished(name, tasks)
        ALL[asked](net)
        return work(lambda: ALL[asked](net))

    assert is_in_proportion(count)


@pytest.mark.parametrize("name", METHODS)
def test_conversion_is_in_proportion(name: str) -> None:
    network(name, 2)
    assert is_in_proportion(lambda tasks: work(lambda: network(name, tasks)))


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_fewer_tasks_is_loaded_in_proportion(name: str) -> None:
    def count(tasks: int) -> int:
        state, net = network(name, tasks // 2).state_dict(), network(name, tasks)
        return work(lambda: net.load_state_dict(state))

    assert is_in_proportion(count)


def test_tasks_are_inferred_in_proportion() -> None:
    def count(tasks: int) -> int:
        net = with_finished("hat", tasks)
        net.inference = maskcl.TaskInference(features=8)
        x, y = torch.randn(16, 6), torch.arange(16) % 2
        for task in range(tasks - 1):
            batch = x + task, y
            net.measure_task(task, TaskData(lambda batch=batch: [batch]))  # type: ignore[misc]
        torch.manual_seed(3)
        return work(lambda: net.infer(x))

    assert is_in_proportion(count)


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protection", ["exact", "min"])
def test_protected_weights_are_counted_without_a_dense_mask(protection: str) -> None:
    torch.manual_seed(0)
    out, into = (torch.randint(-(2**62), 2**62, (700, 16)) for _ in range(2))
    wanted = float(((out[:, None] & into[None]) != 0).any(-1).double().mean())
    sparse = out & torch.randint(-(2**62), 2**62, (700, 16)) & -(1 << 58)
    for side in (out, sparse):
        with Ops() as ops:
            found = maskcl.ops.protected_fraction(side, into, protection=protection)
        assert ops.largest < 700 * 700 * 8  # one word for each weight
    assert 0 < found <= 1
    full = maskcl.ops.protected_fraction(out, into, protection=protection)
    assert full == (wanted if protection == "exact" else 1.0)


def test_steps_read_words_up_to_the_last_finished_task() -> None:
    net = network("hat", 1000)
    net.begin_task(3)
    net.finish_task(3)
    assert {tasks.shape[1] for tasks in net.protection().out_tasks} == {1}
    assert net.capacity().freed_by(999) == (0, 0)
    net.begin_task(64)
    net.finish_task(64)
    assert {tasks.shape[1] for tasks in net.protection().in_tasks} == {2}
