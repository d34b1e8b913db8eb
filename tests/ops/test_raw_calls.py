"""torch.ops.maskcl.<op> past the public functions: what does not fit is named, nothing is read
beside it.

The checks are those of csrc/checks.h, which the CUDA kernels share.
"""

from __future__ import annotations

import pytest
import torch

from maskcl import backends, ops

raw = torch.ops.maskcl
pytestmark = pytest.mark.skipif(
    backends.BACKENDS["cpp"].absent is not None, reason="the C++ library is not built"
)


def rand(*shape: int) -> torch.Tensor:
    return torch.rand(*shape)


def bits(*shape: int) -> torch.Tensor:
    return torch.ones(*shape, dtype=torch.int64)


X, U, W, R = rand(3, 5), rand(5), rand(4, 5), rand(4, 5)
SELECT = (None, "binary", 0.1, False, 1.0)
TOPK = ("topk", 0.0, False, 1.0)
WORDS = torch.zeros(1, dtype=torch.int32)
WHOLE = torch.ones(4, 5, dtype=torch.int64)
WINDOW = [1, 1], [0, 0], [1, 1]
IMAGES, FILTERS = rand(2, 5, 6, 6), rand(16, 5, 3, 3)
RELU = ("relu", 0.0)
F64, BF16 = torch.float64, torch.bfloat16

SIDES, PACE = ([bits(4, 1)], [bits(5, 1)], [1], True), ([0.1], [0.1], [1.0])
NOTHING = None, None, None, None, 0.0


def sgd(grads=None, momenta=None, sides=SIDES, pace=PACE, scalars=NOTHING):
    lists = [W.clone()], grads or [W], momenta or []
    raw.sgd_update_(*lists, *sides, *pace, 0.9, 0.0, False, False, False, *scalars)


def adam(first=None, second=None, step=None):
    lists = (
        [W.clone()],
        [W],
        [W.clone() if first is None else first],
        [W.clone() if second is None else second],
        [rand(1) if step is None else step],
    )
    raw.adam_update_(*lists, *SIDES, *PACE, 0.9, 0.99, 1e-8, True, False, *NOTHING)


