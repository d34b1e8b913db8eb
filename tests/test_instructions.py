"""What training steps and ops' calls cost beside kernels, held by counts of instructions."""

from __future__ import annotations

import pytest

from benchmarks import instructions
from benchmarks.counted import DEARER_THAN, PLANTED
from maskcl import ops
from maskcl.bench import cases

MADE_WITH, KNOWN = instructions.read()
AGAIN = "if it is meant: python -m benchmarks.instructions --write"


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    """Ratios counted here and now."""
    if reason := instructions.absent():
        pytest.skip(reason)
    return instructions.ratios(instructions.count())


@pytest.mark.slow
def test_steps_and_calls_cost_what_the_table_says(found):
    counted = {piece: ratio for piece, ratio in found.items() if piece != PLANTED}
    differ = instructions.differences(counted, KNOWN, MADE_WITH)
    assert not differ, "\n".join([f"the table is of {MADE_WITH}", *differ, AGAIN])


@pytest.mark.slow
def test_a_loop_in_a_step_is_noticed(found):
    """The test above can fail: a step of MAS with a short loop of Python's costs too much."""
    known = {DEARER_THAN: found[DEARER_THAN]}
    differ = instructions.differences({DEARER_THAN: found[PLANTED]}, known, instructions.versions())
    assert len(differ) == 1 and differ[0].startswith(DEARER_THAN)


def test_bounds_hold_in_both_directions_and_other_versions_have_wider_ones():
    known = {"step 8-8-8-2, HAT": 1.5, "hat_gate": 0.1}
    here = instructions.versions()
    for factor, steps, everywhere in [(1.09, 0, 0), (0.91, 0, 0), (1.11, 2, 0), (0.89, 2, 0)]:
        moved = {piece: factor * ratio for piece, ratio in known.items()}
        assert len(instructions.differences(moved, known, here)) == steps
        assert len(instructions.differences(moved, known, "torch 1.0")) == everywhere
    moved = {"step 8-8-8-2, HAT": 1.9, "hat_gate": 0.16}
    assert len(instructions.differences(moved, known, "torch 1.0")) == 2
    assert instructions.differences({"hat_gate": 0.1}, known, here) == [
        "step 8-8-8-2, HAT: not in both"
    ]


def test_every_op_is_called_and_counted():
    assert cases().keys() == set(ops.__all__)
    assert set(ops.__all__) <= KNOWN.keys()
    wanted = {f"{op}, forward + backward" for op, call in cases().items() if call.wrt}
    assert {piece for piece in KNOWN if "backward" in piece} == wanted
