"""A report from a made-up result: whole files, everything inside, and what it says."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from maskcl import report
from maskcl.report import figures, files
from maskcl.report.text import number, seconds
from tests.report.results import Links, mas_result, piggyback_result
from tests.report.results import hat_result as made_up

HAT_PICTURES = ["accuracy", "accuracy_over_time", "overlap", "capacity", "protected", "masks"]


def test_report_is_one_page_with_its_pictures_inside(tmp_path):
    text = report.write_report(made_up(), tmp_path).read_text()
    page = Links(text)
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert text.count("<svg") == len(HAT_PICTURES)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *(f"{name}.svg" for name in sorted(HAT_PICTURES)),
        "report.html",
    ]


def test_a_picture_is_a_file_of_its_own_with_text_and_values_to_hover_over(tmp_path):
    report.write_report(made_up(), tmp_path)
    for name in HAT_PICTURES:
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        words = [e.text or "" for e in root.iter("{http://www.w3.org/2000/svg}text")]
        assert {"0", "1", "2"} <= set(words), name
    titles = [e.text for e in root.iter("{http://www.w3.org/2000/svg}title")]
    assert "task 2 uses 3 of 5 units of layer 1" in titles
    titles = (tmp_path / "accuracy.svg").read_text()
    assert titles.count("<title>") == 6
    assert "<title>after task 2, on task 1: 0.9700</title>" in titles
    assert (
        "<title>task 1 after task 2, test accuracy: 0.9700</title>"
        in (tmp_path / "accuracy_over_time.svg").read_text()
    )


def test_ids_of_a_page_are_all_different_and_are_all_there(tmp_path):
    text = report.write_report(made_up(), tmp_path).read_text()
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text)) <= set(ids)


def test_every_colour_of_a_picture_is_the_pages_own():
    for element in figures.draw_all(made_up()).values():
        assert not re.findall(r"(?:fill|stroke): #", element)


HOSTILE = "<b>$x_{</b>\x1b[31m\u202e&\"'{row}"


@pytest.mark.parametrize("make", [made_up, piggyback_result, mas_result])
def test_hostile_names_are_shown_and_do_nothing(tmp_path, make):
    named = json.dumps(HOSTILE)[1:-1]
    text = json.dumps(make()).replace("split-<digits>", named)
    result = json.loads(text.replace('"3": ', f'"{named}": ').replace('"3.', f'"{named}.'))
    result["configuration"]["model"] = result["environment"][HOSTILE] = HOSTILE
    text = report.write_report(result, tmp_path).read_text()
    assert "<b>$" not in text and "\x1b" not in text and "\u202e" not in text
    assert "&lt;b&gt;$x_{&lt;/b&gt;\\x1b[31m\\u202e&amp;" in text
    for path in tmp_path.glob("*.svg"):
        ElementTree.parse(path)


def test_report_says_what_was_measured(tmp_path):
    words = " ".join(Links(report.write_report(made_up(), tmp_path).read_text()).words)
    assert "HAT on split-<digits>" in words
    assert "3 tasks, classes 0 1 | 2 3 | 4 5, 30 training and 10 test examples a task" in words
    assert "1,234 parameters" in words
    assert "undefined: the untrained model was not scored" in words
    assert "after task 2" in words and "after task 3" not in words
    assert "nan" not in words.lower().split()


@pytest.mark.parametrize("tasks", [1, 2, 25, 60])
def test_every_figure_is_a_picture_for_few_and_many_tasks(tasks):
    drawn = figures.draw_all(made_up(tasks))
    assert list(drawn) == HAT_PICTURES
    for element in drawn.values():
        root = ElementTree.fromstring(element)
        width, height = (float(v) for v in root.attrib["viewBox"].split()[2:])
        assert min(width, height) > 100


def test_a_page_of_very_many_tasks_is_small(tmp_path):
    text = report.write_report(made_up(400), tmp_path).read_text()
    assert len(text) < 600_000
    assert "... 350 more" in text


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
