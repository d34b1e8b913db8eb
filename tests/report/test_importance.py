"""The report of a MAS or EWC run."""

import json
import os

import numpy as np
import pytest

from maskcl import report
from maskcl.report import importance
from tests.report.results import Links, border_is_empty, hat_result, mas_result

MANY = {f"layer{i}.{j}.conv.weight": 100 + i for i in range(4) for j in range(25)}


def words_of(result, folder):
    return " ".join(" ".join(Links(report.write_report(result, folder).read_text()).words).split())


@pytest.mark.parametrize("method", ["mas", "ewc"])
def test_page_holds_its_pictures_and_says_what_was_held(tmp_path, method):
    result = mas_result(method=method)
    kept = json.dumps(result)
    words = words_of(result, tmp_path)
    assert f"{method.upper()} on split-<digits>" in words
    own = {"mas": "norm sum", "ewc": "labels data"}[method]
    assert f"Strength 2 with an importance of reduction sample, {own};" in words
    assert "1,000 parameters (62.5 %) are held, none is frozen" in words
    pictures = ["accuracy", "accuracy_over_time", "drift", "importance", "learned"]
    assert sorted(os.listdir(tmp_path)) == [*(f"{name}.svg" for name in pictures), "report.html"]
    assert json.dumps(result) == kept
    assert "nan" not in words.lower().split()


def test_table_counts_every_element_once():
    rows = importance.by_parameter(mas_result(tasks=2))
    # 400 x 2 + 100 x 0.2 + 500 x 0.02 = 830.
    assert rows[1:] == [
        ["layer 1.weight", "400", "2.00e+00", "96.4 %", "0.00e+00"],
        ["layer 1.bias", "100", "2.00e-01", "2.4 %", "1.00e-03"],
        ["layer 3.weight", "500", "2.00e-02", "1.2 %", "2.00e-03"],
        ["all", "1,000", "8.30e-01", "100.0 %", "1.45e-03"],
    ]


def test_mean_drift_is_the_root_of_the_mean_square():
    result = mas_result(tasks=2)
    assert importance.mean_drift(result) == pytest.approx(
        np.sqrt((100 * 0.001**2 + 500 * 0.002**2) / 1000)
    )
    assert importance.mean_importance(result, 0) == pytest.approx(0.415)
    # The first task had nothing to stay at.
    assert importance.mean_drift(result, 0) is None


def cells(axes):
    found = {}
    for text in axes.texts:
        column, row = (round(v) for v in text.get_position())
        found[row, column] = text.get_text()
    return found


def test_importance_is_drawn_as_powers_of_ten_and_drift_in_thousandths():
    result = mas_result(tasks=2)
    axes = importance.importance_by_layer(result).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "layer 1.weight  (400)",
        "layer 1.bias  (100)",
        "layer 3.weight  (500)",
        "all together  (1,000)",
    ]
    found = cells(axes)
    assert [found[row, 0] for row in range(4)] == ["0.0", "-1.0", "-2.0", "-0.4"]
    assert [found[row, 1] for row in range(4)] == ["0.3", "-0.7", "-1.7", "-0.1"]
    result["importance"][0]["1.weight"] = 0.99
    assert cells(importance.importance_by_layer(result).axes[0])[0, 0] == "0.0"  # not -0.0
    found = cells(importance.drift_by_layer(result).axes[0])
    assert found == {(0, 1): "0.0", (1, 1): "1.0", (2, 1): "2.0", (3, 1): "1.4"}


def test_forgetting_is_shown_as_it_is(tmp_path):
    result = mas_result(tasks=3, forgets=0.25)
    heights = [bar.get_height() for bar in importance.learned_and_kept(result).axes[0].patches]
    assert heights == pytest.approx([0.98] * 3 + [0.48, 0.73, 0.98])
    assert "-0.3750 backward transfer" in words_of(result, tmp_path)


@pytest.mark.parametrize("tasks", [1, 30])
def test_dead_layers_and_single_tasks_draw_and_nothing_is_cut_off(tasks):
    result = mas_result(tasks=tasks, sizes=MANY)
    for after in result["importance"]:
        after.update(dict.fromkeys(after, 0.0))
    own = [importance.LEARNED, importance.IMPORTANCE, importance.DRIFT]
    assert all(border_is_empty(picture, result) for picture in own)
    assert importance.by_parameter(result)[1][3] == "n/a"


def test_runs_are_compared_by_strength_and_drift(tmp_path):
    runs = {"h": hat_result(), "m": mas_result(), "n": mas_result(seed=1),
            "e": mas_result(method="ewc", strength=50.0)}  # fmt: skip
    for name, result in runs.items():
        (tmp_path / name).mkdir()
        report.write_result(result, tmp_path / name)
    rows = report.compare([tmp_path / name for name in runs])
    assert [row["strength"] for row in rows] == ["", "2", "2", "50", "2"]
    assert [row["drift"] for row in rows[:2]] == ["", "1.45e-03"]
    assert rows[4]["run"] == "mean ± sd of 2"
    assert "importance" not in rows[1]
    assert report.facts(mas_result(tasks=2)) == (
        "strength 2, mean importance 8.30e-01, drift in the last task 1.45e-03"
    )
