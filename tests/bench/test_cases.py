"""Each case's plain torch computes what the op does, so that a ratio is of the same thing."""

from __future__ import annotations

import pytest
import torch

from maskcl import ops
from maskcl.bench import case, cases
from maskcl.bench.op_times import _difference, _drawn, _result


def test_every_op_has_a_case():
    assert cases().keys() == set(ops.__all__)


@pytest.mark.parametrize("size", [1, 40])
@pytest.mark.parametrize("op", list(cases()))
def test_plain_torch_and_what_is_compiled_compute_the_same(op, size):
    ours, plain, formula = (_drawn(op, size, 3, "cpu") for _ in range(3))
    found = _result(ours.ours, ours)
    assert _difference(found, _result(plain.plain, plain)) == ""
    assert _difference(found, _result(formula.formula or formula.plain, formula)) == ""
    if not ours.wrt:
        assert not any(tensor.requires_grad for tensor in found)


@pytest.mark.parametrize("op", [op for op, made in cases(40, 3).items() if made.written])
def test_an_op_that_does_nothing_would_be_noticed(op):
    idle, plain = (_drawn(op, 40, 3, "cpu") for _ in range(2))
    assert _difference(_result(lambda: None, idle), _result(plain.plain, plain))


def test_a_difference_is_told_in_words():
    one = torch.ones(3)
    assert _difference([one], [one]) == ""
    assert _difference([one], [one * 1.01]) == "0.01 apart"
    assert _difference([one], [one.new_full((3,), float("nan"))]) == "nan apart"
    assert _difference([one.int()], [one.int() * 2]) == "other bits"
    assert "shape" in _difference([one], [one[:2]])


def test_an_unknown_op_is_named():
    with pytest.raises(KeyError, match="conv9"):
        case("conv9")
