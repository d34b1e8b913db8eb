"""What `make gpu` prints of the model, with a timer that needs no GPU; the model's own tables."""

from __future__ import annotations

import csv
import time

import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import model, pages, predictions, training_steps
from benchmarks.gpus import A100, H100, H200
from benchmarks.passes import Pass
from benchmarks.passes_of_bits import OF
from maskcl.schemas import STEM_OF


class Fixed:
    """Every call takes as long, and is made once."""

    def __init__(self, seconds: float = 1e-3, fails: str = "") -> None:
        self.each, self.fails, self.calls = seconds, fails, 0

    def seconds(self, function):
        self.calls += 1
        if self.fails and self.calls == 2:
            raise RuntimeError(self.fails)
        function()
        return [self.each, 2 * self.each, 3 * self.each]


@pytest.fixture
def small(monkeypatch):
    e = model.empty
    ops = [
        ("7 units", ("hat_gate", (e(7), e(), 0.0))),
        ("5 x 3", ("weight_mask", (e(5, 3), None, "binary", 0.1, False, 1.0))),
        ("5 x 3", ("packed_weight", (e(5, 3), e(1, dtype=torch.int32)))),
    ]
    monkeypatch.setattr(model, "calls", lambda: ops)
    mlp = {"MLP": training_steps.NETWORKS["MLP 784-2000-2000-10"]}
    monkeypatch.setattr(training_steps, "NETWORKS", mlp)
    monkeypatch.setattr(model, "BATCH", 3)


def test_kernels_are_measured_beside_what_is_predicted(small):
    groups = list(predictions.kernels(Fixed(), H100, "cpu", ["reference"]))
    assert groups[0][0]["group"] == "model, hat_gate, 7 units"
    for rows in groups:
        assert [r["name"] for r in rows] == ["maskcl", "predicted"]
        assert rows[0]["median_ms"] == 2.0 and rows[0]["p25_ms"] < 2 < rows[0]["p75_ms"]
        assert rows[1]["ratio"] == pytest.approx(rows[1]["median_ms"] / 2.0)
    assert [len(r) for r in predictions.kernels(Fixed(), None, "cpu", ["reference"])] == [1] * 3


def test_what_fails_is_a_row_without_a_time(small, capsys):
    groups = list(predictions.kernels(Fixed(fails="out of memory"), H100, "cpu", ["reference"]))
    assert [rows[0]["median_ms"] for rows in groups] == [2.0, None, 2.0]
    assert groups[1][1]["ratio"] is None
    assert "weight_mask, 5 x 3: RuntimeError: out of memory" in capsys.readouterr().out


def test_steps_are_run_and_compared(small):
    (rows,) = predictions.steps(Fixed(), "cpu", ("eager",))
    assert [r["name"] for r in rows] == ["no mask", *training_steps.METHODS]
    assert [r["ratio"] for r in rows] == [None, 1.0, 1.0, 1.0]


def test_rows_are_kept_when_time_is_up(small, capsys):
    parts = predictions.kernels(Fixed(), A100, "cpu", ["reference"])
    found = predictions.collect(parts, time.monotonic() - 1)
    assert [r["name"] for r in found] == ["maskcl", "predicted"]
    assert "no time is left" in capsys.readouterr().out


def test_rows_are_saved_beside_other_groups(small, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "ROOT", tmp_path)
    (tmp_path / "benchmarks").mkdir()
    known = {"device": "a GPU"}
    for seconds in (1e-3, 5e-3):
        parts = predictions.kernels(Fixed(seconds), A100, "cpu", ["reference"])
        benchmarks.save(predictions.collect(parts, time.monotonic() + 60), known, "cuda")
    benchmarks.save([predictions.row("another", "maskcl", [1.0], None)], known, "cuda")
    with (tmp_path / "benchmarks/results/cuda.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert {r["median_ms"] for r in rows if r["name"] == "maskcl"} == {"10", "1000"}


def test_devices_are_known_by_name():
    assert predictions.gpu_of("NVIDIA H100 80GB HBM3") is H100
    assert predictions.gpu_of("NVIDIA H200") is H200
    assert predictions.gpu_of("NVIDIA A100-SXM4-80GB") is A100
    assert predictions.gpu_of("Tesla T4") is None


# --- the model -----------------------------------------------------------------------------------


def test_every_op_has_passes():
    assert OF.keys() == STEM_OF.keys()


def test_the_page_shows_the_predictions():
    assert pages.part("kernels") == model.kernels_page()


def test_a_large_copy_takes_its_bytes_and_a_launch():
    large = Pass("weight_mask: mask_kernel<float, 4>", 1e9, 1e9, 1 << 16)
    assert model.predict([large], A100) == pytest.approx(2.5e-6 + 2e9 / (0.9 * 2.039e12), rel=1e-6)
    assert model.floor([large], A100) == pytest.approx(model.predict([large], A100))
    assert model.why([large], A100) == ""


@pytest.mark.parametrize(
    ("change", "term"),
    [
        ({"blocks": 8}, "few"),
        ({"lane": 1}, "few"),
        ({"used": 0.25}, "sectors"),
        ({"cached": 4e9}, "cache"),
        ({"again": 9e8}, "again"),
    ],
)
def test_each_term_is_named(change, term):
    given = {"kernel": "gate: gate_kernel<float", "read": 1e9, "written": 0.0, "blocks": 1 << 16}
    slow = Pass(**{**given, **change})
    assert model.why([slow], H100).startswith(term)
    assert "2 launches" in model.why([Pass("gate: gate_kernel<float", 1e3, 0, 9)] * 2, H100)
