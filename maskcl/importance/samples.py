"""A batch taken apart into samples and put together again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor


class Samples:
    """The tensors of a batch that have a row for each of ``count`` samples.

    A batch is a tensor, or tuples, lists and dicts of tensors; what has another first dimension,
    and what is no tensor, belongs to every sample alike.

    Attributes:
        tensors: those with ``count`` rows; none where the batch cannot be taken apart.
    """

    def __init__(self, batch: Any, count: int) -> None:
        self.count, self.batch = count, batch
        self.tensors: list[Tensor] = []
        self._map(batch, self.tensors.append)

    def put(self, tensors: Sequence[Tensor]) -> Any:
        """The batch with these in the places of ``tensors``."""
        following = iter(tensors)
        return self._map(self.batch, lambda _: next(following))

    def rows(self, start: int, stop: int) -> Any:
        """The batch of samples ``start`` to ``stop``."""
        return self.put([t[start:stop] for t in self.tensors])

    def _map(self, part: Any, use: Callable[[Tensor], Any]) -> Any:
        if isinstance(part, Tensor):
            return use(part) if part.dim() and part.shape[0] == self.count else part
        if isinstance(part, dict):
            return type(part)((key, self._map(value, use)) for key, value in part.items())
        if isinstance(part, (list, tuple)):
            parts = [self._map(value, use) for value in part]
            return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
        return part
