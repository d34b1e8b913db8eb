"""Wrong arguments are named before anything is written, in every function and backend alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from maskcl import ops
from tests.ops.calls import CALLS, OPTIONAL, WRITTEN
from tests.ops.conftest import with_reference

backend = with_reference()
F8 = torch.float8_e4m3fn


def kinds(t: torch.Tensor, dtypes: bool) -> Iterator[tuple[str, Any]]:
    """What no op takes in place of a tensor."""
    floats = t.float()
    yield "a list", [t.tolist()]
    yield "numpy's", t.numpy()
    yield "a word", "mask"
    yield "a number", 1.5
    yield "quantized", torch.quantize_per_tensor(floats, 0.1, 0, torch.qint8)
    yield "nested", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    if t.dim():
        yield "sparse", floats.to_sparse()
    if t.dim() == 2:
        yield "compressed", floats.to_sparse_csr()
        yield "oneDNN's", floats.to_mkldnn()
    if dtypes:
        yield "complex", t.to(torch.complex64)
        yield "of 8 bits", t.to(torch.uint8).to(F8)
        yield "unsigned", t.to(torch.uint8).to(torch.uint16)


def spoilt(op: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(argument, kind, arguments) of calls with one tensor that is none, or elsewhere."""
    for name, value in CALLS[op]().items():
        many = isinstance(value, list) and isinstance(value[0], torch.Tensor)
        if not many and not isinstance(value, torch.Tensor):
            continue
        model = (value[1] if value[1] is not None else value[0][:1]) if many else value
        wrong = list(kinds(model, op != "pack_mask"))
        if op == "hat_gate" and name == "scale":
            wrong = [(kind, v) for kind, v in wrong if kind not in ("a number", "numpy's")]
        if name not in OPTIONAL:
            wrong.append(("None", None))
        if sum(isinstance(v, (torch.Tensor, list)) for v in CALLS[op]().values()) > 1:
            wrong.append(("elsewhere", model.to("meta")))
        for kind, spoiled in wrong:
            arguments = CALLS[op]()
            arguments[name] = [arguments[name][0], spoiled] if many else spoiled
            yield name, kind, arguments


def snapshot(op: str, arguments: dict[str, Any]) -> list[torch.Tensor]:
    value = arguments.get(WRITTEN.get(op, ""), [])
    tensors = value if isinstance(value, list) else [value]
    return [t for t in tensors if isinstance(t, torch.Tensor) and t.layout is torch.strided]


def raises(op: str, name: str, arguments: dict[str, Any]) -> str:
    """The message; names what is wrong, and nothing has been written."""
    seen = [t for t in snapshot(op, arguments) if not (t.is_meta or t.is_nested or t.is_quantized)]
    before = [t.clone() for t in seen]
    with pytest.raises((TypeError, ValueError)) as error:
        getattr(ops, op)(**arguments)
    for was, now in zip(before, seen, strict=True):
        assert torch.equal(was, now)
    assert re.match(rf"{op}: .*\b{name}\b", str(error.value)), str(error.value)
    return str(error.value)


def test_every_function_is_called():
    assert set(CALLS) == set(ops.__all__)


@pytest.mark.parametrize("op", [op for op in CALLS if "progress" not in op and op != "hat_scale"])
def test_what_is_no_tensor_of_ours_is_named(backend, device, op, capfd):
    getattr(ops, op)(**CALLS[op]())
    for name, _, arguments in spoilt(op):
        raises(op, name, arguments)
    assert "frame #" not in capfd.readouterr().err


