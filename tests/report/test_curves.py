"""Training curves, pages of runs on their way, and axes."""

import json

import pytest

from maskcl import report
from maskcl.report import curves, figures
from maskcl.report.scores import chance_of
from tests.report.results import Links, by_epoch, hat_result, in_training, mas_result

ALL = ["loss", "training", "free"]


def drawn(result):
    return figures.draw_all(result)


def test_a_run_with_epochs_has_their_curves_and_one_of_before_has_not():
    old = hat_result()
    assert not set(ALL) & drawn(old).keys()
    new = old | by_epoch([4, 4, 4])
    some = new | {"free_by_epoch": [[], [], []], "validation_scores": [], "best_epochs": []}
    found = drawn(some)
    assert "free" not in found
    assert "validation" not in found["training"]


def test_points_of_a_curve_say_task_epoch_and_value():
    found = drawn(hat_result() | by_epoch([4, 4, 4]))
    assert "<title>task 2, epoch 1, loss: 1</title>" in found["loss"]
    assert "<title>task 2, epoch 4, loss: 0.25</title>" in found["loss"]
    assert found["loss"].count("<title>") == 12
    assert "<title>task 1, epoch 2, validation accuracy: 0.75</title>" in found["training"]
    assert "epoch kept" in found["training"]
    assert "<title>task 1, epoch 1, free, percent: 50</title>" in found["free"]


def test_axes_begin_at_chance_or_0():
    result = hat_result() | by_epoch([4, 4, 4])
    bottom, top = curves.loss(result).axes[0].get_ylim()
    assert bottom == 0
    assert top >= 1
    bottom, top = curves.training(result).axes[0].get_ylim()
    assert 0.45 < bottom < 0.5 and 1 < top < 1.05  # two classes a task
    (axes,) = figures.accuracy_over_time(result).axes[-1:]
    assert 0.45 < axes.get_ylim()[0] < 0.5
    labels = [text.get_text() for text in axes.figure.legends[0].texts]
    assert labels == ["task 0", "task 1", "task 2", "mean so far", "chance"]
    lower = hat_result(acc=0.2)
    assert figures.accuracy_over_time(lower).axes[-1].get_ylim()[0] < 0.2


def test_scores_that_are_close_are_drawn_once_more_on_an_axis_of_their_own():
    result = mas_result(forgets=0.01)
    closer, whole = figures.accuracy_over_time(result).axes
    assert closer.get_ylim()[0] > 0.9 > whole.get_ylim()[0]
    assert len(figures.accuracy_over_time(mas_result(forgets=0.3)).axes) == 1


def test_lines_that_are_equal_have_markers_apart():
    axes = figures.accuracy_over_time(hat_result()).axes[0]
    places = [line.get_xdata()[-1] for line in axes.lines[:3]]
    assert len(set(places)) == len({line.get_marker() for line in axes.lines[:3]}) == 3
    assert all(abs(place - 2) < 0.5 for place in places)


def test_joint_training_is_a_line_where_it_was_measured():
    result = hat_result()
    together = [[0.9, None, None], [0.8, 0.8, None], [0.7, 0.7, 0.7]]
    result["references"] = {"together": together, "scratch": [0.9] * 3}
    axes = figures.accuracy_over_time(result).axes[0]
    (line,) = [line for line in axes.lines if line.get_label() == "joint training, mean"]
    assert list(line.get_ydata()) == pytest.approx([0.9, 0.8, 0.7])


def test_chance_is_known_of_classes_alone():
    result = hat_result()
    assert chance_of(result) == [0.5] * 3
    assert chance_of(result | {"chance": [0.1, 0.2, 0.3]}) == [0.1, 0.2, 0.3]
    result["scenario"]["metric"] = "mse"
    assert chance_of(result) is None


@pytest.mark.parametrize("epochs", [[1], [100] * 20, [1] * 400])
def test_few_and_very_many_epochs_are_drawn_and_stay_small(epochs):
    result = hat_result(len(epochs)) | by_epoch(epochs)
    pictures = [p for p in figures.pictures_of(result) if p.name in ALL]
    assert max(len(figures.drawn(picture, result)) for picture in pictures) < 100_000


@pytest.mark.parametrize(("tasks", "done"), [(1, 0), (5, 0), (5, 2), (60, 3)])
def test_a_run_on_its_way_has_a_page(tmp_path, tasks, done):
    result = json.loads(json.dumps(in_training(tasks, done)))
    path = tmp_path / "watch.html"
    report.write_page(result, path, note="In training; task 2.", reload=5)
    text = path.read_text()
    words = " ".join(Links(text).words)
    assert "In training; task 2." in words
    assert '<meta http-equiv="refresh" content="5">' in text
    assert "Training loss" in words and "Masks by layer" not in words
    assert ("mean accuracy so far" in words) == (done > 0)
    assert "weights protected" not in words
    assert [p.name for p in tmp_path.iterdir()] == ["watch.html"]
    report.write_page(result, path)
    assert "refresh" not in path.read_text()
