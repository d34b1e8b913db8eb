"""The report of a Piggyback run, and runs of different methods side by side."""

import json
import os

import numpy as np
import pytest

from maskcl import report
from maskcl.cli.tables import accuracy_table, comparison
from maskcl.report import figures, piggyback
from tests.report.results import Links, border_is_empty, hat_result, piggyback_result, pretrained

MANY = {f"backbone.stages.{i // 40}.blocks.{i}.attention.out_proj": 1000 + i for i in range(130)}
RESNET = {f"layer{1 + i // 6}.{i % 6}.downsample.0": 10**6 + i for i in range(23)}


def words_of(result, folder):
    return " ".join(Links(report.write_report(result, folder).read_text()).words)


def test_page_has_every_picture_inside_and_beside_it(tmp_path):
    text = report.write_report(piggyback_result(), tmp_path).read_text()
    assert text.count("<svg") == 4
    pictures = ["accuracy", "accuracy_over_time", "differing", "off"]
    assert sorted(os.listdir(tmp_path)) == [*(f"{name}.svg" for name in pictures), "report.html"]


def test_page_says_what_was_measured_and_on_which_base(tmp_path):
    words = words_of(piggyback_result(), tmp_path)
    assert "Piggyback on split-<digits>" in words
    assert (
        "Base trained on turned <digits>, held-out accuracy 0.9712; "
        "its SHA-256 begins with abababababab." in words
    )
    assert "0.9712 held-out accuracy of the base (rotated)" in words
    # 64 / 6 + 1000 / 3 + 6 / 2 of 1070 weights, and 1 % more for each of two later tasks.
    assert "33.4 % weights off" in words
    assert "821 B a task's file" in words
    assert "nan" not in words.lower().split()


def test_a_random_base_needs_no_accuracy(tmp_path):
    base = pretrained(0, source="random", trained_on="nothing: random weights", accuracy=None)
    words = words_of(piggyback_result(base=base), tmp_path)
    assert "random base" in words
    assert "Base trained on nothing: random weights; its SHA-256 begins with abababababab." in words


def test_table_of_mask_files_is_of_real_sizes():
    result = piggyback_result(tasks=2)
    # 2 + 32 + 1 words for 64 + 1000 + 6 weights; 600 bytes of names and hashes.
    assert piggyback.mask_files(result)[1:] == [
        ["0", "masks/task-1.safetensors", "820", "140", "80", "5.533", "1,070", "4,280"],
        ["1", "masks/task-2.safetensors", "821", "140", "80", "5.540", "1,070", "4,280"],
        ["all", "", "1,641", "280", "160", "5.536", "2,140", "8,560"],
    ]
    large = piggyback.mask_files(piggyback_result(tasks=1, sizes={"1": 25_600_000}))
    assert large[1][2:4] == ["3,200,680", "3,200,000"]
    # One task: no sum of one.
    assert len(large) == 2
    two = piggyback.mask_files(piggyback_result(tasks=1, sizes={"1": 25_600_000}, planes=2))
    assert two[1][5] == "2.000"


def numbers(axes):
    """Cell (row, column) -> what is written in it."""
    found = {}
    for text in axes.texts:
        column, row = (round(v) for v in text.get_position())
        found[row, column] = text.get_text()
    return found


def test_weights_off_has_layers_down_tasks_across_and_the_sum_last():
    axes = piggyback.off_by_layer(piggyback_result(tasks=2)).axes[0]
    assert numbers(axes) == {
        (0, 0): "16.7", (0, 1): "17.7",
        (1, 0): "33.3", (1, 1): "34.3",
        (2, 0): "50.0", (2, 1): "51.0",
        # Each weight counts once: the plain mean of the layers would be 33.3.
        (3, 0): "32.4", (3, 1): "33.4",
    }  # fmt: skip
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "layer 1  (64)", "layer 3  (1,000)", "heads.0  (6)", "all layers  (1,070)",
    ]  # fmt: skip


def test_differing_masks_are_in_percent_by_pair():
    axes = piggyback.differing(piggyback_result(tasks=3)).axes[0]
    found = numbers(axes)
    assert [[found[i, j] for j in range(3)] for i in range(3)] == [
        ["0.0", "1.0", "4.0"],
        ["1.0", "0.0", "3.0"],
        ["4.0", "3.0", "0.0"],
    ]


def apart(texts, renderer):
    """Whether no two of the texts touch."""
    boxes = [text.get_window_extent(renderer) for text in texts if text.get_text()]
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


ONE = {"1": 9}


@pytest.mark.parametrize(
    ("sizes", "tasks"),
    [(ONE, 1), (ONE, 60), (RESNET, 1), (RESNET, 15), (RESNET, 25), (MANY, 1), (MANY, 60)],
    ids=lambda value: str(len(value) if isinstance(value, dict) else value),
)
def test_labels_and_numbers_of_the_layers_stay_apart(sizes, tasks):
    figure = piggyback.off_by_layer(piggyback_result(tasks=tasks, sizes=sizes))
    figure.canvas.draw()
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    assert apart(axes.get_yticklabels(), renderer)
    assert apart(axes.get_xticklabels(), renderer)
    assert axes.get_yticklabels()[-1].get_text().startswith("all layers")
    assert apart(axes.texts, renderer)
    assert len(axes.texts) == ((len(sizes) + 1) * tasks if sizes != MANY and tasks < 60 else 0)
    # The cells have room left: a label may not take the picture for itself.
    assert axes.get_window_extent(renderer).width > 0.35 * figure.bbox.width


