"""Fingerprints of tensors' bits: equal for equal bits, NaN and -0 included, without a copy."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl import backends
from maskcl.shard_sums import totals
from maskcl.shards import are_plain, cut_ends, is_sharded, local, rows

_WORDS = 1 << 16  # int64 at a time: they stay in a core's cache
_KIND = attrgetter("__class__", "shape", "dtype", "device")
_ROWS, _COLUMNS = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F


def fingerprint(tensor: Tensor) -> Tensor:
    """A hash of a tensor's bits, int64 0-d on its device.

    A sum of its 64 bit words times odd numbers, modulo 2^64: one changed element always shows.
    Of a sharded one each process hashes its rows, at their places, and one number travels: the hash
    is that of the whole. Every process has to call it then.
    """
    if is_sharded(tensor):
        return fingerprints([tensor])[0]
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
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
    if not are_plain(tensors) and any(map(is_sharded, tensors)):
        own = [_of_rows(t) if is_sharded(t) else fingerprint(t) for t in tensors]
        return totals(own, tensors)
    kinds = list(map(_KIND, tensors))
    if len(set(kinds)) == 1:
        return _of_alike(tensors, kinds[0][0])
    groups: dict[Any, list[int]] = {}
    for place, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(place)
    found = torch.empty(len(kinds), dtype=torch.int64, device=tensors[0].device)
    for kind, places in groups.items():
        alike = _of_alike([tensors[place] for place in places], kind[0])
        found[torch.tensor(places, device=found.device)] = alike.to(found.device)
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


def _of_rows(tensor: Any) -> Tensor:
    """What the rows of this process add to the hash of a sharded tensor."""
    mine = local(tensor.detach())
    count = math.prod(tensor.shape[1:]) * tensor.element_size()
    return partial_hashes(mine.reshape(1, -1), rows(tensor).start * count)[0]


def partial_hashes(parts: Tensor, offset: int) -> Tensor:
    """What parts of n tensors add to their hashes, int64 [n].

    Args:
        parts: [n, *], of tensors of the same shape the same elements, one behind the other.
        offset: bytes of a tensor in front of them.
    """
    flat = parts.contiguous().reshape(len(parts), math.prod(parts.shape[1:])).view(torch.uint8)
    # Bytes of a word that another process has are 0 here, so that the words add up.
    lead = offset % 8
    if lead or (lead + flat.shape[1]) % 8 or flat.storage_offset() % 8:
        flat = F.pad(flat, (lead, -(lead + flat.shape[1]) % 8))
    words, place = flat.flatten().view(torch.int64), offset // 8
    words = words.view(len(flat), flat.shape[1] // 8)
    across = _odd(_WORDS, _COLUMNS, words.device)
    down = _odd(-(-(place + words.shape[1]) // _WORDS), _ROWS, words.device)
    found = words.new_zeros(len(words))
    while words.shape[1]:
        row, column = divmod(place, _WORDS)
        part = words[:, : _WORDS - column]
        size = part.shape[1]
        found += (part * across[column : column + size]).sum(1) * down[row]
        words, place = words[:, size:], place + size
    return found


def protected_fingerprint(
    tensor: Tensor, out_tasks: Tensor, in_tasks: Tensor, groups: int, exact: bool
) -> Tensor:
    """The same of a parameter's protected elements alone; arguments as in `Protection`.

    Of a sharded parameter it is what the rows of this process add to it.
    """
    mine = rows(tensor) if is_sharded(tensor) else slice(0, tensor.shape[0])
    step = max(1, 8 * _WORDS // max(1, math.prod(tensor.shape[1:])))
    if groups > 1 or tensor.shape[0] <= step:
        step = max(1, tensor.shape[0])  # rows of a group meet their own columns
    out_tasks, in_tasks, groups = cut_ends(tensor, out_tasks, in_tasks, groups)
    held = local(tensor.detach())
    run = backends.select("restore_protected_", held)
    down = _odd(-(-tensor.shape[0] // step), _ROWS, held.device)
    found = torch.zeros((), dtype=torch.int64, device=held.device)
    first = mine.start
    while first < mine.stop:
        block, inside = divmod(first, step)
        last = min(mine.stop, first - inside + step)
        part = held[first - mine.start : last - mine.start].contiguous()
        ends = out_tasks
        if out_tasks.shape[0] > 1:
            ends = out_tasks[first - mine.start : last - mine.start].contiguous()
        kept = torch.zeros_like(part)
        run([kept], [part], [ends], [in_tasks], [groups], exact)
        own = fingerprint(kept)
        if inside:
            bytes_before = inside * part[0].numel() * part.element_size()
            own = partial_hashes(kept.reshape(1, -1), bytes_before)[0]
        found = found + own * down[block]
        first = last
    return found


@functools.lru_cache(maxsize=8)
def _odd(count: int, seed: int, device: torch.device) -> Tensor:
    """Odd numbers that look drawn at random, int64 [count]."""
    with torch.inference_mode(False):
        n = torch.arange(count, dtype=torch.int64, device=device) * (seed - (1 << 64))
        n = (n ^ (n >> 29)) * (seed - (1 << 64))
        return (n ^ (n >> 32)) | 1
