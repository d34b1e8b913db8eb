"""What the first masked layer of a network gives, without the layers behind it."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

# What is to be found in this thread or coroutine; hooks do nothing for others.
_LOOKING: ContextVar[bool] = ContextVar("maskcl_first_layer", default=False)


class _Found(Exception):  # noqa: N818 (it is none)
    def __init__(self, output: Tensor, module: nn.Module) -> None:
        self.output, self.module = output, module


def first_output(net: nn.Module, masked: Iterable[nn.Module], args: tuple[Any, ...]) -> Tensor:
    """[R, F]: the output of the masked module that a forward reaches first, means over positions.

    Call it inside ``with net.task(k):``.

    Args:
        net: the network.
        masked: its modules that end in a mask.
        args: of its forward.

    Raises:
        ValueError: the forward reaches none of them.
    """

    def stop(module: nn.Module, inputs: Any, output: Any) -> None:
        if _LOOKING.get():
            raise _Found(output, module)

    handles = [module.register_forward_hook(stop) for module in masked]
    looking = _LOOKING.set(True)
    try:
        net(*args)
    except _Found as found:
        return _by_row(found.output, found.module)
    finally:
        _LOOKING.reset(looking)
        for handle in handles:
            handle.remove()
    raise ValueError("TaskInference: no masked layer is reached by the network's forward")


def _by_row(output: Tensor, module: nn.Module) -> Tensor:
    """Means over all but the first dimension and the units'."""
    if output.dim() <= 2:
        return output
    is_image = isinstance(module, nn.modules.conv._ConvNd) or hasattr(module, "norms")
    units = 1 if is_image else output.dim() - 1
    return output.mean([d for d in range(1, output.dim()) if d != units])
