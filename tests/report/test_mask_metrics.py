"""Metrics of masks, by hand."""

import numpy as np
import pytest

from maskcl.report import mask_metrics


def test_overlap_is_the_share_of_the_columns_task():
    masks = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]], dtype=bool)
    overlap = mask_metrics.mask_overlap(masks)
    np.testing.assert_allclose(overlap[0, :2], [1.0, 2 / 3])
    np.testing.assert_allclose(overlap[1, :2], [2 / 4, 1.0])
    assert np.isnan(overlap[:, 2]).all()
    with pytest.raises(ValueError, match=r"masks must be bool\[tasks, units\], got int64"):
        mask_metrics.mask_overlap(np.array([[1, 0]]))


def test_a_mask_takes_one_bit_a_unit():
    assert mask_metrics.mask_bytes(np.zeros((3, 400), dtype=bool)) == 50
    assert mask_metrics.mask_bytes(np.zeros((3, 401), dtype=bool)) == 51


def test_total_share_counts_each_part_by_its_size():
    # The plain mean would be .35.
    assert mask_metrics.total_share({"a": 0.5, "b": 0.2}, {"a": 10, "b": 90}) == pytest.approx(0.23)
    assert mask_metrics.total_share({"a": 0.5, "b": 0.0}, {"a": 4, "b": 0}) == 0.5
    assert mask_metrics.total_share({"a": 0.5}, {"a": 0}) == mask_metrics.total_share({}, {}) == 0.0
    with pytest.raises(ValueError, match="must name the same parts, only one has b, c"):
        mask_metrics.total_share({"a": 0.5, "b": 0.2}, {"a": 10, "c": 90})
