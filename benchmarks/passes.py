"""Which kernels an op launches for its arguments, and what each has to read, write and compute.

One function an op, from the arguments of its schema (tensors of any device, meta as well) to the
launches of csrc/cuda, in order. Bytes of arguments are bytes of tensors; of caches only what each
pass is known to keep there. The grids are those of the .cu files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NAMES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "BFloat16",
    torch.float16: "Half",
}
THREADS = 256
SEGMENT, SPAN = 1024, 4096  # unit_rows.cuh, importance.cuh
PARTS = 64  # of a mask, gate.cu
BLOCK = 1 << 22  # elements of a block of masked weight, blocks.cuh
# Of a HAT step's weights: the share of 32-byte sectors that hold a protected element. Half of the
# rows have a task, and among eight columns, half of which do, is nearly always one.
PROTECTED = 0.5
# Of normal values, the share whose keys have the same 11 bits in front, at most.
FIRST_DIGIT = 0.11


@dataclass(frozen=True)
class Pass:
    """One launch.

    Attributes:
        kernel: the beginning of its name in the tables of resources; "" for a product of cuBLAS's.
        read: bytes that must come from memory.
        written: bytes that must go there.
        blocks: of 256 threads.
        lane: bytes that a thread has on their way at once.
        used: of what the sectors bring, the share that is asked for (1: coalesced).
        again: bytes of ``read`` that an earlier launch of the same op has read.
        cached: bytes read and written again on the way, which L2 holds.
        operations: floating-point operations outside of products.
        product: multiply-adds of a product, times 2.
        halves: whether the product's factors are of 16 bits.
    """

    kernel: str
    read: float
    written: float
    blocks: int
    lane: int = 16
    used: float = 1.0
    again: float = 0.0
    cached: float = 0.0
    operations: float = 0.0
    product: float = 0.0
    halves: bool = False


def wide(dtype: torch.dtype) -> int:
    """Bytes of the arithmetic's dtype."""
    return 8 if dtype == torch.float64 else 4


