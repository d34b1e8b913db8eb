"""Parameters that a module of the user's own holds itself: each task gets a copy of its own.

Class tokens, positions, layer scales, tables of relative positions: no weight layer has them, so
no pair of units could protect them, and they are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from maskcl.nn.tasks.state import TaskAware

SUFFIX = "_of_task"


class TaskParameter(TaskAware):
    """One copy of a parameter a task; called, it gives the active task's.

    Args:
        parameter: copied; its dtype and device.
        num_tasks: how many copies.

    Attributes:
        copies: modules with one parameter, ``value``, one a task.
        start: what every copy began as; not in the ``state_dict``.
    """

    start: Tensor

    _network = "HATNetwork"
    _per_task = "copies"

    def __init__(self, parameter: nn.Parameter, num_tasks: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(TaskCopy(parameter) for _ in range(num_tasks))
        self.register_buffer("start", parameter.detach().clone(), persistent=False)

    @property
    def num_tasks(self) -> int:
        """How many tasks it has copies for."""
        return len(self.copies)

    def add_tasks(self, count: int) -> None:
        """A copy for each of ``count`` more tasks, as the first tasks' were when they were made."""
        like = self.of(0).value
        for _ in range(count):
            copy = TaskCopy(nn.Parameter(self.start.to(like.device, like.dtype)))
            self.copies.append(copy.train(self.training))

    def forward(self) -> Tensor:
        """The active task's copy."""
        return self._own().value

    def of(self, task: int) -> TaskCopy:
        """A task's copy."""
        copy = self.own_module(task)
        assert isinstance(copy, TaskCopy)
        return copy


class TaskCopy(nn.Module):
    """One task's copy of a parameter, its ``value``."""

    value: nn.Parameter

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        value = parameter.detach().clone()
        self.value = nn.Parameter(value, requires_grad=parameter.requires_grad)


class Loosened(nn.Module):
    """Mixed into a module's class: the attribute ``name`` reads its child ``name_of_task``.

    All else is the module's own. ``loosen`` and ``tighten`` switch.
    """

    _plain: type[nn.Module]
    _names: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made on the fly, so copies and pickles name the one that it is made from.
        return _empty, (self._plain, self._names), dict(vars(self))


def loosen(model: nn.Module, num_tasks: int) -> None:
    """Give every task its own copy of each loose trainable parameter of a model, in place.

    Loose are those that a module registers which is not torch's or torch_geometric's, nor made from
    one of theirs. One that another module has too stays as it is.
    """
    aware = {inner for m in model.modules() if isinstance(m, TaskAware) for inner in m.modules()}
    rest = [module for module in model.modules() if module not in aware]
    loose = [module for module in rest if not _is_torchs(type(module))]
    taken = {id(p) for m in model.modules() if m not in loose for p in m._parameters.values()}
    copies: dict[int, TaskParameter] = {}
    for module in loose:
        names = [
            name
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad and id(parameter) not in taken
        ]
        if not names:
            continue
        for name in names:
            parameter = module._parameters.pop(name)
            assert parameter is not None
            # Parameters that two modules share stay shared, within each task.
            copy = copies.setdefault(id(parameter), TaskParameter(parameter, num_tasks))
            copy.training = module.training
            module.add_module(name + SUFFIX, copy)
        module.__class__ = _loosened_class(type(module), tuple(names))  # type: ignore[assignment]


def tighten(model: nn.Module, task: int) -> None:
    """Undo ``loosen`` with the copies of one task, in place."""
    shared: dict[TaskParameter, nn.Parameter] = {}
    for module in list(model.modules()):
        if not isinstance(module, Loosened):
            continue
        names = module._names
        module.__class__ = module._plain  # type: ignore[assignment]
        for name in names:
            copies = module._modules.pop(name + SUFFIX)
            assert isinstance(copies, TaskParameter)
            value = shared.setdefault(copies, copies.of(task).value)
            module.register_parameter(name, value)


def _is_torchs(kind: type) -> bool:
    """Whether a class is, or is made from, a module of torch or torch_geometric that computes."""
    bases: Iterator[type] = (base for base in kind.__mro__ if issubclass(base, nn.Module))
    plain = {nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.Identity}
    packages = ("torch.nn", "torch_geometric")
    return any(b.__module__.startswith(packages) and b not in plain for b in bases)


def _reader(name: str) -> property:
    def read(module: nn.Module) -> Any:
        copies = module._modules[name]
        assert copies is not None
        return copies()

    return property(read)


def _loosened_class(plain: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    key = plain, names
    if key not in _CLASSES:
        members: dict[str, Any] = {"_plain": plain, "_names": names, "__module__": __name__}
        members |= {name: _reader(name + SUFFIX) for name in names}
        members["__doc__"] = plain.__doc__
        # It keeps its name: messages are about the user's class.
        _CLASSES[key] = type(plain.__name__, (Loosened, plain), members)
    return _CLASSES[key]


def _empty(plain: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    kind = _loosened_class(plain, names)
    return kind.__new__(kind)


_CLASSES: dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]] = {}
