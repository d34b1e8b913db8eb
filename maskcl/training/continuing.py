"""Which of a network's tasks a scenario's are, where some of the network's are finished."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskcl.nn.tasks.heads import GrowingHead, TaskHeads
from maskcl.nn.tasks.network import way_on

if TYPE_CHECKING:
    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.scenarios.base import Scenario


def first_task_of(
    net: TaskNetwork, scenario: Scenario, first_task: int | None, *, own_classes: bool = False
) -> int:
    """The network's task that the scenario's task 0 is.

    Args:
        net: as it is before training.
        scenario: has no more tasks than it.
        own_classes: each head has its own task's classes alone, where the setting counts them all.
        first_task: as the user has it; None says: 0 where no task is finished, or where both have
            equally many; the first after all finished ones where the scenario's tasks would all be
            finished otherwise; 0 where they would all be unfinished, and there is no room after.

    Raises:
        ValueError: first_task is none of the network's, or None where it could be two; heads have
            fewer outputs than the scenario's tasks; tasks with classes of their own would follow
            others in one growing head.
        RuntimeError: all tasks of the scenario are finished.
    """
    done = net.finished.tolist()
    last = len(done) - scenario.num_tasks  # that it may be
    first = _guess(done, scenario.num_tasks) if first_task is None else first_task
    if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first <= last:
        raise ValueError(
            f"Trainer: first_task is {first!r}, wanted an int from 0 to {last}, as the network has"
            f" {len(done)} tasks and the scenario {scenario.num_tasks}; net.add_tasks makes room"
        )
    if all(done[first : first + scenario.num_tasks]):
        raise RuntimeError(f"Trainer: the scenario's tasks are finished; {way_on(done)}")
    if first > 0 or any(done) or own_classes or scenario.targets != "classes":
        _check_heads(net, scenario, first, own_classes)
    return first


def _guess(done: list[bool], tasks: int) -> int:
    if len(done) == tasks or True not in done:
        return 0
    after = len(done) - done[::-1].index(True)  # the first task after all finished ones
    if not any(done[:tasks]) and after + tasks > len(done):
        return 0  # no task would be passed over, and there is no other place
    finished = [task for task, is_done in enumerate(done) if is_done]
    if all(done[:tasks]) and after + tasks <= len(done):
        return after
    if all(done[:tasks]):
        raise RuntimeError(
            f"Trainer: tasks {finished} of the network's {len(done)} are finished, and there is no"
            f" room for {tasks} more: net.add_tasks({after + tasks - len(done)}) makes it"
        )
    room = max(after + tasks - len(done), 0)
    raise ValueError(
        f"Trainer: tasks {finished} of the network's {len(done)} are finished, and the scenario has"
        f" {tasks}: first_task=0 says that they are the network's first {tasks}, of which the"
        f" finished ones are not trained again; first_task={after} that they come after the"
        f" finished ones{f', for which net.add_tasks({room}) makes room' if room else ''}"
    )


def _check_heads(net: TaskNetwork, scenario: Scenario, first: int, own_classes: bool) -> None:
    if first > 0 and not own_classes and scenario.setting.head == "growing":
        raise ValueError(
            f"Trainer: first_task is {first}, wanted 0 in the {scenario.setting.name} setting: the"
            " scenario's classes begin at 0, where the network's head has the finished tasks' own"
        )
    for module in net.modules():
        if not isinstance(module, (TaskHeads, GrowingHead)):
            continue
        for task, wanted in enumerate(scenario.head_sizes if own_classes else scenario.outputs):
            head = module.of(first + task)
            found = head if isinstance(head, int) else head.out_features
            if found != wanted:
                raise ValueError(
                    f"Trainer: the head of task {first + task} has {found} outputs, wanted"
                    f" {wanted} for the scenario's task {task}"
                )
