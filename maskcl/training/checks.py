"""What a trainer refuses before anything is trained or written."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer

from maskcl.methods import Method
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.network import TaskNetwork
from maskcl.settings import Setting
from maskcl.shards import is_sharded
from maskcl.training.schedules import PERIODS, takes
from maskcl.training.validation import Validation

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from maskcl.scenarios.base import Scenario

EVALUATE = ("all", "last")


def check_kinds(
    net: Any, method: Any, problem: Any, scenario: Any, optimizer_fn: Any, scheduler_fn: Any
) -> None:
    """Raise TypeError where an argument is a class for an object, an object for a function, ...

    Or where the network is sharded.
    """
    if not isinstance(net, TaskNetwork):
        raise TypeError(
            f"Trainer: net is {_shown(net)}, wanted a network of tasks: maskcl.nn.to_hat,"
            " to_piggyback or to_importance makes one of a model"
        )
    if any(map(is_sharded, net.parameters())):
        raise TypeError(
            "Trainer: net is under fully_shard, and a Trainer's processes share batches, not"
            " parameters: write the loop as docs/scaling.md does, or give it the unsharded network"
        )
    for name, value, hook, wanted in (
        ("method", method, "begin_task", "a method such as HAT()"),
        ("problem", problem, "train_batches", "a problem such as Vision()"),
        ("scenario", scenario, "train_set", "a Scenario: scenarios.load or from_datasets make one"),
    ):
        if isinstance(value, type) or not hasattr(value, hook):
            raise TypeError(f"Trainer: {name} is {_shown(value)}, wanted {wanted}")
    if not callable(optimizer_fn):
        raise TypeError(
            f"Trainer: optimizer_fn is {_shown(optimizer_fn)}, wanted a function that makes an"
            " optimizer of parameter groups, as each task has its own:"
            " lambda groups: torch.optim.Adam(groups, lr=1e-3)"
        )
    if not takes(optimizer_fn, 1):
        raise TypeError(
            f"Trainer: optimizer_fn is {_shown(optimizer_fn)} that does not take one argument,"
            " wanted one that takes parameter groups: lambda groups: torch.optim.Adam(groups)"
        )
    if scheduler_fn is None:
        return
    found = _shown(scheduler_fn)
    if callable(scheduler_fn):
        if takes(scheduler_fn, 1) or takes(scheduler_fn, 2):
            return
        found += " that takes neither one argument nor two"
    raise TypeError(
        f"Trainer: scheduler_fn is {found}, wanted a function of an optimizer (and of how often the"
        " scheduler will be stepped), as each task has its own:"
        " lambda optimizer, count: CosineAnnealingLR(optimizer, count)"
    )


def check_options(seed: Any, directory: Any, progress: Any, fabric: Any) -> None:
    """Raise where one of them is not as `Trainer` says.

    Raises:
        TypeError: it is of another kind.
        ValueError: the directory is a file, or no name of a folder.
    """
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"Trainer: seed is {seed!r}, wanted an integer")
    if not isinstance(progress, bool):
        raise TypeError(f"Trainer: progress is {progress!r}, wanted True or False")
    if fabric is not None and (isinstance(fabric, type) or not hasattr(fabric, "all_reduce")):
        raise TypeError(f"Trainer: fabric is {_shown(fabric)}, wanted a launched Fabric or None")
    if directory is None:
        return
    if not isinstance(directory, (str, os.PathLike)):
        raise TypeError(f"Trainer: directory is {directory!r}, wanted the path of a folder or None")
    path = os.fspath(directory)
    if not path or "\0" in path:
        raise ValueError(f"Trainer: directory is {path!r}, wanted the path of a folder or None")
    if os.path.exists(path) and not os.path.isdir(path):
        raise ValueError(f"Trainer: directory is {path!r}, which is a file; wanted a folder")


def _shown(value: Any) -> str:
    """What was given, in words."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return "None" if value is None else f"a {type(value).__name__}"


def check_numbers(**values: Any) -> None:
    """Raise ValueError where one of them is no integer of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"Trainer: {name} is {value!r}, wanted an integer of at least 1")


def check_plan(
    schedule_by: Any,
    validation: Validation | None,
    evaluate: Any,
    scenario: Scenario,
) -> None:
    """Raise where a trainer is told of no period, no validation or no evaluation that there is."""
    if schedule_by not in PERIODS:
        raise ValueError(
            f"Trainer: schedule_by is {schedule_by!r}, wanted one of {', '.join(PERIODS)}"
        )
    if evaluate not in EVALUATE:
        is_number = isinstance(evaluate, int) and not isinstance(evaluate, bool)
        if not is_number or evaluate < 1:
            raise ValueError(
                f"Trainer: evaluate is {evaluate!r}, wanted 'all', 'last' or an integer of at least"
                " 1"
            )
    if validation is None:
        return
    for task, (samples, _) in enumerate(scenario.sizes):
        if samples < 2:
            raise ValueError(
                f"Trainer: validation holds samples out of each task, and task {task} has"
                f" {samples} in all; wanted at least 2"
            )


def made_optimizer(optimizer_fn: Any, groups: list[dict[str, Any]]) -> Optimizer:
    """A task's optimizer.

    Raises:
        TypeError: the function makes none.
        ValueError: it makes one of other parameters.
    """
    optimizer = optimizer_fn(groups)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"Trainer: optimizer_fn returned {_shown(optimizer)}, wanted a torch.optim.Optimizer"
        )
    given = {id(parameter) for group in groups for parameter in group["params"]}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if given and given.isdisjoint(held):
        raise ValueError(
            "Trainer: optimizer_fn returned an optimizer of other parameters, which would train"
            " nothing; wanted one of the groups that it was given"
        )
    return optimizer


def check_arguments(
    net: TaskNetwork,
    method: Method,
    problem: Any,
    scenario: Scenario,
    setting: Setting,
    inference: TaskInference | None,
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
