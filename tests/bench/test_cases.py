"""Each case's plain torch computes what the op does, so that a ratio is of the same thing."""

from __future__ import annotations

import pytest
import torch

from maskcl import ops
from maskcl.bench import case, cases
from maskcl.bench.op_results import difference, drawn, result


def test_every_op_has_a_case():
    assert cases().keys() == set(ops.__all__)


@pytest.mark.parametrize("size", [1, 40])
@pytest.mark.parametrize("op", list(cases()))
def test_plain_torch_and_what_is_compiled_compute_the_same(op, size):
    ours, plain, formula = (drawn(op, size, 3, "cpu") for _ in range(3))
    found = result(ours.ours, ours)
    assert difference(found, result(plain.plain, plain)) == ""
    assert difference(found, result(formula.formula or formula.plain, formula)) == ""
    if not ours.wrt:
        assert not any(tensor.requires_grad for tensor in found)


@pytest.mark.parametrize("op", [op for op, made in cases(40, 3).items() if made.written])
def test_an_op_that_does_nothing_would_be_noticed(op):
    idle, plain = (drawn(op, 40, 3, "cpu") for _ in range(2))
    assert difference(result(lambda: None, idle), result(plain.plain, plain))


def test_a_difference_is_told_in_words():
    one = torch.ones(3)
    assert difference([one], [one]) == ""
    assert difference([one], [one * 1.01]) == "0.01 apart"
    assert difference([one], [one.new_full((3,), float("nan"))]) == "nan apart"
    assert difference([one.int()], [one.int() * 2]) == "other bits"
    assert "shape" in difference([one], [one[:2]])


def test_an_unknown_op_is_named():
    with pytest.raises(KeyError, match="conv9"):
        case("conv9")
