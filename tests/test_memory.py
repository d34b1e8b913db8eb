"""What conversions and steps hold in memory, counted as `python -m benchmarks.memory` does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.memory import HALF, Alive, row, stack


def tiny() -> tuple[nn.Module, torch.Tensor]:
    return stack(128, 256, 3, 64), torch.zeros(1, 4, dtype=torch.int64)


def test_bytes_are_counted_while_a_tensor_is_alive() -> None:
    with Alive() as alive:
        x = torch.zeros(100)
        y = x.view(10, 10).t()  # no memory of its own
        assert alive.now == 400
        z = x + 1
        del x
        assert alive.now == 800
        del y, z
        assert (alive.now, alive.most) == (0, 800)


@pytest.mark.parametrize(("method", "copies"), [("HAT", 1), ("Piggyback", 1), ("MAS, EWC", 3)])
def test_a_conversion_holds_no_more_copies_than_the_network_has(method: str, copies: int) -> None:
    found = row(tiny, method, "meta")
    assert copies <= found["held"] / found["weights"] < copies + 0.3
    assert found["converted"] < found["held"] + 0.3 * found["weights"]
    # Nothing of the weights' size is kept for backward: activations of four words alone.
    assert found["saved"] < 0.1 * found["weights"]


def test_a_resumed_step_holds_what_a_step_holds() -> None:
    found = row(tiny, "HAT", "cpu")
    weights = found["weights"]
    assert found["step"] == pytest.approx(2 * weights, rel=0.1)  # AdamW's state, no copy
    assert found["resumed"] == pytest.approx(found["step"], rel=0.01)
    assert found["guard"] <= found["step"] + 1.1 * weights
    assert found["guard resumed"] == pytest.approx(found["guard"], rel=0.01)


@pytest.mark.parametrize("method", ["Piggyback", "MAS, EWC"])
def test_what_is_not_protected_by_a_copy_holds_none_after_a_resume(method: str) -> None:
    found = row(tiny, method, "cpu")
    assert found["step"] == pytest.approx(found["trained"], rel=0.01)  # two moments
    assert found["resumed"] == pytest.approx(found["step"], rel=0.01)


def test_scores_of_two_bytes_halve_what_learning_a_mask_holds() -> None:
    def half() -> tuple[nn.Module, torch.Tensor]:
        model, x = tiny()
        return model.to(torch.bfloat16), x

    wide, narrow = (row(half, method, "cpu") for method in ("Piggyback", HALF))
    for column in ("trained", "step", "resumed"):
        assert narrow[column] == pytest.approx(wide[column] / 2, rel=0.01)
