"""What has been computed from tensors, kept until one of them is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class TensorCache:
    """Values that follow from tensors, kept until one of these is written or replaced."""

    def __init__(self, size: int = 8) -> None:
        self._size = size
        self._kept: dict[Any, tuple[list[tuple[Tensor, int]], Any]] = {}

    def get(self, key: Any, tensors: Sequence[Tensor], make: Callable[[], Any]) -> Any:
        """What ``make`` returned for ``key``, as long as ``tensors`` are what they were."""
        if any(t.is_inference() for t in tensors):
            return make()  # whether these are written cannot be seen
        found = self._kept.get(key)
        if found is not None and len(found[0]) == len(tensors):
            pairs = zip(found[0], tensors, strict=True)
            if all(t is now and version == now._version for (t, version), now in pairs):
                return found[1]
        # What inference mode makes could not be used in training later.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        self._kept.pop(key, None)
        while len(self._kept) >= self._size:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = ([(t, t._version) for t in tensors], value)
        return value

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def __deepcopy__(self, memo: Any) -> TensorCache:
        return TensorCache(self._size)

    def __getstate__(self) -> dict[str, Any]:
        return {"_size": self._size, "_kept": {}}
