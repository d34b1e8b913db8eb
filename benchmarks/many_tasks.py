"""What operations cost in a network of many tasks, and how that grows with their number.

    python -m benchmarks.many_tasks [--tasks 10,100,1000] [--only hat] [--repeats 5]

All tasks of a network but the last are finished, and the last is begun, trained, finished and
forgotten again and again, on one thread. A row is an operation: the median time in ms for each
number of tasks T, and the slope d log(time) / d log(T), fitted: near 0 where the cost does not
depend on T, at most about 1 where it is proportional. ``mlp`` is 64-200-200 with a head of two
classes a task, ``wide`` 64-2048-2048. Times are the thread's own. "all:" marks what concerns all
tasks. To begin, finish or forget a task is to make sure that the others are what they were, which
reads all that they have. The last table is the memory that `protected_fraction` takes at most, in
MB, for a weight of 2048 x 2048, 17 MB in float32.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import re
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl import TaskInference
from maskcl.methods import HAT, MAS, Piggyback, TaskData
from maskcl.nn import to_hat, to_importance, to_piggyback, to_plain
from maskcl.ops import protected_fraction

WIDTHS = {"mlp": 200, "wide": 2048}
METHODS: dict[str, Any] = {"hat": HAT(), "piggyback": Piggyback(), "mas": MAS()}
Row = tuple[str, float]


def model(width: int) -> nn.Sequential:
    """64-width-width-2."""
    torch.manual_seed(0)
    layers = nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(width, 2))


def convert(name: str, width: int, tasks: int) -> Any:
    """A network of a method."""
    plain, classes = model(width), [2] * tasks
    if name == "hat":
        return to_hat(plain, tasks, torch.zeros(2, 64), classes=classes)
    if name == "piggyback":
        return to_piggyback(plain, tasks, classes=classes)
    return to_importance(plain, tasks, classes=classes)


def finished(net: Any, name: str) -> dict[str, Tensor]:
    """A state in which all tasks but the last are finished, with masks drawn at random."""
    generator = torch.Generator().manual_seed(1)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    state["finished"][:-1] = True
    if name == "hat":
        for task in range(net.num_tasks - 1):
            used = torch.rand(len(state["tasks"]), generator=generator) < 0.1
            state["tasks"][:, task // 64] |= used.long() << (task % 64)
    for key, value in state.items():
        if key.endswith(".words"):
            value.random_(-(2**31), 2**31 - 1, generator=generator)
    return state


class Clock:
    """Times by operation, in order."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, run: Callable[[], Any]) -> Any:
        start = time.thread_time()
        result = run()
        self.times[name].append(time.thread_time() - start)
        return result


def measured(name: str, width: int, tasks: int, repeats: int) -> Iterator[Row]:
    """Operations and their times in seconds."""
    clock, method = Clock(), METHODS[name]
    net = clock("all: convert", lambda: convert(name, width, tasks))
    state = finished(net, name)
    clock("all: load_state_dict", lambda: net.load_state_dict(state))
    x, y = torch.randn(64, 64), torch.randint(0, 2, (64,))
    data = TaskData(lambda: [(x, y)])
    for _ in range(repeats):
        cycle(clock, net, method, name, x, y, data)
        clock("all: state_dict", net.state_dict)
        clock("all: load_state_dict", lambda: net.load_state_dict(state))
        clock("all: kept_bits", net.kept_bits)
        net.eval()
        clock("all: forward_tasks", lambda: net.forward_tasks(x))
        clock("to_plain", lambda: to_plain(net, tasks - 2))
    clock("all: deepcopy", lambda: copy.deepcopy(net))
    clock("all: add_tasks(T)", lambda: net.add_tasks(tasks))
    for key, found in clock.times.items():
        yield key, statistics.median(found)


