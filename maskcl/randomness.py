"""The state of every random generator that a run may draw from."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rng_state(device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State of torch's (CPU and, where used, CUDA), numpy's and Python's generators."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 (data sets use the global one)
    version, words, gauss = random.getstate()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "python": torch.tensor(words, dtype=torch.int64),
    }
    if device.type == "cuda":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    return tensors, {"numpy": [kind, *rest], "python": [version, gauss]}


def set_rng_state(device: torch.device, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Go back to `rng_state`'s result. A CUDA state is left out on another device."""
    torch.set_rng_state(tensors["torch"])
    kind, *rest = facts["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((kind, keys, *rest))  # noqa: NPY002
    version, gauss = facts["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed every generator inside, and give the caller's back after."""
    before = rng_state(device)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (data sets use the global one)
    random.seed(seed)
    try:
        yield
    finally:
        set_rng_state(device, *before)


def derive_seed(purpose: str, *parts: int) -> int:
    """A seed in [0, 2^63) from a purpose and some numbers, the same on every machine.

    Seeds of different purposes or numbers are unrelated, so that a task's shuffling does not
    repeat another's initialisation, nor seed 0's task 1 that of seed 1's task 0.
    """
    text = "/".join([purpose, *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
