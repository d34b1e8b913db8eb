"""Whether a model is still the one that was converted."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, repeat
from operator import attrgetter, contains
from typing import Any

from torch import nn

from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.frozen_modules import FrozenNorm
from maskcl.nn.tasks.own_parts import all_modules

_DICTIONARIES = attrgetter("_modules"), attrgetter("_parameters"), attrgetter("_buffers")


@dataclass(frozen=True)
class _Module:
    module: nn.Module
    kind: str  # a name: classes made on the fly cannot be pickled
    tensors: frozenset[str]
    has_own_forward: bool


class ModelStructure:
    """A model's modules as they are now: names, objects, classes, names of their tensors.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = _modules_of(model)
        self._seen: list[list[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_seen": None}  # of classes that are made on the fly

    def check(self, caller: str, model: nn.Module) -> None:
        """Raise unless the model is what it was.

        Raises:
            ConversionError: the message names a module that was replaced, added, taken away, or
                given another class, forward or tensors (a parametrization, weight_norm, pruning).
        """
        seen = _seen(model)
        if seen == self._seen:
            return
        now = _modules_of(model)
        for name in [*self._modules, *(name for name in now if name not in self._modules)]:
            was, found = self._modules.get(name), now.get(name)
            if was is not None and found is not None and (what := _difference(was, found)) is None:
                continue
            if found is None:
                what = "is gone"
            elif was is None:
                what = f"({found.kind}) is new"
            raise ConversionError(
                f"{caller}: module {name!r} {what} since the model was converted, which would"
                " change what finished tasks compute: change the ordinary model and convert that"
            )
        self._seen = seen


def _seen(model: nn.Module) -> list[list[Any]]:
    """All that a check looks at, in lists that are equal where none of it has changed.

    It is made without a line of Python for a module: of a thousand tasks there are thousands.
    """
    modules = all_modules(model)
    held = [list(map(dictionary, modules)) for dictionary in _DICTIONARIES]
    names = [list(chain.from_iterable(dictionaries)) for dictionaries in held]
    counts = [list(map(len, dictionaries)) for dictionaries in held]
    forwards = list(map(contains, map(vars, modules), repeat("forward")))
    return [modules, list(map(type, modules)), forwards, *names, *counts]


def _modules_of(model: nn.Module) -> dict[str, _Module]:
    return {
        name: _Module(
            module,
            _kind(module),
            frozenset([*module._parameters, *module._buffers]),
            "forward" in vars(module),
        )
        for name, module in model.named_modules()
    }


def _kind(module: nn.Module) -> str:
    """Name of the class, of the ordinary one for a norm that is frozen for a while."""
    return (module._plain if isinstance(module, FrozenNorm) else type(module)).__name__


def _difference(was: _Module, found: _Module) -> str | None:
    """What of a module is another thing now, None where nothing is."""
    if found.module is not was.module:
        return f"({found.kind}) was put in the place of another"
    if found.kind != was.kind and not _is_sharded(type(found.module)):
        return f"became a {found.kind}, was a {was.kind}"
    if found.tensors != was.tensors:
        names = ", ".join(sorted(found.tensors ^ was.tensors))
        return f"({found.kind}) gained or lost the tensors {names}"
    if found.has_own_forward != was.has_own_forward:
        return f"({found.kind}) was given another forward"
    return None


def _is_sharded(kind: type) -> bool:
    """Whether sharding (fully_shard) made the class: it computes what the one before did."""
    return any(base.__module__.startswith("torch.distributed.") for base in kind.__mro__)
