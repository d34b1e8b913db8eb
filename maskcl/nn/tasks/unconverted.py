"""Whether a model is an ordinary one, which can be converted."""

from __future__ import annotations

from torch import nn
from torch.nn.parameter import is_lazy

from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.network import TaskNetwork
from maskcl.nn.tasks.state import TaskAware
from maskcl.sharded_modules import class_name
from maskcl.shards import is_sharded


def check_unconverted(caller: str, model: nn.Module) -> None:
    """Raise ConversionError where a model is a network of tasks, out of one, or sharded.

    Likewise where a parameter has no shape yet.

    Args:
        caller: for the message.
        model: what is to be converted.
    """
    for name, parameter in model.named_parameters():
        if is_sharded(parameter):
            raise ConversionError(
                f"{caller}: {name} is a DTensor: fully_shard, or another way to shard, comes after"
                " the conversion, for the network that it returns"
            )
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        if any(is_lazy(p) for p in module._parameters.values()):
            raise ConversionError(
                f"{caller}: {where} ({type(module).__name__}) has no shape yet: run the model once"
            )
        if isinstance(module, TaskNetwork):
            found = f"is a network of class {class_name(module)}"
        elif isinstance(module, TaskAware) and module._state is not None:
            found = f"({class_name(module)}) is part of a network"
        else:
            continue
        raise ConversionError(
            f"{caller}: {where} {found} that has its tasks already, wanted an ordinary module:"
            " maskcl.nn.to_plain(net, task) makes one of a finished task, and net.add_tasks(n)"
            " gives the network more tasks"
        )