WRONG = {
    "gate: scale of no elements": (
        lambda: raw.hat_gate(U, rand(0)),
        "hat_gate: scale has 0 elements, wanted 1",
    ),
    "gate: fewer gradients": (
        lambda: raw.hat_gate_backward(rand(4), U, U, rand(1), 0.0, 50.0, False),
        "hat_gate_backward: grad has 4 units, wanted 5",
    ),
    "gate: fewer masks": (
        lambda: raw.hat_gate_backward(U, U, rand(4), rand(1), 0.0, 50.0, False),
        "hat_gate_backward: mask has 4 units, wanted 5",
    ),
    "sparsity: fewer used": (
        lambda: raw.hat_sparsity(U, rand(4)),
        "hat_sparsity: used has 4 units, wanted 5",
    ),
    "sparsity backward: fewer used": (
        lambda: raw.hat_sparsity_backward(rand(()), U, rand(4)),
        "hat_sparsity_backward: used has 4 units",
    ),
    "activation: no such channel": (
        lambda: raw.masked_activation(X, U, None, *RELU, 2),
        "masked_activation: channel_dim is 2, x has 2 dimensions",
    ),
    "activation: no such channel, counted from the end": (
        lambda: raw.masked_activation(X, U, None, *RELU, -3),
        "channel_dim is -3",
    ),
    "activation of a 0-d tensor": (
        lambda: raw.masked_activation(rand(()), U, None, *RELU, 0),
        "channel_dim is 0, x has 0 dimensions",
    ),
    "activation in place: no such channel": (
        lambda: raw.masked_activation_(X.clone(), U, None, *RELU, 7),
        "masked_activation_: channel_dim is 7",
    ),
    "activation: another mask": (
        lambda: raw.masked_activation(X, rand(4), None, *RELU, 1),
        "mask has 4 elements, wanted 5 channels",
    ),
    "activation backward: no such channel": (
        lambda: raw.masked_activation_backward(X, X, U, None, *RELU, 5, True, True, True),
        "masked_activation_backward: channel_dim is 5",
    ),
    "activation backward: another grad": (
        lambda: raw.masked_activation_backward(X[:2], X, U, None, *RELU, 1, True, True, True),
        r"grad has shape \[2, 5\], wanted saved's, \[3, 5\]",
    ),
    "activation backward: gelu has no slope from its output": (
        lambda: raw.masked_activation_backward(X, X, U, None, "gelu", 0.0, 1, True, True, True),
        "from_output is true, but the activation has no derivative",
    ),
    "linear: another weight": (
        lambda: raw.open_linear(X, rand(4, 6), None, False),
        r"open_linear: weight has shape \[4, 6\], wanted \[4, 5\]",
    ),
    "linear: a vector": (
        lambda: raw.open_linear(U, W, None, False),
        "open_linear: x has shape",
    ),
    "linear: another bias": (
        lambda: raw.open_linear(rand(40, 5), W, rand(3), False),
        r"open_linear: bias has shape \[3\], wanted \[4\]",
    ),
    "linear: another dtype": (
        lambda: raw.open_linear(X, W.double(), None, False),
        "open_linear: weight is Double, wanted Float",
    ),
    "linear backward: another grad": (
        lambda: raw.open_linear_backward(rand(40, 3), rand(40, 5), W, True, True),
        r"open_linear_backward: grad has shape \[40, 3\], wanted \[40, 4\]",
    ),
    "conv: another weight": (
        lambda: raw.open_conv(IMAGES, rand(16, 4, 3, 3), None, *WINDOW),
        "open_conv: weight has shape",
    ),
    "conv: another bias": (
        lambda: raw.open_conv(IMAGES, FILTERS, rand(15), *WINDOW),
        r"open_conv: bias has shape \[15\]",
    ),
    "conv: stride of one number": (
        lambda: raw.open_conv(IMAGES, FILTERS, None, [1], [0, 0], [1, 1]),
        r"open_conv: stride is \[1\], wanted two numbers, 1 or more",
    ),
    "conv: stride 0": (
        lambda: raw.open_conv(IMAGES, FILTERS, None, [0, 1], [0, 0], [1, 1]),
        "open_conv: stride is",
    ),
    "conv: images smaller than the window": (
        lambda: raw.open_conv(IMAGES, FILTERS, None, [1, 1], [0, 0], [3, 3]),
        "smaller than the window",
    ),
    "conv backward: another grad": (
        lambda: raw.open_conv_backward(
            rand(2, 16, 3, 4), IMAGES, FILTERS, *WINDOW, True, True, True
        ),
        r"open_conv_backward: grad has shape \[2, 16, 3, 4\], wanted \[2, 16, 4, 4\]",
    ),
    "clamp: fewer sides": (
        lambda: raw.clamp_grads_([W.clone()], [], [bits(5, 1)], [1], True, "hat", [0.0], 0),
        "clamp_grads_: out_tasks has 0 entries, wanted 1",
    ),
    "clamp: fewer units": (
        lambda: raw.clamp_grads_(
            [W.clone()], [bits(3, 1)], [bits(5, 1)], [1], True, "hat", [0.0], 0
        ),
        r"clamp_grads_: out_tasks\[0\] has 3 units, wanted 4",
    ),
    "clamp: words of different widths": (
        lambda: raw.clamp_grads_(
            [W.clone()], [bits(4, 2)], [bits(5, 1)], [1], True, "hat", [0.0], 0
        ),
        r"out_tasks\[0\] has shape \[4, 2\] and in_tasks\[0\] \[5, 1\]",
    ),
    "clamp: task words of another dtype": (
        lambda: raw.clamp_grads_(
            [W.clone()], [bits(4, 1)], [bits(5, 1).int()], [1], True, "hat", [0.0], 0
        ),
        r"in_tasks\[0\] is Int, wanted Long",
    ),
    "clamp: groups that do not divide": (
        lambda: raw.clamp_grads_(
            [W.clone()], [bits(4, 1)], [bits(15, 1)], [3], True, "hat", [0.0], 0
        ),
        r"groups\[0\] is 3, wanted a divisor of 4 rows",
    ),
    "clamp: no groups": (
        lambda: raw.clamp_grads_([W.clone()], [bits(4, 1)], [bits(5, 1)], [0], True, "hat", [], 0),
        r"groups\[0\] is 0",
    ),
    "clamp: a 0-d gradient": (
        lambda: raw.clamp_grads_([rand(())], [bits(1, 1)], [bits(1, 1)], [1], True, "hat", [], 0),
        "tensor 0 is 0-d",
    ),
    "clamp: fewer values": (
        lambda: raw.clamp_grads_(
            [W.clone()], [bits(4, 1)], [bits(5, 1)], [1], True, "const", [], 0
        ),
        "clamp_grads_: values has 0 entries, wanted 1",
    ),
    "restore: another shape": (
        lambda: raw.restore_protected_([W.clone()], [X], [bits(4, 1)], [bits(5, 1)], [1], True),
        r"restore_protected_: saved\[0\] has shape \[3, 5\]",
    ),
    "restore: another dtype": (
        lambda: raw.restore_protected_(
            [W.clone()], [W.bfloat16()], [bits(4, 1)], [bits(5, 1)], [1], True
        ),
        r"saved\[0\] is BFloat16, wanted Float",
    ),
    "soft clamp: fewer units": (
        lambda: raw.clamp_grads_soft_([W.clone()], [rand(3)], [U], [1], "min"),
        r"clamp_grads_soft_: out_masks\[0\] has 3 units, wanted 4",
    ),
    "soft clamp: two dimensions": (
        lambda: raw.clamp_grads_soft_([W.clone()], [rand(4, 2)], [U], [1], "min"),
        r"clamp_grads_soft_: out_masks\[0\] has shape \[4, 2\], wanted 1 dimensions",
    ),
    "sgd: another gradient": (
        lambda: sgd(grads=[X]),
        r"sgd_update_: grads\[0\] has shape \[3, 5\]",
    ),
    "sgd: a gradient of another dtype": (
        lambda: sgd(grads=[W.bfloat16()]),
        r"sgd_update_: grads\[0\] is BFloat16, wanted Float",
    ),
    "sgd: fewer gradients": (
        lambda: sgd(grads=[W, W]),
        "sgd_update_: grads has 2 entries, wanted 1",
    ),
    "sgd: other momenta": (
        lambda: sgd(momenta=[X]),
        r"sgd_update_: momenta\[0\] has shape",
    ),
    "sgd: momenta of another dtype": (
        lambda: sgd(momenta=[W.double()]),
        r"sgd_update_: momenta\[0\] is Double, wanted Float",
    ),
    "sgd: fewer units": (
        lambda: sgd(sides=([bits(3, 1)], [bits(5, 1)], [1], True)),
        r"sgd_update_: out_tasks\[0\] has 3 units, wanted 4",
    ),
    "sgd: sides of one end alone": (
        lambda: sgd(sides=([], [bits(5, 1)], [1], True)),
        "sgd_update_: out_tasks has 0 entries, wanted 1",
    ),
    "sgd: sides of the other end alone": (
        lambda: sgd(sides=([bits(4, 1)], [], [1], True)),
        "sgd_update_: in_tasks has 0 entries, wanted 1",
    ),
    "sgd: no learning rates": (
        lambda: sgd(pace=([], [0.1], [1.0])),
        "sgd_update_: lr has 0 entries, wanted 1",
    ),
    "sgd: several scales": (
        lambda: sgd(scalars=(None, rand(2), None, None, 0.0)),
        "sgd_update_: scale has 2 elements, wanted 1",
    ),
    "adam: another moment": (
        lambda: adam(first=X),
        r"adam_update_: exp_avgs\[0\] has shape",
    ),
    "adam: moments of two dtypes": (
        lambda: raw.adam_update_(
            *([t] for t in (W.bfloat16(), W.bfloat16(), W.clone(), W.bfloat16(), rand(1))),
            *SIDES,
            *PACE,
            *(0.9, 0.99, 1e-8, True, False),
            *NOTHING,
        ),
        r"adam_update_: exp_avg_sqs\[0\] is BFloat16, wanted Float",
    ),
    "adam: a count of whole numbers": (
        lambda: adam(step=bits(1)),
        r"adam_update_: steps\[0\] is Long, wanted Float or Double",
    ),
    "norm: whole numbers": (
        lambda: raw.unprotected_norm([bits(4, 5)], *SIDES, None),
        "unprotected_norm: found a dtype that is not floating",
    ),
    "masked weight: other scores": (
        lambda: raw.masked_weight(W, X, *SELECT),
        r"masked_weight: scores has shape \[3, 5\], wanted weight's, \[4, 5\]",
    ),
    "masked weight: topk without its bound": (
        lambda: raw.masked_weight(W, R, None, *TOPK),
        "masked_weight: levels 'topk' needs kth",
    ),
    "masked weight: several bounds": (
        lambda: raw.masked_weight(W, R, rand(2), *TOPK),
        "masked_weight: kth has 2 elements, wanted 1",
    ),
    "masked weight backward: other scores": (
        lambda: raw.masked_weight_backward(W, W, X, *SELECT, True, True),
        "masked_weight_backward: scores has shape",
    ),
    "masked weight backward: another weight": (
        lambda: raw.masked_weight_backward(W, X, R, *SELECT, True, True),
        "masked_weight_backward: weight has shape",
    ),
    "piggyback: another weight": (
        lambda: raw.piggyback_linear(X, rand(4, 6), rand(4, 6), None, *SELECT),
        "piggyback_linear: weight has shape",
    ),
    "piggyback: other scores": (
        lambda: raw.piggyback_linear(X, W, X, None, *SELECT),
        "piggyback_linear: scores has shape",
    ),
    "piggyback: another bias": (
        lambda: raw.piggyback_linear(X, W, R, rand(3), *SELECT),
        "piggyback_linear: bias has shape",
    ),
    "piggyback backward: another grad": (
        lambda: raw.piggyback_linear_backward(rand(3, 3), X, W, R, *SELECT, True, True, True),
        "piggyback_linear_backward: grad has shape",
    ),
    "unpack: fewer words": (
        lambda: raw.unpack_mask(WORDS, [33], torch.float32),
        r"unpack_mask: words has shape \[1\], wanted \[2\]",
    ),
    "unpack: words of another dtype": (
        lambda: raw.unpack_mask(WORDS.long(), [5], torch.float32),
        "unpack_mask: words is Long, wanted Int",
    ),
    "unpack: ternary to unsigned": (
        lambda: raw.unpack_mask(WORDS.expand(2, 1), [5], torch.uint16),
        "unpack_mask: dtype is UInt16, wanted a signed one",
    ),
    "pack: ternary of complex": (
        lambda: raw.pack_mask(torch.ones(3, dtype=torch.complex64), True),
        "pack_mask: mask is ComplexFloat, wanted a signed dtype",
    ),
    "combine: fewer words": (
        lambda: raw.combine_words(torch.zeros(4, dtype=torch.int32), WORDS, "and"),
        r"combine_words: b has shape \[1\], wanted a's, \[4\]",
    ),
    "combine: words of another dtype": (
        lambda: raw.combine_words(WORDS, WORDS.long(), "and"),
        "combine_words: b is Long, wanted Int",
    ),
    "popcount of another dtype": (
        lambda: raw.popcount_words(WORDS.long()),
        "popcount_words: words is Long, wanted Int",
    ),
    "popcount of a 0-d tensor": (
        lambda: raw.popcount_words(WORDS[0]),
        "popcount_words: words is 0-d",
    ),
    "packed weight: fewer words": (
        lambda: raw.packed_weight(rand(33), WORDS),
        "packed_weight: words has shape",
    ),
    "packed linear: fewer words": (
        lambda: raw.packed_linear(X, rand(40, 5), WORDS, None),
        "packed_linear: words has shape",
    ),
    "packed linear: another weight": (
        lambda: raw.packed_linear(X, rand(4, 6), WORDS, None),
        "packed_linear: weight has shape",
    ),
    "packed linear: another bias": (
        lambda: raw.packed_linear(X, W, WORDS, rand(3)),
        "packed_linear: bias has shape",
    ),
    "packed linear: a bias of another dtype": (
        lambda: raw.packed_linear(X, W, WORDS, rand(4).double()),
        "packed_linear: bias is Double, wanted Float",
    ),
    "packed embedding: index of another dtype": (
        lambda: raw.packed_embedding(torch.zeros(2, dtype=torch.int32), W, WORDS),
        "packed_embedding: index is Int, wanted Long",
    ),
    "packed embedding: fewer words": (
        lambda: raw.packed_embedding(bits(2), rand(9, 5), WORDS),
        "packed_embedding: words has shape",
    ),
    "packed embedding: a vector": (
        lambda: raw.packed_embedding(bits(2), U, WORDS),
        "packed_embedding: weight has shape",
    ),
    "accumulate: another gradient": (
        lambda: raw.mas_accumulate_([W.clone()], [X], 1.0, 1.0, False),
        r"mas_accumulate_: grads\[0\] has shape \[3, 5\], wanted \[4, 5\]",
    ),
    "accumulate: another dtype": (
        lambda: raw.mas_accumulate_([W.clone()], [W.double()], 1.0, 1.0, False),
        r"mas_accumulate_: importances\[0\] is Float, wanted Double",
    ),
    "penalty: another anchor": (
        lambda: raw.mas_penalty([W], [X], [W]),
        r"mas_penalty: anchors\[0\] has shape",
    ),
    "penalty: an anchor of another dtype": (
        lambda: raw.mas_penalty([W], [W.bfloat16()], [W]),
        r"mas_penalty: anchors\[0\] is BFloat16, wanted Float",
    ),
    "penalty: another importance": (
        lambda: raw.mas_penalty([W], [W], [X]),
        r"mas_penalty: importances\[0\] has shape",
    ),
    "penalty: another importance, turned": (
        lambda: raw.mas_penalty([W.t()], [W.t()], [W]),
        r"mas_penalty: importances\[0\] has shape",
    ),
    "penalty: integers": (
        lambda: raw.mas_penalty([WHOLE], [WHOLE], [W]),
        "mas_penalty: found a dtype that is not floating",
    ),
    "penalty: integers, turned": (
        lambda: raw.mas_penalty([WHOLE.t()], [WHOLE.t()], [W.t()]),
        "mas_penalty: found a dtype that is not floating",
    ),
    "penalty gradients: a gradient of another dtype": (
        lambda: raw.mas_penalty_grads_([W.double()], [W], [W], [W], None, 1.0, True),
        r"mas_penalty_grads_: grads\[0\] is Double, wanted Float",
    ),
    "penalty gradients: another gradient": (
        lambda: raw.mas_penalty_grads_([X.clone()], [W], [W], [W], None, 1.0, True),
        r"mas_penalty_grads_: grads\[0\] has shape",
    ),
    "penalty gradients: several scales": (
        lambda: raw.mas_penalty_grads_([W.clone()], [W], [W], [W], rand(2), 1.0, True),
        "mas_penalty_grads_: scale has 2 elements, wanted 1",
    ),
    "linear importance: another importance": (
        lambda: raw.linear_importance_(rand(4, 6), X, rand(3, 4), 1.0, False),
        r"linear_importance_: importance has shape \[4, 6\], wanted \[4, 5\]",
    ),
    "linear importance: fewer samples": (
        lambda: raw.linear_importance_(W.clone(), X, rand(2, 4), 1.0, False),
        r"linear_importance_: grad_out has shape \[2, 4\], wanted \[3, 4\]",
    ),
    "linear importance: a vector": (
        lambda: raw.linear_importance_(W.clone(), U, rand(4), 1.0, False),
        "linear_importance_: x has shape",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name):
    call, says = WRONG[name]
    with pytest.raises(RuntimeError, match=says):
        call()


def test_a_channel_may_be_counted_from_the_end():
    x, g = rand(2, 3, 4), rand(2, 3, 4)
    for channel in (-3, -2, -1):
        m, at = rand(x.shape[channel]), channel + 3
        found = raw.masked_activation(x, m, m, *RELU, channel)
        assert torch.equal(found, raw.masked_activation(x, m, m, *RELU, at))
        written = x.clone()
        raw.masked_activation_(written, m, m, *RELU, channel)
        assert torch.equal(written, found)
        both = [
            raw.masked_activation_backward(g, found, m, m, *RELU, c, True, True, True)
            for c in (channel, at)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_gradient_of_another_dtype_is_converted(dtype):
    g, saved = rand(3, 5).to(dtype), raw.masked_activation(X, U, None, *RELU, 1)
    rest = (saved, U, None, *RELU, 1, True, True, True)
    found = raw.masked_activation_backward(g, *rest)
    wanted = raw.masked_activation_backward(g.float(), *rest)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))
    gate = U.double(), torch.tensor(2.0), 400.0, 50.0, False  # a mask of another dtype, too
    found = raw.hat_gate_backward(g[0], U, gate[0], *gate[1:])
    wanted = raw.hat_gate_backward(g[0].float(), U, U, *gate[1:])
    assert torch.equal(found, wanted)
    g = rand(3, 4).to(dtype)
    found = raw.piggyback_linear_backward(g, X, W, R, *SELECT, True, True, True)
    wanted = raw.piggyback_linear_backward(g.float(), X, W, R, *SELECT, True, True, True)
    assert all(torch.equal(f, w) for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("how", ["min", "max", "mean"])
def test_a_side_of_one_unit_stands_for_all(backend, device, how):
    """In the low-level op, as its one row of task bits does."""
    run = backends.select("clamp_grads_soft_", torch.zeros(1, device=device))
    one, out, ins = (torch.rand(n, device=device) for n in (1, 4, 6))
    none = out[:0]
    for sides, full in (
        ((one, ins), (one.expand(4), ins)),
        ((out, one), (out, one.expand(6))),
        ((one, one), (one.expand(4), one.expand(6))),
        ((none, one), (none, one.expand(6))),
        ((one, none), (one.expand(4), none)),
    ):
        grads = [torch.ones(4, 3, 2, 2, device=device) for _ in range(2)]
        for grad, (a, b) in zip(grads, (sides, full), strict=True):
            run([grad], [a.contiguous()], [b.contiguous()], [2], how)
        assert torch.equal(*grads) and (grads[0] < 1).all()


def test_words_are_combined_in_the_order_of_the_first(backend, device):
    a, b = (torch.randint(-9, 9, (5, 3), device=device).int() for _ in range(2))
    found = ops.xor_words(a.t(), b.t())
    assert torch.equal(found, (a ^ b).t())
