"""Whether a model is still the one that was converted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.frozen_modules import FrozenNorm


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

    def check(self, caller: str, model: nn.Module) -> None:
        """Raise unless the model is what it was.

        Raises:
            ConversionError: the message names a module that was replaced, added, taken away, or
                given another class, forward or tensors (a parametrization, weight_norm, pruning).
        """
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
