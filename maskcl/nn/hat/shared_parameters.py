"""Which parameters tasks share, which are their own, and which nothing could protect."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from maskcl.nn.hat.topology import weight_layers
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.state import TaskAware


def check_owners(model: nn.Module) -> None:
    """Raise ConversionError for trainable parameters and statistics outside of task-aware modules.

    A parameter that two modules hold is refused too: it would have two sets of units.
    """
    aware = {inner for m in model.modules() if isinstance(m, TaskAware) for inner in m.modules()}
    holders: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{kind}" if prefix else kind
            if not parameter.requires_grad:
                continue
            if module not in aware:
                raise ConversionError(
                    f"parameter {name!r} ({type(module).__name__}) is shared by all tasks and in no"
                    " module that maskcl protects: freeze it with requires_grad_(False), or build"
                    " this part of HAT layers and task norms"
                )
            if id(parameter) in holders:
                raise ConversionError(
                    f"parameter {name!r} is also {holders[id(parameter)]!r}: tied parameters would"
                    " have two sets of units; give each layer its own"
                )
            holders[id(parameter)] = name
        if (
            isinstance(module, _NormBase)
            and module.running_mean is not None
            and module not in aware
        ):
            raise ConversionError(
                f"module {prefix!r} ({type(module).__name__}) keeps running statistics that all"
                " tasks share: use a TaskBatchNorm, or to_hat on the ordinary model"
            )


def shared_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of the HAT layers: all tasks train them, within their protection."""
    layers = weight_layers(model).values()
    return [parameter for layer in layers for parameter in layer.parameters()]