def cycle(clock: Clock, net: Any, method: Any, name: str, x: Tensor, y: Tensor, data: Any) -> None:
    """The last task from its begin to its end, and what is asked of it."""
    task = net.num_tasks - 1
    net.train()
    state = clock("begin_task", lambda: method.begin_task(net, task))
    groups = clock("parameter_groups", lambda: method.parameter_groups(net, task))
    optimizer = torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
    handle = clock("protect", lambda: method.protect(optimizer, net, state))

    def step() -> None:
        method.before_step(net, state, 0.5)
        optimizer.zero_grad()
        with net.task(task, state.scale):
            loss = F.cross_entropy(net(x), y) + method.loss_term(net, state)
        loss.backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)

    for _ in range(3):
        clock("training step", step)
    clock("outlook", lambda: method.outlook(net, task))
    if handle is not None:
        handle.remove()
    clock("end_task", lambda: method.end_task(net, state, data))
    net.eval()
    with torch.no_grad():
        for _ in range(3):
            clock("forward", lambda: forward(net, task, x))
    clock("task_parameters", lambda: net.task_parameters(task))
    clock("all: measure" if name == "hat" else "measure", lambda: method.measure(net, task))
    if name == "hat":
        clock("hard_mask", lambda: net.hard_mask(task))
        clock("all: protection", lambda: (net._state.cache.clear(), net.protection()))
        clock("all: fraction", lambda: net.protection().fraction())
        clock("all: capacity", net.capacity)
        clock("all: freed_by", lambda: net.capacity().freed_by(task))
    if name != "mas":
        clock("forget_task", lambda: net.forget_task(task))
    else:
        net.finished[task] = False
        net._follow_finished()


def forward(net: Any, task: int, x: Tensor) -> Tensor:
    """Outputs of one task."""
    with net.task(task):
        return net(x)


def fraction_memory(tasks: int) -> float:
    """MB by which counting protected weights raises the process's peak; Linux says it."""
    sides = [torch.randint(-(2**62), 2**62, (2048, -(-tasks // 64))) for _ in range(2)]
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    protected_fraction(sides[0], sides[1])
    return max(0.0, _status("VmHWM") - before)


def _status(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1e3


def slope(tasks: list[int], times: list[float]) -> float:
    """Least squares of log(time) over log(T)."""
    xs, ys = [math.log(t) for t in tasks], [math.log(t) for t in times]
    x, y = statistics.fmean(xs), statistics.fmean(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum(
        (a - x) ** 2 for a in xs
    )


def inference(tasks: int, repeats: int) -> Iterator[Row]:
    """Inferring the task of 64 samples."""
    net = convert("hat", 200, tasks)
    net.load_state_dict(finished(net, "hat"))
    net.inference = TaskInference(features=200)
    generator = torch.Generator().manual_seed(2)
    clock = Clock()
    for task in range(tasks - 1):
        x = torch.randn(32, 64, generator=generator)
        data = TaskData(lambda x=x: [(x, torch.arange(32) % 2)])  # type: ignore[misc]
        clock("measure_task", functools.partial(net.measure_task, task, data))
    for _ in range(repeats):
        net.inference._scorer = None
        clock("all: infer (first)", lambda: net.infer(x))
        clock("all: infer", lambda: net.infer(x))
    for key, found in clock.times.items():
        yield key, statistics.median(found)


def table_of(counts: list[int], rows: Callable[[int], Iterator[Row]]) -> dict[str, list[float]]:
    """By operation, the times for each number of tasks."""
    table: dict[str, list[float]] = defaultdict(list)
    for tasks in counts:
        for key, seconds in rows(tasks):
            table[key].append(seconds)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="10,100,1000")
    parser.add_argument("--only", default="hat,piggyback,mas,inference,memory")
    parser.add_argument("--widths", default="mlp,wide")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts = [int(t) for t in options.tasks.split(",")]
    head = "".join(f"T={t}".rjust(10) for t in counts)
    next(measured("hat", 8, 2, 1))  # imports
    for name in options.only.split(","):
        if name == "memory":
            peaks = "".join(f"{fraction_memory(tasks):10.1f}" for tasks in counts)
            print(f"{'memory, MB':30}{head}\n{'protected_fraction':30}{peaks}", flush=True)
            continue
        for width in options.widths.split(",") if name != "inference" else ["mlp"]:

            def rows(tasks: int, name: str = name, width: str = width) -> Iterator[Row]:
                if name == "inference":
                    return inference(tasks, options.repeats)
                return measured(name, WIDTHS[width], tasks, options.repeats)

            print(f"{f'{name} {width}, ms':30}{head}     slope")
            for key, times in table_of(counts, rows).items():
                numbers = "".join(f"{1e3 * t:10.2f}" for t in times)
                print(f"{key:30}{numbers}{slope(counts, times):10.2f}", flush=True)


if __name__ == "__main__":
    main()
