"""Buffers that carry the names of a model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class TensorTree(nn.Module):
    """A buffer for each name; dots in a name are levels, so that the ``state_dict`` has the names.

    Args:
        tensors: by name; taken over, not copied.
        wide: the buffers stay float32 (float64 under ``double()``) where the network around them
            is cast to half precision.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, wide: bool = False) -> None:
        super().__init__()
        self._wide = wide
        inner: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            first, _, rest = name.partition(".")
            if rest:
                inner.setdefault(first, {})[rest] = tensor
            else:
                self.register_buffer(first, tensor)
        for name, below in inner.items():
            self.add_module(name, TensorTree(below, wide=wide))

    def of(self, name: str) -> Tensor:
        """The buffer of this name.

        Raises:
            RuntimeError: there is none any more.
        """
        tensor = self.holder(name).get(name.rpartition(".")[2])
        if tensor is None:
            raise RuntimeError(f"the network's buffer for {name!r} was taken away or set to None")
        return tensor

    def put(self, name: str, tensor: Tensor) -> None:
        """Another tensor in the place of the buffer of this name."""
        self.holder(name)[name.rpartition(".")[2]] = tensor

    def holder(self, name: str) -> dict[str, Tensor | None]:
        """The dictionary that has the buffer of this name."""
        owner = owner_of(self, name)
        return {} if owner is None else owner._buffers

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        if not self._wide:
            return super()._apply(fn, recurse)

        def keep(tensor: Tensor) -> Tensor:
            new = fn(tensor)
            wanted = torch.float64 if new.dtype == torch.float64 else torch.float32
            return new if new.dtype == wanted else tensor.to(new.device, wanted)

        # Each level below does the same to its own.
        for child in self.children():
            child._apply(fn)
        return super()._apply(keep, recurse=False)


def owner_of(module: nn.Module, name: str) -> nn.Module | None:
    """The module below ``module`` that holds the parameter or buffer of this name; None if none.

    ``get_submodule`` without its checks, for what is looked up in every step.
    """
    found: nn.Module | None = module
    for part in name.split(".")[:-1]:
        found = None if found is None else found._modules.get(part)
    return found
