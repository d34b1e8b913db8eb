"""Fresh memory is poisoned with NaN, so that an element a kernel forgets fails its test.

An access outside of all tensors fails it too, and programs that meet (``memory.py``): not under
ttsem, which does not interpret, and sees these itself.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.triton.interpreted import memory


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def allocate_poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        fresh = allocate(*args, **kwargs)
        return fresh.fill_(float("nan")) if fresh.is_floating_point() else fresh

    return allocate_poisoned


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty_like", _poisoned(torch.empty_like))
    monkeypatch.setattr(torch, "empty_strided", _poisoned(torch.empty_strided))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def watched_memory() -> Iterator[None]:
    import triton

    interpreting = triton.knobs.runtime.interpret if hasattr(triton, "knobs") else True
    with memory.watched() if interpreting else nullcontext():
        yield


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(7)