def grid(count: int, most: int = 4096) -> int:
    return min(max(-(-count // THREADS), 1), most)


def vectors(t: Tensor, run: int | None = None) -> int:
    """Elements of 16 bytes, or 1 where rows of ``run`` elements are not whole vectors."""
    width = 16 // t.element_size()
    return width if (t.numel() if run is None else run) % width == 0 else 1


def elementwise(kernel: str, count: int, read: int, written: int, each: int, **more: Any) -> Pass:
    """A pass over ``count`` elements, ``each`` of them a thread; bytes are those of an element."""
    blocks = grid(-(-count // max(each, 1)), 1 << 16)
    return Pass(kernel, count * read, count * written, blocks, each * read, **more)


def of_gate(e: Tensor, *_: Any) -> list[Pass]:
    b, c = e.element_size(), wide(e.dtype)
    name = f"gate: gate_kernel<{NAMES[e.dtype]}"
    return [Pass(name, e.numel() * b, e.numel() * c, grid(e.numel()), b, operations=20 * e.numel())]


def of_gate_backward(g: Tensor, e: Tensor, *_: Any) -> list[Pass]:
    b, c, n = e.element_size(), wide(e.dtype), e.numel()
    name = f"gate: gate_backward_kernel<{NAMES[e.dtype]}"
    return [Pass(name, n * (b + 2 * c), n * b, grid(n), b + 2 * c, operations=60 * n)]


def of_gates(e: Tensor, *_: Any) -> list[Pass]:
    b, c, n = e.element_size(), wide(e.dtype), e.numel()
    name = f"gate: gates_kernel<{NAMES[e.dtype]}"
    return [Pass(name, n * (b + c), n * c, 1, 8 * (b + c), operations=22 * n)]


def of_gates_backward(grads: list[Tensor], term: Any, e: Tensor, *rest: Any) -> list[Pass]:
    b, c, sizes = e.element_size(), wide(e.dtype), rest[2]
    name, made = f"gate: gates_backward_kernel<{NAMES[e.dtype]}", []
    for first in range(0, len(sizes), PARTS):
        parts = sizes[first : first + PARTS]
        n, given = sum(parts), sum(g.numel() for g in grads[first : first + PARTS])
        if n:
            blocks = grid(max(parts)) * len(parts)
            sums = n * (b + c) + given * c, n * b
            made.append(Pass(name, *sums, blocks, b + 2 * c, operations=80 * n))
    return made


def of_sparsity(mask: Tensor, used: Tensor) -> list[Pass]:
    n, blocks = mask.numel(), grid(mask.numel(), THREADS)
    read = mask.element_size() + used.element_size()
    sums = Pass("gate: sparsity_sums_kernel", n * read, 16 * blocks, blocks, read)
    return [sums, Pass("gate: sparsity_kernel", 16 * blocks, 4, 1, 16)]


def of_sparsity_backward(_: Tensor, mask: Tensor, used: Tensor) -> list[Pass]:
    n, c = mask.numel(), wide(mask.dtype)
    last = Pass("gate: sparsity_backward_kernel", n * used.element_size(), n * c, grid(n), 4)
    return [of_sparsity(mask, used)[0], last]


def _layout(x: Tensor, dim: int) -> tuple[int, int]:
    """(channels, elements of one channel side by side)."""
    return x.shape[dim], x.stride(dim) if x.shape[dim] > 1 else x.numel()


def of_activation(x: Tensor, mask: Tensor, bias: Any, act: str, slope: float, dim: int) -> list:
    channels, inner = _layout(x, dim)
    each = vectors(x, channels if inner == 1 else inner)
    name = f"masked_forward: forward_kernel<{NAMES[x.dtype]}, {each}>"
    b = x.element_size()
    return [elementwise(name, x.numel(), b, b, each, operations=8 * x.numel())]


def of_activation_backward(grad: Tensor, saved: Tensor, *rest: Any) -> list[Pass]:
    dim, (*_, mask_grad, bias_grad) = rest[4], rest
    channels, inner = _layout(saved, dim)
    each = vectors(saved, channels if inner == 1 else inner)
    b, c, n = saved.element_size(), wide(saved.dtype), saved.numel()
    outer = n // (channels * inner)
    if inner == 1:
        kind, lanes = "rows", 32
        while lanes > 1 and -(-channels // each) <= lanes // 2:
            lanes //= 2
        across, most = -(-channels // (lanes * each)), -(-outer // (4 * THREADS // lanes))
    else:
        kind, across, most = "planes", -(-channels // 8), -(-outer * inner // (128 * each))
    splits = max(1, min(-(-1024 // across), 512, most))
    parts = 2 * splits * channels * c if mask_grad or bias_grad else 0
    name = f"masked_activation_backward: backward_{kind}_kernel<{NAMES[saved.dtype]}, {each}>"
    first = Pass(name, 2 * n * b, n * b, across * splits, 2 * each * b, operations=15 * n)
    if not parts:
        return [first]
    blocks = 2 * -(-channels // 32)
    finish = Pass("masked_activation_backward: finish_kernel", 0, 0, blocks, c, cached=2 * parts)
    return [first, finish]


def _list(kernel: str, tensors: Sequence[Tensor], read: float, written: float) -> list[Pass]:
    """One launch a dtype over rows of a list; bytes of an element in elements' bytes."""
    made = []
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        of = [t for t in tensors if t.dtype == dtype and t.numel()]
        size, b = sum(t.numel() for t in of), dtype.itemsize
        rows = sum(t.shape[0] * -(-(t.numel() // t.shape[0]) // SEGMENT) for t in of)
        # Bits of a row's columns, 8 bytes each, are read once a block of eight rows or so.
        bits = 8 * size * PROTECTED / 4
        sizes = size * b * read, size * b * written
        made.append(Pass(kernel, *sizes, -(-rows // 8), 32, cached=bits))
    return made


def of_clamp(grads: list[Tensor], *rest: Any) -> list[Pass]:
    rule = rest[4]
    if rule == "hat":
        return _list("grad_clamp: select_kernel<uint, false", grads, 0, PROTECTED)
    return _list("grad_clamp: scale_kernel<float", grads, PROTECTED, PROTECTED)


def of_restore(params: list[Tensor], *_: Any) -> list[Pass]:
    return _list("grad_clamp: select_kernel<uint, true", params, PROTECTED, PROTECTED)


def of_clamp_soft(grads: list[Tensor], *_: Any) -> list[Pass]:
    return _list("grad_clamp: soft_kernel<float", grads, 1, 1)


def _moved(kernel: str, tensors: Sequence[Tensor], read: Sequence[Sequence[Tensor]],
           written: Sequence[Sequence[Tensor]]) -> list[Pass]:  # fmt: skip
    """One launch a dtype over a step's parameters; nearly every sector has a free element."""
    made = []
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        of = [i for i, t in enumerate(tensors) if t.dtype == dtype and t.numel()]
        count, blocks = sum(tensors[i].numel() for i in of), sum(_warps(tensors[i]) for i in of)
        sums = [sum(_size(each[i]) for each in lists for i in of) for lists in (read, written)]
        lane = 16 // dtype.itemsize * sums[0] // max(count, 1)
        bits = 8 * count * PROTECTED / 4
        made.append(Pass(f"{kernel}<{NAMES[dtype]}", *sums, blocks, lane, cached=bits))
    return made


def _size(t: Tensor) -> int:
    return t.numel() * t.element_size()


def _warps(t: Tensor) -> int:
    """Blocks for one tensor, a warp a segment; a vector is one row."""
    rows = t.shape[0] if t.dim() > 1 and t.numel() > t.shape[0] else 1
    return -(-rows * -(-(t.numel() // rows) // SEGMENT) // 8)


def of_sgd(params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], *rest: Any) -> list:
    first = rest[11]
    state = [momenta] if momenta else []
    read = [params, grads, *([] if first else state)]
    return _moved("update: sgd_kernel", params, read, [params, *state])


def of_adam(params: list[Tensor], *rest: Any) -> list[Pass]:
    """With counts of steps on the device, where torch's fused optimizers have them."""
    grads, first, second, steps = rest[:4]
    count = len(steps)
    counted = Pass("adam_update: count_steps_kernel", 4 * count, 28 * count, count, 4)
    state = [params, first, second]
    return [counted, *_moved("adam_update: adam_kernel", params, [*state, grads], state)]


def of_norm(grads: list[Tensor], *_: Any) -> list[Pass]:
    sums = _moved("update: square_kernel", grads, [grads], [])
    each = 8 * sum(p.blocks for p in sums)
    return [*sums, Pass("update: root_kernel", 0, wide(grads[0].dtype), 1, 8, cached=2 * each)]


def of_weight_mask(s: Tensor, *_: Any) -> list[Pass]:
    b, each = s.element_size(), vectors(s)
    return [elementwise(f"weight_mask: mask_kernel<{NAMES[s.dtype]}", s.numel(), b, b, each)]


def _pair(w: Tensor, s: Tensor) -> tuple[str, int, int]:
    """Template arguments, and elements that a thread takes; scores are float32 or the weight's."""
    scores = s.dtype if s.dtype in (w.dtype, torch.float32) else w.dtype
    return f"{NAMES[w.dtype]}, {NAMES[scores]}", max(vectors(w), vectors(s)), s.element_size()


def of_masked_weight(w: Tensor, s: Tensor, *_: Any) -> list[Pass]:
    names, each, b = _pair(w, s)
    a = w.element_size()
    return [elementwise(f"weight_mask: select_kernel<{names}", w.numel(), a + b, a, each)]


def of_masked_weight_backward(g: Tensor, w: Any, s: Tensor, *rest: Any) -> list[Pass]:
    (levels, *_, want_w, want_s), (names, each, b) = rest[1:], _pair(g, s)
    a = g.element_size()
    read = a + (a if w is not None and want_s else 0) + (b if want_w or levels == "soft" else 0)
    name = f"weight_mask: backward_kernel<{NAMES[g.dtype]}, {names}"
    return [elementwise(name, g.numel(), read, a * want_w + b * want_s, each)]


def of_kth(values: Tensor, *_: Any) -> list[Pass]:
    n, b, each = values.numel(), values.element_size(), vectors(values)
    name, blocks = f"kth_largest: count_kernel<{NAMES[values.dtype]}", grid(-(-n // each), 1024)
    c, digits = wide(values.dtype), 6 if b == 8 else 3
    kept = n * c * FIRST_DIGIT
    first, second = Pass(name, n * b, 0, blocks), Pass(name, n * b, kept, blocks, again=n * b)
    behind = [Pass(name, kept, 0, blocks, c, again=kept)] * (digits - 2)
    return [Pass("kth_largest: start_kernel", 0, 0, 1), first, second, *behind]


def product(rows: int, k: int, columns: int, dtype: torch.dtype, read: float = 0, **more) -> Pass:
    """cuBLAS's [rows, k] x [k, columns]; ``read``: bytes that come from memory, not from L2."""
    b = dtype.itemsize
    blocks = max(1, math.ceil(rows / 128) * math.ceil(columns / 128))
    work = 2.0 * rows * k * columns
    return Pass("", read, rows * columns * b, blocks, 64, product=work, halves=b == 2, **more)


def _blocks(weight: Tensor) -> tuple[int, int]:
    """Blocks that the masked weight is made in, and elements of one."""
    count = max(1, -(-weight.numel() // BLOCK))
    return count, -(-weight.numel() // count)


def _by_blocks(x: Tensor, w: Tensor, name: str, read: int, transposed: bool = False) -> list[Pass]:
    count, each = _blocks(w)
    a, rows = w.element_size(), x.shape[0]
    k = w.shape[0] if transposed else w.shape[1]
    made = elementwise(name, each, read, 0, 16 // a, cached=each * a)
    done = product(rows, k, each // k, w.dtype, rows * k * a, cached=each * a)
    return [made, done] * count


def of_piggyback(x: Tensor, w: Tensor, s: Tensor, *_: Any) -> list[Pass]:
    names, _, b = _pair(w, s)
    return _by_blocks(x, w, f"weight_mask: select_kernel<{names}", w.element_size() + b)


def of_piggyback_backward(g: Tensor, x: Tensor, w: Tensor, s: Tensor, *rest: Any) -> list[Pass]:
    want_x, want_w, want_s = rest[-3:]
    (names, _, b), a, c = _pair(w, s), w.element_size(), wide(w.dtype)
    made = []
    if want_x:
        made += _by_blocks(g, w, f"weight_mask: select_kernel<{names}", a + b, transposed=True)
    if want_w or want_s:
        count, each = _blocks(w)
        rows = each // w.shape[1]
        outer = product(rows, x.shape[0], w.shape[1], w.dtype, x.numel() * a)
        outer = Pass(**{**vars(outer), "written": 0, "cached": each * c})
        name = f"weight_mask: backward_kernel<{'double' if c == 8 else 'float'}, {names}"
        read = a * want_s + b * want_w
        last = elementwise(name, each, read, a * want_w + b * want_s, 16 // a, cached=each * c,
                           again=each * read * want_x)  # fmt: skip
        made += [outer, last] * count
    return made
