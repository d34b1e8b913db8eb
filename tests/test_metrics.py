"""Metrics against matrices worked out by hand; rows are time, columns are tasks."""

import json
import math

import numpy as np
import pytest

from maskcl import metrics

NAN = math.nan

# Numbers all differ, so that a row taken for a column, or i for i + 1, gives another result.
M = np.array(
    [
        [0.90, 0.15, 0.25],
        [0.80, 0.70, 0.35],
        [0.50, 0.60, 0.95],
    ]
)
LOWER = np.where(np.tril(np.ones((3, 3))) == 1, M, NAN)


def test_average_performance_is_the_last_row():
    assert metrics.average_performance(M).value == pytest.approx((0.50 + 0.60 + 0.95) / 3)


def test_average_incremental_is_the_mean_of_row_means():
    # Not the mean of the six entries: .7416...
    expected = (0.90 + (0.80 + 0.70) / 2 + (0.50 + 0.60 + 0.95) / 3) / 3
    assert metrics.average_incremental(M).value == pytest.approx(expected)


def test_backward_transfer_leaves_the_last_task_out():
    expected = ((0.50 - 0.90) + (0.60 - 0.70)) / 2
    assert metrics.backward_transfer(M).value == pytest.approx(expected)
    assert metrics.average_forgetting(M).value == pytest.approx(-expected)


def test_forgetting_takes_the_best_before_the_last_row():
    m = np.array([[0.5, 0.1, 0.1], [0.9, 0.6, 0.1], [0.7, 0.8, 0.95]])
    # Task 0: best .9 after task 1 (not .5 on the diagonal). Task 1: .6 - .8, a gain; the last
    # row is not among the candidates, else this would be 0.
    assert metrics.forgetting(m).value == pytest.approx(((0.9 - 0.7) + (0.6 - 0.8)) / 2)
    # A high score from before training counts where it was measured.
    m[0, 1] = 0.85
    assert metrics.forgetting(m).value == pytest.approx(((0.9 - 0.7) + (0.85 - 0.8)) / 2)


def test_forward_transfer_reads_the_entries_just_above_the_diagonal():
    untrained = [0.3, 0.1, 0.05]
    expected = ((0.15 - 0.1) + (0.35 - 0.05)) / 2
    assert metrics.forward_transfer(M, untrained).value == pytest.approx(expected)
    # The first task's baseline is not used.
    assert metrics.forward_transfer(M, [NAN, 0.1, 0.05]).value == pytest.approx(expected)


def test_transfer_from_scratch_reads_the_diagonal_but_its_first():
    expected = ((0.70 - 0.6) + (0.95 - 0.99)) / 2
    assert metrics.transfer_from_scratch(M, [0.2, 0.6, 0.99]).value == pytest.approx(expected)
    # Nothing came before the first task.
    found = metrics.transfer_from_scratch(LOWER, [NAN, 0.6, 0.99])
    assert found.value == pytest.approx(expected)


def test_begins_four_figures_by_hand():
    """AP, AF, INT and FWT as BeGin's code has them: divisors T, T - 1, T, T - 1, and AF's sign."""
    found = metrics.all_metrics(M, untrained=[0.3, 0.1, 0.05], joint=[0.99, 0.80, 0.90])
    by_hand = {
        "ACC": (0.50 + 0.60 + 0.95) / 3,
        "AF": ((0.90 - 0.50) + (0.70 - 0.60)) / 2,
        "INT": ((0.99 - 0.90) + (0.80 - 0.70) + (0.90 - 0.95)) / 3,
        "FWT": ((0.15 - 0.10) + (0.35 - 0.05)) / 2,
    }
    for name, value in by_hand.items():
        assert found[name].value == pytest.approx(value)
    assert found["AF"].value > 0 > found["BWT"].value


def test_intransigence_compares_the_diagonal_with_joint_training():
    expected = ((0.99 - 0.90) + (0.80 - 0.70) + (0.90 - 0.95)) / 3
    assert metrics.intransigence(M, [0.99, 0.80, 0.90]).value == pytest.approx(expected)


