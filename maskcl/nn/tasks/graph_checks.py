"""What convolutions of graphs do past a network's back."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator

from torch import nn

from maskcl.nn.tasks.errors import ConversionError

_HARMLESS = {"device", "dtype", "shape", "size", "dim", "ndim"}


def is_graph_linear(module: nn.Module) -> bool:
    """Whether it is torch_geometric's own linear layer, that very class."""
    kind = type(module)
    return kind.__name__ == "Linear" and kind.__module__ == "torch_geometric.nn.dense.linear"


def refuse_cached(caller: str, model: nn.Module) -> None:
    """Raise ConversionError for a convolution that keeps the first graph that it sees."""
    for name, module in _convolutions(model):
        if getattr(module, "cached", False) is True:
            raise ConversionError(
                f"{caller}: module {name!r} ({type(module).__name__}) has cached=True, and would"
                " use the first graph that it sees for all tasks: set it to False"
            )


def refuse_reading(caller: str, model: nn.Module) -> None:
    """Raise ConversionError for a convolution that reads a layer's weight in place of calling it.

    A mask would have no part in it. Its methods' code is looked through for ``self.layer.weight``.
    """
    for name, module in _convolutions(model):
        layers = {n for n, m in module.named_children() if type(m) is nn.Linear}
        layers |= {n for n, m in module.named_children() if is_graph_linear(m)}
        found = next((n for n in _read(type(module)) if n.split(".")[0] in layers), None)
        if found is not None:
            raise ConversionError(
                f"{caller}: module {name!r} ({type(module).__name__}) reads {found} instead of"
                " calling the layer, so that a mask would not be seen: let its forward call it"
            )


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if any(base.__name__ == "MessagePassing" for base in type(module).__mro__):
            yield name, module


def _read(kind: type) -> Iterator[str]:
    """Every ``layer.weight`` and ``layer.bias`` of ``self`` that a convolution's methods read."""
    for base in kind.__mro__:
        if base.__name__ == "MessagePassing":
            return
        for name, method in vars(base).items():
            if not inspect.isfunction(method) or name in ("__init__", "reset_parameters"):
                continue
            words = [i.argval for i in dis.get_instructions(method) if i.opname in _ATTRIBUTES]
            for layer, kept, then in zip(words, words[1:], [*words[2:], None], strict=False):
                if kept in ("weight", "bias") and then not in _HARMLESS:
                    yield f"{layer}.{kept}"


_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
