"""The passes of words of bits, of importances, and of the vendors' products; see passes.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from benchmarks import passes
from benchmarks.passes import NAMES, SPAN, Pass, elementwise, grid, product, vectors, wide
from maskcl.reference.masked_products import BIAS, MASK, WEIGHT

FEW_ROWS = 16  # of a batch, packed_linear.cu
VOTES = 8  # elements that a lane has on their way while it packs, packing.cuh


def of_pack(name: str) -> Callable[..., list[Pass]]:
    def of(values: Tensor, *_: Any) -> list[Pass]:
        n, b = values.numel(), values.element_size()
        blocks = grid(-(-n // 32), 1 << 16)
        return [Pass(f"bitmask: {name}_kernel", n * b, n / 8, blocks, VOTES * b)]

    return of


def of_unpack(words: Tensor, shape: list[int], dtype: Any) -> list[Pass]:
    n, b = math.prod(shape), dtype.itemsize
    blocks = grid(-(-n * b // 16), 1 << 16)
    return [Pass("bitmask: unpack_kernel", words.numel() * 4, n * b, blocks, 4)]


def of_combine(a: Tensor, *_: Any) -> list[Pass]:
    return [elementwise("bitmask: combine_kernel", a.numel(), 8, 4, vectors(a))]


def of_popcount(words: Tensor) -> list[Pass]:
    rows, width = max(1, words.numel() // words.shape[-1]), words.shape[-1]
    each = vectors(words, width)
    blocks = rows * grid(-(-width // (4 * each)), 1024)
    return [Pass("bitmask: popcount_kernel", words.numel() * 4, rows * 8, blocks, 4 * each)]


def of_packed_weight(w: Tensor, words: Tensor) -> list[Pass]:
    a, bits = w.element_size(), words.numel() * 4 / max(w.numel(), 1)
    made = elementwise("bitmask: select_kernel", w.numel(), a, a, vectors(w))
    return [Pass(**{**vars(made), "read": w.numel() * (a + bits)})]


def of_embedding(index: Tensor, w: Tensor, *_: Any) -> list[Pass]:
    n, a = index.numel() * w.shape[1], w.element_size()
    return [elementwise("bitmask: embedding_kernel", n, a, a, vectors(w, w.shape[1]))]


def of_packed_linear(x: Tensor, w: Tensor, words: Tensor, *_: Any) -> list[Pass]:
    a, (outs, ins), rows = w.element_size(), w.shape, x.shape[0]
    if rows > FEW_ROWS:
        return passes._by_blocks(x, w, "bitmask: select_kernel", a)
    read, work = w.numel() * a + words.numel() * 4 + x.numel() * a, 2.0 * rows * w.numel()
    whole = ins % (16 // a) == 0
    if a == 2 and whole:
        tiles = 4 if outs >= 16384 else 2 if outs >= 4096 else 1
        name = f"packed_linear: tensor_core_kernel<{NAMES[w.dtype]}, {tiles}"
        of_cores = {"product": 16 * work / rows, "halves": True}  # tiles of sixteen rows
        return [Pass(name, read, rows * outs * a, -(-outs // (8 * tiles)), 32 * tiles, **of_cores)]
    batch = 1 if rows == 1 else 4 if rows <= 4 else 16
    each, rows_of_warp = (16 // a, 4 if outs >= 4096 else 1) if whole else (1, 1)
    name = f"packed_linear: rows_kernel<{NAMES[w.dtype]}, {batch}, {each}, {rows_of_warp}>"
    blocks = -(-outs // (8 * rows_of_warp))
    return [Pass(name, read, rows * outs * a, blocks, each * a * rows_of_warp, operations=work)]


def of_accumulate(omegas: list[Tensor], grads: list[Tensor], *_: Any) -> list[Pass]:
    made = []
    for dtype in dict.fromkeys(g.dtype for g in grads):
        pairs = [(o, g) for o, g in zip(omegas, grads, strict=True) if g.dtype == dtype]
        read = sum(g.numel() * g.element_size() + o.numel() * o.element_size() for o, g in pairs)
        written = sum(o.numel() * o.element_size() for o, _ in pairs)
        blocks = sum(-(-o.numel() // SPAN) for o, _ in pairs)
        name = f"mas_accumulate: accumulate_kernel<false, {NAMES[dtype]}"
        made.append(Pass(name, read, written, blocks, 32))
    return made


def _penalty(params: list[Tensor], omegas: list[Tensor], grads: int) -> list[Pass]:
    """``grads``: times that gradients go to or come from memory."""
    n, blocks = sum(p.numel() for p in params), sum(-(-p.numel() // SPAN) for p in params)
    a, c = params[0].element_size(), omegas[0].element_size()
    read = n * (2 * a + c + (a if grads > 1 else 0))
    name = f"importance: penalty_kernel<{'true' if grads else 'false'}, {NAMES[params[0].dtype]}"
    first = Pass(name, read, n * a * bool(grads), blocks, 32 + 16 * c // a)
    return [first, Pass("importance: sum_kernel", 0, c, 1, 64, cached=16 * blocks)]


def of_penalty(params: list[Tensor], anchors: Any, omegas: list[Tensor]) -> list[Pass]:
    return _penalty(params, omegas, 0)


def of_penalty_grads(grads: Any, params: list[Tensor], anchors: Any, omegas: list, *rest: Any):
    return _penalty(params, omegas, 2 if rest[-1] else 1)


def _scratch(p: Pass) -> Pass:
    """A product whose result stays in L2."""
    return Pass(**{**vars(p), "written": 0})


def _of_samples(omega: Tensor, x: Tensor, g: Tensor) -> list[Pass]:
    """linear_importance_ with positions: samples' products, some at a time, and their sizes."""
    (outs, ins), (samples, positions) = omega.shape, x.shape[:2]
    chunk = max(1, min(samples, (1 << 23) // omega.numel()))
    turns, size = -(-samples // chunk), chunk * omega.numel() * wide(x.dtype)
    mm = product(outs, positions * chunk, ins, x.dtype, _bytes(x, g) / turns, cached=size)
    blocks, all_of = -(-omega.numel() // 1024), _bytes(omega)
    add = Pass("mas_accumulate: accumulate_kernel<false", all_of, all_of, blocks, cached=size)
    return [_scratch(mm), add] * turns


def of_linear_importance(omega: Tensor, x: Tensor, g: Tensor, _: float, square: bool) -> list:
    if x.dim() == 3 and x.shape[1] > 1:
        return _of_samples(omega, x, g)
    (outs, ins), a, c = omega.shape, x.element_size(), wide(x.dtype)
    name = f"linear_importance: sizes_kernel<{'true' if square else 'false'}, {NAMES[x.dtype]}"
    to, samples = c if square or a > 2 else a, x.numel() // ins
    sizes = [elementwise(name, t.numel(), a, 0, 16 // a, cached=t.numel() * to) for t in (g, x)]
    if to == c:
        kept = (x.numel() + g.numel()) * to
        return [*sizes, product(outs, samples, ins, omega.dtype, _bytes(omega), cached=kept)]
    count = max(1, -(-omega.numel() // passes.BLOCK))
    size = omega.numel() // count
    mm = product(outs // count, samples, ins, x.dtype, 0, cached=size * c)
    name = "mas_accumulate: accumulate_kernel<false, float"
    add = Pass(name, size * c, size * c, -(-size // SPAN), cached=size * c)
    return [*sizes, *[_scratch(mm), add] * count]


def of_open_linear(x: Tensor, w: Tensor, *_: Any) -> list[Pass]:
    return [product(x.shape[0], w.shape[1], w.shape[0], w.dtype, _bytes(x, w))]


def of_open_linear_backward(g: Tensor, x: Tensor, w: Tensor, want_x: bool, want_w: bool) -> list:
    made = []
    if want_x:
        made.append(product(g.shape[0], w.shape[0], w.shape[1], w.dtype, _bytes(g, w)))
    if want_w:
        made.append(product(w.shape[0], g.shape[0], w.shape[1], w.dtype, _bytes(g, x)))
    return made


def of_open_conv(x: Tensor, w: Tensor, bias: Any, stride: list[int], padding: list[int], *_: Any):
    size = [(x.shape[i + 2] + 2 * padding[i] - w.shape[i + 2]) // stride[i] + 1 for i in (0, 1)]
    k = w.numel() // w.shape[0]
    return [product(x.shape[0] * math.prod(size), k, w.shape[0], w.dtype, _bytes(x, w))]


def of_open_conv_backward(g: Tensor, x: Tensor, w: Tensor, *rest: Any) -> list[Pass]:
    k, rows = w.numel() // w.shape[0], g.numel() // g.shape[1]
    made = [product(rows, w.shape[0], k, w.dtype, _bytes(g, w))] * bool(rest[3])
    return made + [product(w.shape[0], rows, k, w.dtype, _bytes(g, x))] * bool(rest[4])


def of_masked_linears(x: Tensor, weights: list[Tensor], _: Any, masks: list, *how: Any) -> list:
    made: list[Pass] = []
    for layer, w in enumerate(weights):
        y = x.new_empty((x.shape[0], w.shape[0]))
        made += of_open_linear(x, w)
        if layer < len(masks):
            made += passes.of_activation(y, masks[layer], None, *how, 1)
        x = y
    return made


def of_masked_linears_backward(grad: Tensor, x: Tensor, ys: list[Tensor], *rest: Any) -> list[Pass]:
    weights, masks, activation, slope, want_x, wanted = rest
    made: list[Pass] = []
    for layer in reversed(range(len(ys))):
        y, w, want = ys[layer], weights[layer], wanted[layer]
        if layer < len(masks):
            how = activation, slope, 1, True, bool(want & MASK), bool(want & BIAS)
            made += passes.of_activation_backward(y, y, masks[layer], None, *how)
        before = ys[layer - 1] if layer else x
        wants = bool(layer) or want_x, bool(want & WEIGHT)
        made += of_open_linear_backward(y, before, w, *wants)
    return made


def of_gated_linears(x: Tensor, weights: list[Tensor], biases: Any, *rest: Any) -> list[Pass]:
    embedding, scale, share, sizes, weight, floor, activation, slope = rest
    masks = list(embedding.split(sizes))
    layers = of_masked_linears(x, weights, biases, masks, activation, slope)
    return [*passes.of_gates(embedding, scale, share, floor, weight), *layers]


def of_gated_linears_backward(grad: Tensor, term: Tensor, *rest: Any) -> list[Pass]:
    x, ys, weights, mask, embedding, scale, share, sizes, weight, *rest = rest
    *how, activation, slope, want_x, wanted = rest
    masks = list(mask.split(sizes))
    layers = of_masked_linears_backward(
        grad, x, ys, weights, masks, activation, slope, want_x, wanted
    )
    gates = passes.of_gates_backward(masks, term, embedding, scale, share, sizes, weight, *how)
    return [*layers, *gates]


def _bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


OF: dict[str, Callable[..., list[Pass]]] = {
    "hat_gate": passes.of_gate,
    "hat_gate_backward": passes.of_gate_backward,
    "hat_gates": passes.of_gates,
    "hat_gates_backward": passes.of_gates_backward,
    "hat_sparsity": passes.of_sparsity,
    "hat_sparsity_backward": passes.of_sparsity_backward,
    "masked_activation": passes.of_activation,
    "masked_activation_": passes.of_activation,
    "masked_activation_backward": passes.of_activation_backward,
    "sgd_update_": passes.of_sgd,
    "adam_update_": passes.of_adam,
    "unprotected_norm": passes.of_norm,
    "clamp_grads_": passes.of_clamp,
    "restore_protected_": passes.of_restore,
    "clamp_grads_soft_": passes.of_clamp_soft,
    "weight_mask": passes.of_weight_mask,
    "masked_weight": passes.of_masked_weight,
    "masked_weight_backward": passes.of_masked_weight_backward,
    "kth_largest": passes.of_kth,
    "piggyback_linear": passes.of_piggyback,
    "piggyback_linear_backward": passes.of_piggyback_backward,
    "pack_mask": of_pack("pack_mask"),
    "pack_scores": of_pack("pack_scores"),
    "unpack_mask": of_unpack,
    "combine_words": of_combine,
    "popcount_words": of_popcount,
    "packed_weight": of_packed_weight,
    "packed_linear": of_packed_linear,
    "packed_embedding": of_embedding,
    "mas_accumulate_": of_accumulate,
    "mas_penalty": of_penalty,
    "mas_penalty_grads_": of_penalty_grads,
    "linear_importance_": of_linear_importance,
    "open_linear": of_open_linear,
    "open_linear_backward": of_open_linear_backward,
    "masked_linears": of_masked_linears,
    "masked_linears_backward": of_masked_linears_backward,
    "gated_linears": of_gated_linears,
    "gated_linears_backward": of_gated_linears_backward,
    "open_conv": of_open_conv,
    "open_conv_backward": of_open_conv_backward,
}
