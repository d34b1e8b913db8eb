"""A report from a made-up result: whole files, everything inside, and what it says."""

import json
import struct

import numpy as np
import pytest

from maskcl import report
from maskcl.report import figures, files
from maskcl.report.text import number, seconds
from tests.report.results import Links
from tests.report.results import hat_result as made_up


def test_report_is_one_page_with_its_pictures_inside(tmp_path):
    path = report.write_report(made_up(), tmp_path)
    text = path.read_text()
    page = Links(text)
    assert len(page.addresses) == 5
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "http" not in text
    assert "url(" not in text
    pictures = ["accuracy", "accuracy_over_time", "capacity", "masks", "overlap"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(f"{name}.png" for name in pictures),
        "report.html",
    ]


def test_report_says_what_was_measured(tmp_path):
    words = " ".join(Links(report.write_report(made_up(), tmp_path).read_text()).words)
    assert "HAT on split-<digits>" in words
    assert "3 tasks, classes 0 1 | 2 3 | 4 5, 30 training and 10 test examples a task" in words
    assert "1,234 parameters" in words
    assert "undefined: the untrained model was not scored" in words
    assert "after task 3" in words
    assert "nan" not in words.lower().split()


@pytest.mark.parametrize("tasks", [1, 2, 25])
def test_every_figure_is_a_picture_for_few_and_many_tasks(tasks):
    drawn = figures.draw_all(made_up(tasks))
    assert list(drawn) == ["accuracy", "accuracy_over_time", "overlap", "capacity", "masks"]
    for png in drawn.values():
        assert png[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">2I", png[16:24])
        assert min(width, height) > 200


def test_the_same_result_gives_the_same_bytes():
    assert figures.draw_all(made_up(2)) == figures.draw_all(made_up(2))


def test_heat_map_has_time_down_and_tasks_across():
    """The usual slip: a transposed matrix looks the same where nothing is forgotten."""
    result = made_up(2)
    result["accuracy"] = [[0.9, None], [0.6, 0.8]]
    axes = figures.accuracy_matrix(result).axes[0]
    found = {tuple(round(v) for v in text.get_position()): text.get_text() for text in axes.texts}
    # Position is (column, row).
    assert found == {(0, 0): ".900", (0, 1): ".600", (1, 1): ".800"}
    assert axes.get_ylabel() == "after training task"
    assert axes.get_xlabel() == "evaluated on task"


def test_drawing_leaves_the_process_and_the_result_alone():
    import matplotlib as mpl

    before, result = dict(mpl.rcParams), made_up()
    kept = json.dumps(result)
    figures.draw_all(result)
    assert dict(mpl.rcParams) == before
    assert json.dumps(result) == kept


def test_masks_survive_the_round_trip():
    masks = np.random.RandomState(0).rand(3, 13) < 0.5
    encoded = json.loads(json.dumps(report.encode_masks(masks, {"1": (0, 13)})))
    np.testing.assert_array_equal(report.decode_masks(encoded), masks)


def test_result_is_written_whole_and_read_back(tmp_path):
    report.write_result(made_up(), tmp_path)
    assert report.read_result(tmp_path) == made_up()
    with pytest.raises(ValueError, match="Out of range float"):
        report.write_result({"x": float("nan")}, tmp_path)
    # The failed write left the old file and nothing else.
    assert report.read_result(tmp_path) == made_up()
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    files.write_atomic(path, b"old")

    def die(_):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", die)
    with pytest.raises(OSError, match="no space left"):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"


def test_compare_gives_a_row_a_run_and_a_mean_over_seeds(tmp_path):
    for seed, acc in ((0, 0.96), (1, 0.98)):
        (tmp_path / f"r{seed}").mkdir()
        report.write_result(made_up(seed=seed, acc=acc), tmp_path / f"r{seed}")
    (tmp_path / "other").mkdir()
    report.write_result(made_up(epochs=3), tmp_path / "other")
    rows = report.compare([tmp_path / name for name in ("r0", "r1", "other")])
    assert [row["ACC"] for row in rows] == ["0.9600", "0.9800", "0.9700", "0.9700 ± 0.0141"]
    assert rows[-1]["run"] == "mean ± sd of 2"
    assert rows[-1]["seed"] == "0 1"
    assert rows[-1]["BWT"] == "0.0000 ± 0.0000"


def test_compare_with_one_task_has_no_transfer(tmp_path):
    for seed in (0, 1):
        (tmp_path / f"r{seed}").mkdir()
        report.write_result(made_up(tasks=1, seed=seed), tmp_path / f"r{seed}")
    rows = report.compare([tmp_path / "r0", tmp_path / "r1"])
    assert [row["BWT"] for row in rows] == ["n/a"] * 3


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(None, "does not exist"), ("{", "cannot be read"), ("{}", "is not a result of maskcl")],
)
def test_a_directory_without_a_result_is_named(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(report.ReportError, match=sentence) as caught:
        report.compare([tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_figures_for_a_person():
    assert number(None, 4) == number(float("nan"), 4) == "n/a"
    assert number(-0.0, 4) == "0.0000"
    assert (seconds(3.21), seconds(125), seconds(7325)) == ("3.2 s", "2 min 05 s", "2 h 02 min")