def test_forgetting_ratio_is_zero_at_joint_training_and_minus_one_at_chance():
    last = M[-1]
    assert metrics.forgetting_ratio(M, [0.1] * 3, last).value == pytest.approx(0.0)
    assert metrics.forgetting_ratio(M, last, [1.0] * 3).value == pytest.approx(-1.0)
    by_hand = ((0.4 / 0.8 - 1) + (0.5 / 0.8 - 1) + (0.85 / 0.8 - 1)) / 3
    assert metrics.forgetting_ratio(M, [0.1] * 3, [0.9] * 3).value == pytest.approx(by_hand)


def test_nothing_forgotten_is_exactly_zero():
    m = np.array([[0.9, NAN, NAN], [0.9, 0.7, NAN], [0.9, 0.7, 0.8]])
    assert metrics.backward_transfer(m).value == 0.0
    assert math.copysign(1, metrics.average_forgetting(m).value) == 1.0
    assert metrics.forgetting(m).value == 0.0


def test_the_lower_triangle_is_enough_except_for_forward_transfer():
    for name in ("ACC", "AIA", "BWT", "AF"):
        assert metrics.all_metrics(LOWER)[name] == metrics.all_metrics(M)[name]
    found = metrics.forward_transfer(LOWER, [0.1] * 3)
    assert math.isnan(found.value)
    assert found.reason.startswith("tasks were not scored before they were trained")


def test_one_task():
    references = {"joint": [0.9], "joint_last": [0.9], "scratch": [0.9]}
    found = metrics.all_metrics([[0.8]], untrained=[0.1], chance=[0.1], **references)
    assert found["ACC"].value == found["AIA"].value == pytest.approx(0.8)
    assert found["INT"].value == pytest.approx(0.1)
    assert found["rho"].value == pytest.approx(0.7 / 0.8 - 1)
    for name in ("BWT", "FWT", "FTS", "F", "AF"):
        assert math.isnan(found[name].value)
        assert found[name].reason == metrics.ONE_TASK


def test_every_undefined_metric_has_a_reason_and_every_defined_one_has_none():
    for found in (metrics.all_metrics(M), metrics.all_metrics(np.full((2, 2), NAN))):
        for metric in found.values():
            assert math.isnan(metric.value) == (metric.reason is not None)
    assert metrics.all_metrics(M)["FWT"].reason == "the untrained model was not scored"
    for name in ("INT", "FTS", "rho"):
        assert "--references" in metrics.all_metrics(M)[name].reason
    assert "scored on every task" in metrics.intransigence(M, [0.9, NAN, 0.9]).reason
    assert "scored on every task" in metrics.transfer_from_scratch(M, [0.9, NAN, 0.9]).reason
    assert metrics.forgetting_ratio(M, None, [1.0] * 3).reason.startswith("the score of a random")
    assert "at chance on task 1" in metrics.forgetting_ratio(M, [0, 0.5, 0], [1, 0.5, 1]).reason


def test_an_interrupted_run_names_the_entry_that_is_missing():
    m = LOWER.copy()
    m[2, 1] = NAN
    for name in ("ACC", "AIA", "BWT", "F"):
        assert metrics.all_metrics(m)[name].reason == "M[2, 1] was not measured"


def test_undefined_is_null_in_json():
    found = metrics.backward_transfer([[1.0]]).to_json()
    assert json.loads(json.dumps(found, allow_nan=False)) == {
        "value": None,
        "reason": metrics.ONE_TASK,
    }


def test_arguments_are_not_modified():
    m, untrained, joint = LOWER.copy(), np.array([0.1] * 3), np.array([0.99] * 3)
    kept = [a.copy() for a in (m, untrained, joint)]
    for array in (m, untrained, joint):
        array.flags.writeable = False
    references = {"joint": joint, "joint_last": joint, "scratch": joint}
    metrics.all_metrics(m, untrained=untrained, chance=untrained, **references)
    metrics.average_accuracy_curve(m)
    for before, after in zip(kept, (m, untrained, joint), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("bad", [np.zeros((2, 3)), np.zeros(4), np.zeros((0, 0))])
def test_a_matrix_that_is_not_square_is_refused(bad):
    with pytest.raises(ValueError, match="matrix must be square"):
        metrics.all_metrics(bad)


def test_references_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match=r"joint must have shape \[3\], got \[2\]"):
        metrics.intransigence(M, [0.1, 0.2])


def test_curve_is_each_rows_mean_up_to_the_diagonal():
    curve = metrics.average_accuracy_curve(LOWER)
    np.testing.assert_allclose(curve, [0.90, 0.75, 2.05 / 3])