SHAPES = {
    "clamp_grads_: grads": lambda t: [t[0], torch.ones(())],
    "clamp_grads_: out_tasks": lambda t: [t[0][:5], t[1]],
    "clamp_grads_: in_tasks": lambda t: [t[0][:, None].expand(-1, 2), None],
    "clamp_grads_soft_: out_masks": lambda t: [t[0][:, None], t[1]],
    "clamp_grads_soft_: in_masks": lambda t: [torch.ones(2, 4), None],
    "restore_protected_: saved": lambda t: [t[0], t[1][:, None]],
    "protected_fraction: in_tasks": lambda t: t[:, None].expand(-1, 2),
    "masked_activation: mask": lambda t: t[:, None],
    "masked_activation: bias": lambda t: t[:, None],
    "masked_linear: mask": lambda t: t[None],
    "masked_linear: bias": lambda t: t[:, None],
    "masked_linear: weight": lambda t: t.t(),
    "masked_conv: mask": lambda t: t.view(1, -1, 1, 1),
    "masked_conv: bias": lambda t: t[:, None],
    "masked_conv: weight": lambda t: t[:, :2],
    "masked_conv: x": lambda t: t[None],
    "open_conv: bias": lambda t: t[:5],
    "open_conv: x": lambda t: t[0, 0],
    "packed_linear: bias": lambda t: t[:, None],
    "piggyback_linear: bias": lambda t: t[None],
    "piggyback_linear: scores": lambda t: t.t(),
    "piggyback_weight: scores": lambda t: t.flatten(),
    "hat_gate: scale": lambda t: t[None],
    "hat_sparsity: used": lambda t: t[:, None],
    "linear_importance_: importance": lambda t: t.t(),
    "mas_accumulate_: grads": lambda t: [t[0], torch.ones(6, 1)],
    "mas_penalty: anchors": lambda t: [t[0], torch.ones(6, 1)],
    "mas_penalty_grads_: importances": lambda t: [t[0].t(), t[1]],
    "packed_weight: words": lambda t: t[None],
    "and_words: b": lambda t: t[None],
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_are_compared_by_shape_and_not_by_count(backend, device, case):
    op, name = case.split(": ")
    arguments = CALLS[op]()
    arguments[name] = SHAPES[case](arguments[name])
    raises(op, name, arguments)


DTYPES = {
    "hat_sparsity: used": torch.int64,
    "masked_linear: weight": torch.float64,
    "masked_linear: bias": torch.bfloat16,
    "masked_conv: weight": torch.float64,
    "open_conv: bias": torch.float16,
    "packed_linear: weight": torch.float64,
    "packed_linear: words": torch.int64,
    "piggyback_linear: scores": torch.float16,
    "linear_importance: grad_out": torch.float64,
    "linear_importance_: importance": torch.float64,
    "packed_embedding: index": torch.bool,
    "pack_scores: scores": torch.int32,
    "protected_fraction: out_tasks": torch.int32,
}


@pytest.mark.parametrize("case", DTYPES)
def test_dtypes_are_named_as_found_and_wanted(backend, device, case):
    op, name = case.split(": ")
    arguments = CALLS[op]()
    arguments[name] = arguments[name].to(DTYPES[case])
    says = raises(op, name, arguments)
    assert re.search(rf"{name} is {DTYPES[case]}( \[6\])?, wanted ", says)


@pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op in CALLS for name, v in CALLS[op]().items() if isinstance(v, list)],
)
def test_lists_are_lists_of_one_length(backend, device, op, name):
    value = CALLS[op]()[name]
    wrong = {"None": None, "a tensor": torch.ones(2, 3), "a number": 3, "a word": "ab"}
    wrong |= {"short": value[:1], "long": value + value, "a dict": {"a": value[0]}}
    for kind, spoiled in wrong.items():
        if (name, kind) not in (("groups", "None"), ("values", "a number")):
            raises(op, name, {**CALLS[op](), name: spoiled})
    getattr(ops, op)(**{**CALLS[op](), name: tuple(value)})
    if name != "values":
        getattr(ops, op)(**{**CALLS[op](), name: iter(value)})


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint8, torch.bool, F8])
def test_ternary_words_want_a_dtype_with_a_sign(backend, device, dtype):
    words = torch.ones(2, 1, dtype=torch.int32)
    with pytest.raises(TypeError, match="unpack_mask: dtype is"):
        ops.unpack_mask(words, (3,), dtype=dtype)
    if dtype in (torch.uint8, torch.bool):
        assert ops.unpack_mask(words[0], (3,), dtype=dtype).tolist() == [1, 0, 0]


@pytest.mark.parametrize("shape", [None, 3, "ab", (-1, 3), (1.5,), torch.ones(2)])
def test_a_shape_is_a_list_of_sizes(backend, device, shape):
    raises("unpack_mask", "shape", {"words": torch.ones(1, dtype=torch.int32), "shape": shape})
    found = ops.unpack_mask(torch.ones(1, dtype=torch.int32), np.array([3, 2]).tolist())
    assert found.shape == (3, 2)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16, F8, torch.bool, torch.int64])
def test_masks_of_any_dtype_are_packed(backend, device, dtype):
    values = torch.tensor([1j, 0, 1]) if dtype.is_complex else torch.tensor([1, 0, 1]).to(dtype)
    assert ops.pack_mask(values).tolist() == [5]
    if dtype.is_complex or not dtype.is_signed:
        with pytest.raises(TypeError, match="wanted a signed dtype for ternary"):
            ops.pack_mask(values, ternary=True)
