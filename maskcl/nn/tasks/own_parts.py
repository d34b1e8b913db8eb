"""What a network of tasks holds once for all of them, and what once a task.

A walk over all modules passes a head and its like for every task. What concerns one task, or what
tasks share, is found without it: the cost is the same for ten tasks and for a thousand.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from itertools import chain, repeat
from operator import attrgetter
from typing import Any

from torch import nn

from maskcl.nn.tasks.state import TaskAware

_CHILDREN, _PARAMETERS = attrgetter("_modules"), attrgetter("_parameters")
_REQUIRES_GRAD = attrgetter("requires_grad")


def shared_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Names and modules as ``named_modules`` gives them, without those that are one task's."""
    yield from _walk(model, prefix, set())


def holders(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Names and lists of the modules of which each task has one: norms, heads, copies."""
    for name, module in shared_modules(model):
        if (kind := _kind_of(module)) is not None:
            held = module._modules[kind]
            assert isinstance(held, nn.ModuleList)
            yield (f"{name}.{kind}" if name else kind), held


def own_modules(model: nn.Module, task: int) -> Iterator[tuple[str, nn.Module]]:
    """Names and modules of a task's own norms, head and copies of loose parameters."""
    for name, held in holders(model):
        yield f"{name}.{task}", held[task]


def own_parameters(model: nn.Module, task: int) -> list[nn.Parameter]:
    """Parameters of a task's own norms, head and copies of loose parameters."""
    return [p for _, module in own_modules(model, task) for p in module.parameters()]


def copy_for(model: Any, task: int, memo: dict[int, Any] | None = None) -> Any:
    """``copy.deepcopy`` of a model without what other tasks have: see ``TaskAware.own_module``.

    Args:
        model: of a network.
        task: whose norms, head and copies of loose parameters are copied.
        memo: as for ``copy.deepcopy``.
    """
    memo = {} if memo is None else memo
    for _, held in holders(model):
        alone = copy.copy(held)
        alone._modules = {str(task): held[task]}
        memo[id(held)] = copy.deepcopy(alone, memo)
    return copy.deepcopy(model, memo)


def all_modules(*roots: nn.Module) -> list[nn.Module]:
    """All modules below some, and they themselves; for a thousand heads no line runs for each."""
    seen = dict.fromkeys(roots)
    level: list[nn.Module] = list(seen)
    while level:
        held = list(map(_CHILDREN, level))
        if not _are_dictionaries(held):
            return list(dict.fromkeys(chain.from_iterable(root.modules() for root in roots)))
        children = dict.fromkeys(chain.from_iterable(map(dict.values, held)))
        level = [module for module in children if module is not None and module not in seen]
        seen.update(dict.fromkeys(level))
    return list(seen)


def all_parameters(*roots: nn.Module) -> list[nn.Parameter]:
    """Parameters of all modules below some, likewise; one that two modules hold comes twice."""
    return parameters_of(all_modules(*roots))


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Parameters that these modules hold themselves."""
    modules = list(modules)
    held = list(map(_PARAMETERS, modules))
    if not _are_dictionaries(held):
        return list(chain.from_iterable(m.parameters(recurse=False) for m in modules))
    return [p for p in chain.from_iterable(map(dict.values, held)) if p is not None]


def train_only(parameters: Iterable[nn.Parameter], wanted: Iterable[nn.Parameter]) -> None:
    """Let those wanted require gradients, and no other of these parameters."""
    for parameter in filter(_REQUIRES_GRAD, parameters):
        parameter.requires_grad_(False)
    for parameter in wanted:
        parameter.requires_grad_(True)


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Let none of these parameters have a gradient."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = None


def _are_dictionaries(held: list[Any]) -> bool:
    """Whether they are; a scripted module has others."""
    return all(map(isinstance, held, repeat(dict)))


def _walk(module: nn.Module, name: str, seen: set[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    if module in seen:
        return
    seen.add(module)
    yield name, module
    own = _kind_of(module)
    for child, inner in module._modules.items():
        if inner is not None and child != own:
            yield from _walk(inner, f"{name}.{child}" if name else child, seen)


def _kind_of(module: nn.Module) -> str | None:
    """Name of the list of modules that are a task's each, None where there is none."""
    return module._per_task if isinstance(module, TaskAware) else None
