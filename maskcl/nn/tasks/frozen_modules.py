"""Ordinary modules kept from what would change a frozen base or read it past its masks."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


class FrozenNorm(nn.Module):
    """Mixed into the class of a norm with running statistics: ``train()`` leaves it in evaluation.

    The module stays what it was in all else, a subclass of its own class with the same names in the
    ``state_dict``. ``freeze_norm`` and ``thaw_norm`` switch.
    """

    _plain: type[nn.Module]

    def train(self, mode: bool = True) -> Any:
        """Evaluation mode, whatever is asked for."""
        return super().train(False)

    def __reduce__(self) -> tuple[Any, ...]:
        # The class is made on the fly, so copies and pickles name the one that it is made from.
        return _empty, (self._plain,), dict(vars(self))


def has_statistics(module: nn.Module) -> bool:
    """Whether it is a norm that training gives running statistics."""
    return isinstance(module, _NormBase) and module.running_mean is not None


def freeze_norm(module: nn.Module) -> None:
    """Keep a norm's running statistics as they are; other modules stay as they are."""
    if isinstance(module, _NormBase) and not isinstance(module, FrozenNorm):
        module.__class__ = _frozen_class(type(module))  # type: ignore[assignment]
        module.eval()


def thaw_norm(module: nn.Module, mode: bool = False) -> None:
    """An ordinary norm again, in training mode or not; other modules stay as they are."""
    if isinstance(module, FrozenNorm):
        module.__class__ = module._plain  # type: ignore[assignment]
        module.train(mode)


# What decides, in evaluation mode, that a module computes its children's part itself.
_SHORTCUTS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}


def close_shortcuts(module: nn.Module) -> None:
    """Keep torch's transformer layers from reading their layers' weights instead of calling them.

    In evaluation mode they would compute with the weights as they are, past every mask.
    """
    for kind, (name, off) in _SHORTCUTS.items():
        if isinstance(module, kind) and not hasattr(module, _BEFORE):
            setattr(module, _BEFORE, getattr(module, name))
            setattr(module, name, off)


def open_shortcuts(module: nn.Module) -> None:
    """Undo ``close_shortcuts``."""
    for kind, (name, _) in _SHORTCUTS.items():
        if isinstance(module, kind) and hasattr(module, _BEFORE):
            setattr(module, name, getattr(module, _BEFORE))
            delattr(module, _BEFORE)


def _frozen_class(plain: type[nn.Module]) -> type[nn.Module]:
    if plain not in _CLASSES:
        members = {"_plain": plain, "__module__": __name__, "__doc__": FrozenNorm.__doc__}
        _CLASSES[plain] = type(f"Frozen{plain.__name__}", (FrozenNorm, plain), members)
    return _CLASSES[plain]


def _empty(plain: type[nn.Module]) -> nn.Module:
    kind = _frozen_class(plain)
    return kind.__new__(kind)


_CLASSES: dict[type[nn.Module], type[nn.Module]] = {}
_BEFORE = "_shortcut_before"
