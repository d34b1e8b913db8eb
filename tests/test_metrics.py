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
    assert found.reason == "tasks were not scored before they were trained"


def test_one_task():
    found = metrics.all_metrics([[0.8]], untrained=[0.1], chance=[0.1], joint=[0.9])
    assert found["ACC"].value == found["AIA"].value == pytest.approx(0.8)
    assert found["INT"].value == pytest.approx(0.1)
    assert found["rho"].value == pytest.approx(0.7 / 0.8 - 1)
    for name in ("BWT", "FWT", "F", "AF"):
        assert math.isnan(found[name].value)
        assert found[name].reason == metrics.ONE_TASK


def test_every_undefined_metric_has_a_reason_and_every_defined_one_has_none():
    for found in (metrics.all_metrics(M), metrics.all_metrics(np.full((2, 2), NAN))):
        for metric in found.values():
            assert math.isnan(metric.value) == (metric.reason is not None)
    assert metrics.all_metrics(M)["FWT"].reason == "the untrained model was not scored"
    assert metrics.all_metrics(M)["INT"].reason == "no joint training to compare with"
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
    masks = np.array([[True, False], [True, True]])
    kept = [a.copy() for a in (m, untrained, joint, masks)]
    for array in (m, untrained, joint, masks):
        array.flags.writeable = False
    metrics.all_metrics(m, untrained=untrained, chance=untrained, joint=joint)
    metrics.average_accuracy_curve(m)
    metrics.mask_overlap(masks)
    for before, after in zip(kept, (m, untrained, joint, masks), strict=True):
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


def test_overlap_is_the_share_of_the_columns_task():
    masks = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=bool)
    overlap = metrics.mask_overlap(masks)
    np.testing.assert_allclose(overlap[0, :2], [1.0, 2 / 3])
    np.testing.assert_allclose(overlap[1, :2], [2 / 4, 1.0])
    assert np.isnan(overlap[:, 2]).all()
    with pytest.raises(ValueError, match=r"masks must be bool\[tasks, units\], got int64"):
        metrics.mask_overlap(np.array([[1, 0]]))


def test_a_mask_takes_one_bit_a_unit():
    assert metrics.mask_bytes(np.zeros((3, 400), dtype=bool)) == 50
    assert metrics.mask_bytes(np.zeros((3, 401), dtype=bool)) == 51


def test_total_share_counts_each_part_by_its_size():
    # The plain mean would be .35.
    assert metrics.total_share({"a": 0.5, "b": 0.2}, {"a": 10, "b": 90}) == pytest.approx(0.23)
    assert metrics.total_share({"a": 0.5, "b": 0.0}, {"a": 4, "b": 0}) == 0.5
    assert metrics.total_share({"a": 0.5}, {"a": 0}) == metrics.total_share({}, {}) == 0.0
    with pytest.raises(ValueError, match="must name the same parts, only one has b, c"):
        metrics.total_share({"a": 0.5, "b": 0.2}, {"a": 10, "c": 90})