@pytest.mark.parametrize("tasks", [1, 5, 20, 60])
def test_no_label_is_cut_off(tasks):
    """The border of every picture is empty: what is cut ends in ink there."""
    result = piggyback_result(tasks=tasks, sizes=RESNET)
    for picture in figures.pictures_of(result):
        if picture.is_drawable(result):
            assert border_is_empty(picture, result), picture.name


def test_nothing_off_and_nothing_differing_still_draws():
    result = piggyback_result(tasks=2)
    result["off"] = [dict.fromkeys(result["off"][0], 0.0)] * 2
    result["differing"] = [[0.0, 0.0], [0.0, 0.0]]
    kept = json.dumps(result)
    assert set(figures.draw_all(result)) == {"accuracy", "accuracy_over_time", "differing", "off"}
    assert json.dumps(result) == kept
    assert set(numbers(piggyback.off_by_layer(result).axes[0]).values()) == {"0.0"}


def save(folder, **results):
    for name, result in results.items():
        (folder / name).mkdir()
        report.write_result(result, folder / name)
    return report.compare([folder / name for name in results])


def test_different_methods_share_a_table(tmp_path):
    rows = save(tmp_path, h=hat_result(acc=0.97), p=piggyback_result(acc=0.95))
    assert [row["method"] for row in rows] == ["hat", "piggyback"]
    assert [row["ACC"] for row in rows] == ["0.9700", "0.9500"]
    assert [row["protected"] for row in rows] == ["25.0 %", ""]
    assert [row["off"] for row in rows] == ["", "33.4 %"]
    assert [row["file"] for row in rows] == ["", "821 B"]
    assert [row["base"] for row in rows] == ["", "rotated"]
    table = comparison(rows)
    assert table.startswith("all runs: scenario split-<digits>, setting task, tasks 3")
    head, first, second = table.splitlines()[2:5]
    assert table.splitlines()[6:] == [
        "ACC: mean final accuracy",
        "BWT: final minus just-trained accuracy, negative is forgetting",
    ]
    assert head.split() == (
        [
            "run",
            "method",
            "base",
            "parameters",
            "ACC",
            "BWT",
            "used",
            "protected",
            "off",
            "file",
            "time",
        ]
    )
    assert "821 B" in second
    assert "B" not in first.removeprefix(str(tmp_path / "h"))


def test_columns_of_absent_methods_are_left_out(tmp_path):
    table = comparison(save(tmp_path, h=hat_result()))
    assert not {"off", "file", "base"} & set(table.splitlines()[0].split())
    assert {"used", "protected"} < set(table.splitlines()[0].split())


def test_mean_over_seeds_of_piggyback(tmp_path):
    """A base of each seed's own will do, one that learned something else will not."""
    rows = save(
        tmp_path,
        a=piggyback_result(seed=0, acc=0.90, base=pretrained(0, accuracy=0.91)),
        b=piggyback_result(seed=1, acc=0.94, base=pretrained(1, "cd" * 32)),
        longer=piggyback_result(seed=2, base=pretrained(2, epochs=6)),
        other=piggyback_result(seed=3, base=pretrained(3, trained_on="noise")),
    )
    assert [row["run"] for row in rows[4:]] == ["mean ± sd of 2"]
    assert rows[4]["ACC"] == "0.9200 ± 0.0283"
    assert rows[4]["seed"] == "0 1"
    assert (rows[4]["off"], rows[4]["file"]) == ("33.4 %", "821 B")


def test_a_method_of_a_later_version_is_read_without_its_own_figures(tmp_path):
    result = piggyback_result() | {"method": "later"}
    words = words_of(result, tmp_path)
    assert "later on split-<digits>" in words
    assert "mean accuracy" in words
    assert "weights off" not in words
    rows = save(tmp_path, run=result)
    assert (rows[0]["method"], rows[0]["ACC"], rows[0]["off"]) == ("later", "0.9500", "")
    assert report.facts(result) == ""


def test_the_last_lines_of_a_run_name_its_own_figures():
    assert report.facts(piggyback_result()) == "weights off 33.4 %, a task's file 821 B"
    assert report.facts(hat_result()).endswith("weights protected 25.0 %, a task's mask 2 B")
    shown = accuracy_table(piggyback_result()).splitlines()
    assert shown[-2] == "weights off 33.4 %, a task's file 821 B, 1,100 parameters, 3.0 s"


def test_means_over_tasks_are_plain_and_over_layers_weighted():
    result = piggyback_result(tasks=2, sizes={"a": 10, "b": 90})
    result["off"] = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}]
    assert piggyback.weights_off(result) == pytest.approx((0.1 + 0.9) / 2)
    result["off"] = result["off"][:1]
    assert piggyback.weights_off(result) == pytest.approx(0.1)
    assert np.isclose(
        piggyback.file_bytes(result), np.mean([f["bytes"] for f in result["mask_files"]])
    )
