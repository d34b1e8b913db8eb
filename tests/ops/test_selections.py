"""The op reference's rows that select, to the bit, on values that break what only looks so.

NaN, infinities, zeros of both signs, ties, subnormal numbers, scores at the threshold and beside
it, bit 63 of task words, words of all bits. Where a row says ``w * mask`` the op selects:
what the mask leaves out is 0 whatever it was.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from maskcl import backends, ops
from tests.ops.conftest import with_reference

backend = with_reference()
TABLE = (Path(__file__).resolve().parents[2] / "docs" / "ops" / "index.md").read_text()
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPE = (9, 13)  # 117: neither whole words nor whole vectors
T, K = 0.1, 7

# The row, and what it is of the arguments below: a selection written as one.
ROWS = {
    "clamp_grads_([g], [out], [inp])": "torch.where((out[:, None] & inp) != 0, 0, g)",
    'clamp_grads_([g], [out], [inp], protection="min")': (
        "torch.where((out[:, None] != 0) & (inp != 0), 0, g)"
    ),
    "restore_protected_([w], [saved], [out], [inp])": (
        "torch.where((out[:, None] & inp) != 0, saved, w)"
    ),
    "protected_fraction(out, inp)": "((out[:, None] & inp) != 0).double().mean()",
    "binarize(r, t)": "(r > t).to(r.dtype)",
    "ternarize(r, t, symmetric=True)": "(r > t).to(r.dtype) - (r < -t).to(r.dtype)",
    "topk_mask(r, density=0.5)": "(r.abs() >= ordered(r.abs())[57]).to(r.dtype)",  # round(58.5) - 1
    "kth_largest(r, 7)": "ordered(r)[6].to(wide)",
    "piggyback_weight(w, r, t)": "torch.where(r > t, w, 0)",
    "pack_mask(q[0])": "word(q[0])",
    "unpack_mask(pack_mask(q), q.shape)": "q.float()",
    "pack_scores(r, t)": "pack_mask(r > t)",
    "packed_weight(w, pack_mask(q))": "torch.where(q, w, 0)",
    "packed_embedding(i, w, pack_mask(q))": "F.embedding(i, torch.where(q, w, 0))",
    "popcount(pack_mask(q))": "q.sum()",
    "and_words(u, v)": "u & v",
    "or_words(u, v)": "u | v",
    "xor_words(u, v)": "u ^ v",
    "andnot_words(u, v)": "u & ~v",
}
# Sums and formulas: within rounding, by the tests of each op.
OTHERS = {
    "hat_gate", "hat_sparsity", "hat_scale", "masked_activation", "masked_linear", "masked_conv",
    "open_conv", "clamp_grads_soft_", "soft_mask", "piggyback_linear", "packed_linear",
    "linear_importance", "linear_importance_", "mas_accumulate_", "mas_penalty",
    "mas_penalty_grads_", "sgd_update_", "adam_update_", "unprotected_norm",
}  # fmt: skip


def hard_values(dtype: torch.dtype) -> torch.Tensor:
    info = torch.finfo(dtype)
    t = torch.tensor([T], dtype=torch.float64).to(dtype)
    up, down = (torch.full_like(t, s * torch.inf) for s in (1, -1))
    near = torch.cat([t, torch.nextafter(t, up), torch.nextafter(t, down)])
    small = torch.tensor([info.tiny, info.smallest_normal / 2, info.tiny * info.eps], dtype=dtype)
    rest = torch.tensor([0.0, 1.0, 1.0, info.max, torch.inf], dtype=dtype)
    positive = torch.cat([near, small, rest])
    return torch.cat([positive, -positive, torch.tensor([torch.nan], dtype=dtype)])


def drawn(values: torch.Tensor, *shape: int) -> torch.Tensor:
    return values[torch.randint(len(values), shape)]


def ordered(x: torch.Tensor) -> torch.Tensor:
    """From the largest down, NaN first, as sort has it."""
    return x.flatten().sort(descending=True).values


def word(row: torch.Tensor) -> torch.Tensor:
    return (row << torch.arange(row.numel(), device=row.device)).sum().int().view(1)


def arguments(dtype: torch.dtype, device: str) -> dict:
    values = hard_values(dtype)
    tasks = torch.tensor([0, 0, -(2**63), 1, 2**62, -1, -(2**63) + 1, 2**31, 2**32])
    words = torch.tensor([0, -1, -(2**31), 2**31 - 1, 1, -2, 0x55555555]).int()
    tensors = {
        "g": drawn(values, *SHAPE), "w": drawn(values, *SHAPE), "saved": drawn(values, *SHAPE),
        "r": drawn(values, *SHAPE), "q": torch.rand(SHAPE) > 0.5,
        "out": drawn(tasks, SHAPE[0]), "inp": drawn(tasks, SHAPE[1]),
        "i": torch.randint(SHAPE[0], (5,)), "u": drawn(words, 40), "v": drawn(words, 40),
    }  # fmt: skip
    helpers = {"torch": torch, "F": F, "t": T, "ordered": ordered, "word": word}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return helpers | {"wide": wide} | {name: x.to(device) for name, x in tensors.items()}


def assert_same_bits(found: torch.Tensor, wanted: torch.Tensor, of_zeros: bool) -> None:
    """NaN equals NaN; zeros have one sign, unless it is not said which (of a sorted list)."""
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
    if found.is_floating_point() and of_zeros:
        number = ~wanted.isnan()
        assert torch.equal(found.signbit()[number], wanted.signbit()[number])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", ROWS)
def test_each_row_is_its_selection(backend, device, call, dtype):
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    functions = {name: getattr(ops, name) for name in ops.__all__}
    for seed in range(8):
        torch.manual_seed(seed)
        names = arguments(dtype, device)
        wanted = eval(ROWS[call], {**functions, **names})
        found = eval(call, {**functions, **names})
        if found is None:
            found = names[re.match(r"\w+\(\[?(\w+)", call)[1]]
        if isinstance(found, float):
            found = torch.tensor(found, dtype=torch.float64)
        assert_same_bits(found, wanted.to(found.device), "kth_largest" not in call)


def test_every_row_is_here_or_a_sum():
    rows = re.findall(r"^\| `(\w+\(.*?\))` \|", TABLE, flags=re.MULTILINE)
    sums = {row for row in rows if row.partition("(")[0] in OTHERS}
    assert set(ROWS) == set(rows) - sums
    assert len(sums) == 19


@pytest.mark.parametrize("ternary", [False, True], ids=["binary", "ternary"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_with_masked_weights_select_as_well(backend, device, dtype, ternary):
    """Weights that the mask leaves out may be anything; those that it keeps are finite here."""
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    mask = torch.randint(-1 if ternary else 0, 2, SHAPE).float()
    kept = torch.randint(-8, 9, SHAPE).to(dtype)
    broken = torch.where(mask == 0, drawn(hard_values(dtype), *SHAPE), kept).to(device)
    wanted = (kept * mask.to(dtype)).to(device)
    scores, words = mask.to(device), ops.pack_mask(mask.to(device), ternary=ternary)
    levels = "ternary" if ternary else "binary"
    for rows in (1, 3, 40, 300):
        x = torch.randint(-4, 5, (rows, SHAPE[1]), device=device).to(dtype).requires_grad_()
        y = F.linear(x.detach().double(), wanted.double())
        for found in (
            ops.piggyback_linear(x, broken, scores, 0.5, levels=levels),
            ops.packed_linear(x, broken, words),
        ):
            assert torch.equal(found.double(), y.to(dtype).double())
            (dx,) = torch.autograd.grad(found.sum(), x)
            right = wanted.double().sum(0).expand(rows, -1)
            assert torch.equal(dx.double(), right.to(dtype).double())


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.complex32], ids=str)
def test_a_complex_mask_has_a_bit_for_either_part(backend, device, dtype):
    mask = torch.tensor([1j, 0, 1, -0.0, complex(-0.0, -1e-7), complex(0, torch.nan)])
    assert ops.pack_mask(mask.to(device, dtype)).tolist() == [0b110101]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_soft_masks_of_nan_stay_nan(backend, device, dtype):
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    for how in ("min", "max", "mean"):
        sides = [torch.tensor(s, device=device) for s in ([torch.nan, 0.5], [0.25, torch.nan, 1])]
        grad = torch.ones(2, 3, device=device, dtype=dtype)
        ops.clamp_grads_soft_([grad], sides[:1], sides[1:], aggregation=how)
        assert grad.isnan().tolist() == [[True] * 3, [False, True, False]]


ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "leaky_relu": F.leaky_relu,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations_and_gates_of_what_is_not_finite(backend, device, dtype, activation):
    if dtype not in backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")
    values = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 80.0, -80.0] * 9
    x = torch.tensor(values, device=device, dtype=dtype)[:, None]
    y = ops.masked_activation(x, torch.ones(1, device=device), activation=activation)
    wanted = ACTIVATIONS[activation](x.double())
    if activation in ("gelu", "gelu_tanh", "silu"):  # -inf times a factor that is 0
        bad = torch.isinf(x) if backend == "reference" else x == -torch.inf  # and torch's own erf
        x, y, wanted = (t[~bad] for t in (x, y, wanted))
    torch.testing.assert_close(y.double(), wanted, rtol=1e-2, atol=1e-6, equal_nan=True)
    for floor in (0.0, 1e-20):
        mask = ops.hat_gate(x.flatten(), 2.0, floor=floor)
        right = torch.sigmoid(2 * x.flatten().double())
        torch.testing.assert_close(mask.double(), right, rtol=1e-5, atol=1e-20, equal_nan=True)
