"""Every low-level op on a few odd shapes against the reference, for compute-sanitizer to watch.

`compute-sanitizer python -m benchmarks.sanitize [BACKEND ...]`; without a GPU it runs on the CPU.
"""

from __future__ import annotations

import itertools
import sys

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from maskcl import backends, reference
from maskcl.reference.grad_clamp import AGGREGATIONS, RULES
from maskcl.reference.masked_forward import ACTIVATIONS, FROM_OUTPUT
from maskcl.reference.weight_mask import LEVELS
from maskcl.schemas import STEM_OF

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Ragged, and with rows and planes of whole vectors, which kernels of their own take.
WEIGHTS = [((33, 65), 1), ((6, 4, 3, 3), 1), ((4, 1, 3, 3), 4), ((129,), 1), ((0, 4), 1)]
WEIGHTS += [((9, 40), 1)]
ACTIVATED = [
    (1, 1),
    (37, 129),
    (2, 5, 3, 7),
    (2, 5, 21),
    (0, 3),
    (37, 48),
    (2, 5, 4, 6),
    (2, 5, 24),
]
PRODUCTS = [(1, 72, 9), (2, 13, 7), (5, 13, 7), (8, 264, 40), (16, 520, 33), (40, 64, 24)]
PRODUCTS += [(3, 0, 4)]


def filled(shape, dtype):
    x = torch.randn(shape).to(dtype)  # either dtype has a layout of its own for images
    images = x.dim() == 4 and dtype == torch.bfloat16
    return x.contiguous(memory_format=torch.channels_last) if images else x


