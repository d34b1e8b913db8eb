"""What a trainer refuses before anything is trained or written."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from maskcl.methods import Method
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.settings import Setting

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.scenarios.base import Scenario


def check_arguments(
    net: TaskNetwork,
    method: Method,
    problem: Any,
    scenario: Scenario,
    setting: Setting,
    inference: TaskInference | None,
    epochs: int,
    batch_size: int,
) -> bool:
    """Whether tasks are inferred at test, if the arguments of a trainer go together.

    Raises:
        ValueError: they do not; the message says what was found and what was wanted.
    """
    _check_targets(net, problem, scenario, inference)
    if inference is not None and setting.name == "task":
        raise ValueError(
            "Trainer: inference is given, and the task setting tells the task at test; wanted the"
            " class, domain or time setting"
        )
    is_inferred = inference is not None or (
        net.inference is not None and not setting.task_id_at_test
    )
    known = dataclasses.replace(setting, task_id_at_test=True)
    reasons = method.not_supported_reasons(problem, known if is_inferred else setting)
    if reasons:
        raise ValueError(f"Trainer: setting is {setting.name!r}: {'; '.join(reasons)}")
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"Trainer: {name} is {value!r}, wanted an integer of at least 1")
    if net.num_tasks < scenario.num_tasks:
        missing = scenario.num_tasks - net.num_tasks
        raise ValueError(
            f"Trainer: net has {net.num_tasks} tasks, the scenario {scenario.num_tasks};"
            f" net.add_tasks({missing}) makes room"
        )
    is_hidden = not (setting.task_id_at_test or is_inferred)
    if is_hidden and any(isinstance(module, TaskHeads) for module in net.modules()):
        raise ValueError(
            f"Trainer: net has a head for each task, and the {setting.name} setting does not tell"
            " the task at test; wanted one head that all tasks share"
        )
    return is_inferred


_LEARN = {
    "classes": "Vision, Node, Link or Graphs",
    "values": "Regression",
    "multilabel": "MultiLabel",
}


def _check_targets(
    net: TaskNetwork, problem: Any, scenario: Scenario, inference: TaskInference | None
) -> None:
    """Raise ValueError where problem, scenario and inference are of different kinds of target."""
    if problem.targets != scenario.targets:
        raise ValueError(
            f"Trainer: problem is {type(problem).__name__}, which learns {problem.targets}, and the"
            f" scenario's targets are {scenario.targets}; wanted {_LEARN[scenario.targets]}"
        )
    if problem.name != scenario.problem:
        raise ValueError(
            f"Trainer: problem is of {problem.name} data, and the scenario's are {scenario.problem}"
        )
    if problem.targets != "classes" and (inference or net.inference) is not None:
        raise ValueError(
            "Trainer: inference tells tasks apart by their classes, and the scenario's targets are"
            f" {scenario.targets}; wanted none"
        )


def check_precision(fabric: Fabric, problem: Any) -> None:
    """Raise ValueError where a precision has no kernels for what a problem needs."""
    half = "bf16" in str(fabric.strategy.precision.precision)
    if half and getattr(problem, "adjacency", None) and fabric.device.type == "cpu":
        raise ValueError(
            "Trainer: precision is bf16, which torch's sparse products on the CPU have not and"
            f" {problem.name} problems need; wanted 32"
        )
