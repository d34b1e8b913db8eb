"""Fingerprints of tensors' bits: equal for equal bits, NaN and -0 included, without a copy."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl import backends
from maskcl.shards import whole

_WORDS = 1 << 16  # int64 at a time: they stay in a core's cache
_KIND = attrgetter("__class__", "shape", "dtype", "device")
_ROWS, _COLUMNS = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


def fingerprint(tensor: Tensor) -> Tensor:
    """A hash of a tensor's bits, int64 0-d on its device.

    A sum of its 64 bit words times odd numbers, modulo 2^64: one changed element always shows.
    A sharded one is gathered for it: every process has to call it.
    """
    flat = whole(tensor).contiguous().reshape(-1).view(torch.uint8)
    words = (
        F.pad(flat, (0, -flat.numel() % 8)).view(torch.int64)
        if flat.numel() % 8
        else (flat.view(torch.int64))
    )
    across = _odd(_WORDS, _COLUMNS, words.device)
    # What is multiplied is thrown away at once: one block of memory serves all.
    sums = [(part * across[: part.numel()]).sum() for part in words.split(_WORDS)]
    if not sums:
        return torch.zeros((), dtype=torch.int64, device=words.device)
    return (torch.stack(sums) * _odd(len(sums), _ROWS, words.device)).sum()


def fingerprints(tensors: Sequence[Tensor]) -> Tensor:
    """The same of each of n tensors, int64 [n]; those that are alike take a few calls together."""
    kinds = list(map(_KIND, tensors))
    if len(set(kinds)) == 1:
        return _of_alike(tensors, kinds[0][0])
    groups: dict[Any, list[int]] = {}
    for place, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(place)
    found = torch.empty(len(kinds), dtype=torch.int64, device=tensors[0].device)
    for kind, places in groups.items():
        own = _of_alike([tensors[place] for place in places], kind[0])
        found[torch.tensor(places, device=found.device)] = own.to(found.device)
    return found


def _of_alike(tensors: Sequence[Tensor], kind: type) -> Tensor:
    """Of tensors of one class, shape, dtype and device."""
    first = tensors[0]
    count = 8 * _WORDS // max(1, first.numel() * first.element_size())
    is_plain = first.dim() and first.numel() and kind in (Tensor, nn.Parameter)
    if count < 2 or not is_plain:
        return torch.stack([fingerprint(tensor) for tensor in tensors])
    found = []
    for start in range(0, len(tensors), count):
        part = list(tensors[start : start + count])
        with torch.no_grad():
            rows = torch.cat(part).contiguous().view(len(part), -1).view(torch.uint8)
        if rows.shape[1] % 8:
            rows = F.pad(rows, (0, -rows.shape[1] % 8))
        words = rows.view(torch.int64)
        found.append((words * _odd(_WORDS, _COLUMNS, words.device)[: words.shape[1]]).sum(1))
    return torch.cat(found)


def protected_fingerprint(
    tensor: Tensor, out_tasks: Tensor, in_tasks: Tensor, groups: int, exact: bool
) -> Tensor:
    """The same of a parameter's protected elements alone; arguments as in `Protection`."""
    rows = tensor.detach()
    count = rows.shape[0]
    step = max(1, 8 * _WORDS // max(1, rows[0].numel() if count else 1))
    if groups > 1 or count <= step:
        step = count  # rows of a group meet their own columns
    run = backends.select("restore_protected_", rows)
    found = []
    for first in range(0, count, max(step, 1)):
        part = rows[first : first + step].contiguous()
        ends = out_tasks if out_tasks.shape[0] == 1 else out_tasks[first : first + step]
        kept = torch.zeros_like(part)
        run([kept], [part], [ends.contiguous()], [in_tasks], [groups], exact)
        found.append(fingerprint(kept))
    if not found:
        return torch.zeros((), dtype=torch.int64, device=rows.device)
    return (torch.stack(found) * _odd(len(found), _ROWS, rows.device)).sum()


@functools.lru_cache(maxsize=8)
def _odd(count: int, seed: int, device: torch.device) -> Tensor:
    """Odd numbers that look drawn at random, int64 [count]."""
    with torch.inference_mode(False):
        n = torch.arange(count, dtype=torch.int64, device=device) * (seed - (1 << 64))
        n = (n ^ (n >> 29)) * (seed - (1 << 64))
        return (n ^ (n >> 32)) | 1
