"""Lists of tensors as flat memory: an elementwise kernel over a whole model in one launch.

Several lists go side by side (gradients, parameters, ...). Where the tensors of one place have the
same dense memory order, whichever it is, their elements are numbered as they lie; those that have
another order are copied to it. The table is int64, one column a place, as in
:mod:`maskcl.triton._lists`: the first of its programs, its elements, its samples, the elements
between two samples, and the addresses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from maskcl.triton._compat import cdiv, power_of_2, tl, triton
from maskcl.triton._lists import MAX_TENSORS, entry_of, on_device
from maskcl.triton.masked_forward import dense

TILE = 1024  # elements that a program has on their way at once, over all samples
SAMPLES = 8  # of a tile where there are samples in front
PROGRAMS = 2048  # from here on a program takes several tiles: it finds its tensor once
MAX_TILES = 8


@triton.jit
def flat_range(table_ptr, tensors, tiles_each, TENSORS: tl.constexpr, BLOCK: tl.constexpr):
    """(the place's entry, its elements, the first of this program, that of its cut tile, its end).

    A place's last tile may be cut: it is the only one that needs a mask, without which loads are
    wide whatever the number of elements.
    """
    entry, local = entry_of(table_ptr, tensors, TENSORS)
    numel = tl.load(entry + tensors)
    start = local * tiles_each * BLOCK
    end = tl.minimum(start + tiles_each * BLOCK, numel)
    return entry, numel, start, start + (end - start) // BLOCK * BLOCK, end


@triton.jit
def flat_pointer(at, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The address at ``at`` in the table as a pointer to ``DTYPE``."""
    ptr = tl.load(at).to(tl.pointer_type(DTYPE))
    return tl.multiple_of(ptr, 16) if ALIGNED else ptr


def _steps(shape: Sequence[int], stride: Sequence[int]) -> list[int]:
    return [step for size, step in zip(shape, stride, strict=True) if size != 1]


def _in_order_of(base: Tensor, tensor: Tensor) -> Tensor:
    """``tensor``, [*base's shape] or [N, *base's shape], in the order of the dense ``base``."""
    if base.is_contiguous() and tensor.is_contiguous():
        return tensor
    lead = tensor.dim() - base.dim()
    if _steps(base.shape, tensor.stride()[lead:]) == _steps(base.shape, base.stride()):
        return tensor
    stride = (base.numel(),) * lead + base.stride()
    fresh = torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype, device=tensor.device)
    return fresh.copy_(tensor)


@dataclass
class FlatList:
    """The places of one launch: of one dtype, all aligned to 16 bytes or none known to be."""

    dtype: torch.dtype
    sampled: bool
    aligned: bool
    entries: list[tuple[int, ...]] = field(default_factory=list)
    alive: list[Sequence[Tensor]] = field(default_factory=list)
    copies: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def block(self) -> int:
        """Elements of a tile."""
        return TILE // SAMPLES if self.sampled else TILE

    @property
    def tensors(self) -> int:
        """A power of two that is not below the number of places."""
        return power_of_2(len(self.entries))

    def schedule(self, device: torch.device) -> tuple[Tensor, int, int]:
        """The table on ``device``, the number of programs, and the tiles that each has."""
        tiles = [cdiv(numel, self.block) for numel, *_ in self.entries]
        each = min(MAX_TILES, cdiv(sum(tiles), PROGRAMS))
        rows, programs = [], 0
        for count, entry in zip(tiles, self.entries, strict=True):
            rows.append((programs, *entry))
            programs += cdiv(count, each)
        return on_device(rows, device), programs, each

    def write_back(self) -> None:
        """Copy what was written to copies to the tensors that they stand for."""
        for original, copy in self.copies:
            original.copy_(copy)


def flat_lists(
    lists: Sequence[Sequence[Tensor]], *, typed: int, written: int | None
) -> list[FlatList]:
    """The launches that cover the lists, which hold a tensor a place and share the first's shapes.

    Args:
        lists: of as many tensors on one device; the first's memory order is the place's. Those of
            the second may have samples in front.
        typed: the list whose dtypes choose the launch.
        written: the list that the kernel writes to, copies of which are to be written back.
    """
    done: list[FlatList] = []
    filling: dict[tuple[torch.dtype, bool, bool], FlatList] = {}
    for place in zip(*lists, strict=True):
        base, second = place[0], place[1]
        if not base.numel():
            continue
        base = base if base.is_contiguous() else dense(base)
        flat = [base, *(_in_order_of(base, tensor) for tensor in place[1:])]
        sampled = second.dim() > base.dim()
        samples, between = (second.shape[0], flat[1].stride(0)) if sampled else (1, 0)
        addresses = [tensor.data_ptr() for tensor in flat]
        aligned = between % 8 == 0 and not any(address % 16 for address in addresses)
        key = place[typed].dtype, sampled, aligned
        work = filling.get(key)
        if work is None or len(work.entries) == MAX_TENSORS:
            work = filling[key] = FlatList(*key)
            done.append(work)
        work.entries.append((base.numel(), samples, between, *addresses))
        work.alive.append(flat)
        if written is not None and flat[written] is not place[written]:
            work.copies.append((place[written], flat[written]))
    return done