def gate(dtype):
    for units in (1, 257, 4099):
        e, g, m, s = filled(units, dtype), torch.randn(units), torch.rand(units), torch.tensor(20.0)
        yield "hat_gate", e, s
        yield "hat_gates", e, s, m, 0.1, 0.75
        for maximum, recipe in ((0.0, False), (400.0, False), (400.0, True)):
            yield "hat_gate_backward", g, e, m, s, maximum, 50.0, recipe
        for used in (m > 0.5, m.round(), torch.ones(units)):
            yield "hat_sparsity", m, used
            yield "hat_sparsity_backward", torch.tensor(0.5), m, used
        few, many = [units - units // 2, units // 2], [0, 1, 2] * (units // 60)
        for sizes in ([units], few, [*many, units - sum(many)]):
            # In every second part no gradient arrived.
            parts = [p[: p.numel() * (i % 2 == 0)] for i, p in enumerate(g.split(sizes))]
            for maximum, recipe in ((0.0, False), (400.0, False), (400.0, True)):
                for term in (torch.tensor(0.5), torch.empty(0)):
                    rest = 0.75, maximum, 50.0, recipe
                    yield "hat_gates_backward", parts, term, e, s, m, sizes, *rest


def masked_forward(dtype):
    for shape in ACTIVATED:
        x, g, m = filled(shape, dtype), filled(shape, dtype), torch.rand(shape[1]) + 0.1
        for name in ACTIVATIONS:
            for bias in (None, torch.randn(shape[1])):
                rest = (m, bias, name, 0.1, 1)
                yield "masked_activation", x, *rest
                yield "masked_activation_", x, *rest
                yield "masked_activation_backward", g, x, *rest, False, True, True
            if name in FROM_OUTPUT:
                y = x.abs() * 0.1
                yield "masked_activation_backward", g, y, m, None, *rest[2:], True, True, True


def open_products(dtype):
    for batch, inputs, outputs in PRODUCTS:
        shut = (torch.arange(max(inputs, outputs)) % 2).to(dtype)
        x, g = filled((batch, inputs), dtype), filled((batch, outputs), dtype)
        x, g, w = x * shut[:inputs], g * shut[:outputs], filled((outputs, inputs), dtype)
        for bias in (None, filled(outputs, dtype)):
            for ordinary in (True, False):
                yield "open_linear", x, w, bias, ordinary
        yield "open_linear_backward", g, x, w, True, True
    for stride, padding in ((1, 0), (2, 1)):
        window = [stride] * 2, [padding] * 2, [1, 1]
        x = (filled((3, 18, 6, 5), dtype) * (torch.arange(18) % 2).view(-1, 1, 1)).to(dtype)
        x, w = x.contiguous(memory_format=torch.channels_last), filled((17, 18, 3, 2), dtype)
        yield "open_conv", x, w, filled(17, dtype), *window
        g = filled(torch.conv2d(x, w, None, stride, padding).shape, dtype)
        yield "open_conv_backward", g, x, w, *window, True, True, True


def masked_products(dtype):
    for batch, inputs, outputs in PRODUCTS:
        widths = inputs, outputs, 2 * outputs + 3, 16
        x, g = filled((batch, inputs), dtype), filled((batch, widths[-1]), dtype)
        pairs = list(itertools.pairwise(widths))
        weights = [filled((o, i), dtype) / max(i, 1) ** 0.5 for i, o in pairs]
        masks = [(torch.rand(o) - 0.2).clamp_min(0) for o in widths[1:]]
        ys = [
            (filled((batch, o), dtype).abs() * m * 0.3).to(dtype)
            for o, m in zip(widths[1:], masks, strict=True)
        ]
        biases = [filled(outputs, dtype), torch.empty(0, dtype=dtype), filled(widths[-1], dtype)]
        for name in FROM_OUTPUT:
            yield "masked_linears", x, weights, biases, masks, name, 0.1
            yield "masked_linears", x, weights, biases, masks[:-1], name, 0.1
            for want_x, wanted in ((True, [7, 7, 7]), (False, [1, 6, 0])):
                how = name, 0.1, want_x, wanted
                yield "masked_linears_backward", g, x, ys, weights, masks, *how
            yield (
                "masked_linears_backward",
                g,
                x,
                ys,
                weights,
                masks[:-1],
                name,
                0.1,
                True,
                [7, 7, 3],
            )
            for sizes, wanted in ((widths[1:], [7, 7, 7]), (widths[1:-1], [7, 7, 3])):
                units = filled(sum(sizes), dtype), torch.tensor(7.0), torch.rand(sum(sizes))
                gates, how = (*units, list(sizes), 0.75), (400.0, 50.0, False)
                yield "gated_linears", x, weights, biases, *gates, 1e-9, name, 0.1
                mask = torch.cat(masks[: len(sizes)])
                back = x, ys, weights, mask, *gates, *how, name, 0.1, True, wanted
                yield "gated_linears_backward", g, torch.tensor(2.0), *back


def grad_clamp(dtype):
    shapes, groups = map(list, zip(*WEIGHTS, strict=True))
    grads, saved = ([filled(s, dtype) for s in shapes] for _ in range(2))
    inputs = [s[1] * g if len(s) > 1 else 0 for s, g in WEIGHTS]
    for words in (1, 2):
        out = [torch.randint(0, 8, (s[0], words)) for s in shapes]
        ins = [torch.randint(0, 8, (n, words)) if n else torch.full((1, words), -1) for n in inputs]
        for exact in (True, False):
            for rule in RULES:
                yield "clamp_grads_", grads, out, ins, groups, exact, rule, [0.5] * len(out), 17
            yield "restore_protected_", grads, saved, out, ins, groups, exact
    for rule in AGGREGATIONS:
        sides = [torch.rand(s[0]) for s in shapes], [torch.rand(n) for n in inputs]
        yield "clamp_grads_soft_", grads, *sides, groups, rule


def update(dtype):
    shapes, groups = map(list, zip(*WEIGHTS, strict=True))
    params, grads, state = ([filled(s, dtype) for s in shapes] for _ in range(3))
    inputs = [s[1] * g if len(s) > 1 else 0 for s, g in WEIGHTS]
    pace = [[number] * len(shapes) for number in (0.1, 0.01, 1.5)]
    two, no, yes = torch.tensor(2.0), torch.tensor(0.0), torch.tensor(1.0)
    none = None, None, None, None, 0.0
    for words, exact in ((1, True), (2, True), (2, False), (0, True), (0, False)):
        out = [torch.randint(0, 8, (s[0], words)) for s in shapes]
        ins = [torch.randint(0, 8, (n, words)) if n else torch.full((1, words), -1) for n in inputs]
        sides = (out, ins, groups, exact) if words else ([], [], groups, exact)
        for scalars in (none, (two, two, no, two, 1.0), (two, two, yes, two, 1.0)):
            for kind in dict.fromkeys((dtype, reference.gate.compute_dtype(dtype))):
                m, v = [t.to(kind) for t in state], [t.to(kind).abs() for t in state]
                for turned in (False, True):
                    how = 0.9, 0.1 * turned, not turned, turned, turned
                    yield "sgd_update_", params, grads, m, *sides, *pace, *how, *scalars
                    steps = [torch.tensor(4, dtype=(torch.float32, torch.float64)[turned])]
                    steps = [steps[0].clone() for _ in shapes]
                    how = 0.9, 0.99, 1e-8, turned, turned
                    state_now = params, grads, m, v, steps
                    yield "adam_update_", *state_now, *sides, *pace, *how, *scalars
            plain = 0.0, 0.0, False, False, False
            yield "sgd_update_", params, grads, [], *sides, *pace, *plain, *scalars
            yield "unprotected_norm", grads, *sides, scalars[1]


def selections():
    for levels in LEVELS:
        yield torch.tensor(0.5) if levels == "topk" else None, levels, 0.1, False, 3.0


def weight_mask(dtype):
    for shape, _ in WEIGHTS:
        w, g, s = filled(shape, dtype), filled(shape, dtype), torch.randn(shape)
        for select in selections():
            yield "weight_mask", s, *select
            yield "masked_weight", w, s, *select
            yield "masked_weight_backward", g, w, s, *select, True, True
    for count, magnitude in itertools.product((1, 1000, 5001), (False, True)):
        yield "kth_largest", filled((count,), dtype), (count + 1) // 2, magnitude
    for batch, inputs, outputs in PRODUCTS:
        x, g = filled((batch, inputs), dtype), filled((batch, outputs), dtype)
        w, b = filled((outputs, inputs), dtype), filled(outputs, dtype)
        s = torch.randn(outputs, inputs)
        for select in selections():
            yield "piggyback_linear", x, w, s, b, *select
            yield "piggyback_linear_backward", g, x, w, s, *select, True, True, True


def bitmask(dtype):
    for shape, _ in WEIGHTS:
        w, m = filled(shape, dtype), torch.randn(shape).round().to(dtype)
        for select in list(selections())[:-1]:
            yield "pack_scores", m, *select[:4]
        for ternary in (False, True):
            yield "pack_mask", m, ternary
            words = reference.bitmask.pack_mask(m, ternary)
            yield "unpack_mask", words, list(shape), torch.int8 if ternary else torch.bool
            yield "unpack_mask", words, list(shape), dtype
            yield "combine_words", words, words.flip(-1), "andnot"
            yield "popcount_words", words
            yield "packed_weight", w, words
            if len(shape) == 2 and shape[0]:
                yield "packed_embedding", torch.randint(shape[0], (5,)), w, words
    for (batch, inputs, outputs), ternary in itertools.product(PRODUCTS, (False, True)):
        x, w = filled((batch, inputs), dtype), filled((outputs, inputs), dtype)
        words = reference.bitmask.pack_mask(torch.randn(outputs, inputs).round(), ternary)
        for bias in (None, filled(outputs, dtype)):
            yield "packed_linear", x, w, words, bias


def importance(dtype):
    shapes = [shape for shape, _ in WEIGHTS] + [(5003,)]
    params, anchors, grads = ([filled(s, dtype) for s in shapes] for _ in range(3))
    omegas = [torch.rand(s) for s in shapes]
    yield "mas_penalty", params, anchors, omegas
    for scale, add in ((None, True), (torch.tensor(0.5), False)):
        yield "mas_penalty_grads_", grads, params, anchors, omegas, scale, 2.0, add
    for samples, square in itertools.product((None, 1, 3, 70), (False, True)):
        given = grads if samples is None else [filled((samples, *s), dtype) for s in shapes]
        yield "mas_accumulate_", omegas, given, 0.25, 0.5, square
    for (batch, inputs, outputs), square in itertools.product(PRODUCTS, (False, True)):
        omega = torch.rand(outputs, inputs)
        for lead in ((batch,), (batch, 1), (batch, 6)):
            x, g = filled((*lead, inputs), dtype), filled((*lead, outputs), dtype)
            yield "linear_importance_", omega, x, g, 0.25, square


CASES = (gate, masked_forward, open_products, masked_products, grad_clamp, update)
CASES += (weight_mask, bitmask, importance)


def outcome(function, arguments, device):
    """What ``function`` returns and what its arguments have become, on the CPU."""
    copies = tree_map(lambda a: a.clone().to(device) if isinstance(a, Tensor) else a, arguments)
    results = function(*copies)
    return [t.cpu() for t in tree_leaves((results, copies)) if isinstance(t, Tensor)]


def compare(found, wanted, limit):
    """Raise an AssertionError where they differ: floats by more than ``limit``, all else at all."""
    for f, w in zip(found, wanted, strict=True):
        close = limit if w.is_floating_point() else 0
        torch.testing.assert_close(f, w, rtol=close, atol=close, equal_nan=True)


def main(chosen: list[str]) -> int:
    """Run all, print what differs; 1 if anything does or nothing ran."""
    torch.manual_seed(0)
    calls, wrong, limits = 0, 0, {torch.float32: 1e-4, torch.bfloat16: 2e-2}
    for dtype, cases in itertools.product(limits, CASES):
        for name, *arguments in cases(dtype):
            wanted = outcome(getattr(getattr(reference, STEM_OF[name]), name), arguments, "cpu")
            for backend in chosen or ("cpp", "cuda", "triton"):
                if backends.not_supported_reasons(backend, name, DEVICE, dtype):
                    continue
                op = getattr(torch.ops.maskcl, f"triton_{name}" if backend == "triton" else name)
                found, calls = outcome(op, arguments, DEVICE), calls + 1
                try:
                    compare(found, wanted, limits[dtype])
                except AssertionError as error:
                    wrong += 1
                    print(f"{name}, {backend}, {dtype}: {str(error).splitlines()[0]}")
    print(f"{calls} calls on {DEVICE}, {wrong} differ from the reference")
    return int(wrong > 0 or calls == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
