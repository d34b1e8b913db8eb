"""What the first masked layer of a network gives, without the layers behind it."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of each dimension of an image: where a shape is counts as well as that it is there.
HALVES = 2

# Power of its length that a row is divided by: lengths differ within classes, most of all of ink on
# paper; between them as well. Chosen, as the rest here, on validation data: docs/task-inference.md.
OF_LENGTH = 0.25

# What is to be found in this thread or coroutine; hooks do nothing for others.
_LOOKING: ContextVar[bool] = ContextVar("maskcl_first_layer", default=False)


class Found(Exception):  # noqa: N818 (it is none)
    """A module, and what it was called with: ends a forward."""

    def __init__(self, module: nn.Module, inputs: tuple[Any, ...], options: Any) -> None:
        self.module, self.inputs, self.options = module, inputs, options


@dataclass
class Product:
    """What the first layer gave before its mask, for one batch: many tasks share it."""

    module: nn.Module | None = None
    inputs: Tensor | None = None
    output: Tensor | None = None

    def of(self, module: Any, inputs: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        """The module's output, computed anew where the module, its input or its weights differ."""
        can_share = len(inputs) == 1 and not options and module.is_shared()
        if can_share and module is self.module:
            assert self.inputs is not None
            assert self.output is not None
            if inputs[0] is self.inputs or torch.equal(inputs[0], self.inputs):
                return self.output
        output: Tensor = module.unmasked(*inputs, **options)
        if can_share:
            self.module, self.inputs, self.output = module, inputs[0], output
        return output


def first_rows(
    net: nn.Module,
    masked: Iterable[nn.Module],
    args: tuple[Any, ...],
    product: Product | None = None,
) -> Tensor:
    """[R, F]: the open units of the masked layer that a forward reaches first.

    Rows of a linear layer as they are before activation, which closes half of what they say; of
    images the means of activated channels over each quarter. Call it inside ``with net.task(k):``.

    Args:
        net: the network.
        masked: its modules that end in a mask, or have masked weights.
        args: of its forward.
        product: of the tasks before, for the same arguments.

    Raises:
        ValueError: the forward reaches none of them.
    """
    found = inputs_of_first(net, masked, args)
    module: Any = found.module
    units = getattr(module, "channel_dim", 1 if _is_conv(module) else -1)
    is_rows = units != 1 or found.inputs[0].dim() == 2
    if is_rows and hasattr(module, "unmasked"):
        y = (product or Product()).of(module, found.inputs, found.options)
        mask = module._mask()
        y = y if mask is None else y * mask
    else:
        y = module(*found.inputs, **found.options)
    if y.dim() > 2 and units == 1:
        pools = F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d
        y = pools[y.dim() - 3](y, HALVES)
    elif y.dim() > 2:
        y = y.flatten(1, -2).mean(1)
    y = y.flatten(1)
    return y / y.norm(dim=1, keepdim=True).clamp_min(1e-12) ** OF_LENGTH


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.conv._ConvNd)


def inputs_of_first(net: nn.Module, modules: Iterable[nn.Module], args: tuple[Any, ...]) -> Found:
    """What a forward hands to the first of some modules that it reaches; it ends there.

    Raises:
        ValueError: it reaches none.
    """

    def stop(module: nn.Module, inputs: Any, options: Any) -> None:
        if _LOOKING.get():
            raise Found(module, inputs, options)

    handles = [m.register_forward_pre_hook(stop, with_kwargs=True) for m in modules]
    looking = _LOOKING.set(True)
    try:
        net(*args)
    except Found as found:
        return found.with_traceback(None)
    finally:
        _LOOKING.reset(looking)
        for handle in handles:
            handle.remove()
    raise ValueError("TaskInference: no masked layer is reached by the network's forward")
