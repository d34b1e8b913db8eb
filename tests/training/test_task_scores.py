"""Which entries of the matrix are measured, and what of the metrics is defined then."""

from __future__ import annotations

import numpy as np
import pytest

from maskcl import metrics
from maskcl.callback import Callback
from maskcl.methods import MAS
from maskcl.nn.inference.task_inference import TaskInference
from tests import tiny
from tests.training.test_trainer import make

FOUR = 4


def run(evaluate, setting: str = "task", **changed):
    if setting == "task":
        net, changed = tiny.network("mlp", FOUR), {"epochs": 1} | changed
    else:
        net, changed = tiny.importance("mlp", FOUR, setting=setting), {"method": MAS()} | changed
    return make(net, tiny.scenario(FOUR, setting=setting), evaluate=evaluate, **changed)


@pytest.mark.parametrize(
    ("evaluate", "whole"),
    [("all", {0, 1, 2, 3}), ("last", {3}), (2, {1, 3}), (3, {2, 3}), (9, {3})],
)
@pytest.mark.parametrize("setting", ["task", "domain", "class"])
def test_rows_that_were_asked_for_are_whole_and_the_others_have_their_own_task(
    evaluate, whole, setting
):
    wanted = run("all", setting).fit().matrix
    found = run(evaluate, setting).fit().matrix
    for row in range(FOUR):
        if row in whole:
            np.testing.assert_array_equal(found[row], wanted[row])
        else:
            assert found[row, row] == wanted[row, row]
            assert np.isnan(np.delete(found[row], row)).all()


def test_the_metrics_say_what_they_lack():
    found = metrics.all_metrics(run("last").fit().matrix)
    assert all(np.isfinite(found[name].value) for name in ("ACC", "BWT", "AF"))
    for name in ("AIA", "F", "FWT"):
        assert np.isnan(found[name].value)
    assert found["AIA"].reason == found["F"].reason == "M[1, 0] was not measured"


def test_where_tasks_are_inferred_the_same_rows_are():
    def inferred(evaluate):
        net = tiny.network("mlp", FOUR)
        return make(
            net, tiny.scenario(FOUR, setting="class"), evaluate=evaluate, epochs=1,
            inference=TaskInference(features=40),
        ).fit()  # fmt: skip

    wanted, found = inferred("all"), inferred("last")
    for name in ("identified", "told"):
        a, b = (getattr(result.inference, name) for result in (wanted, found))
        np.testing.assert_array_equal(b[-1], a[-1])
        np.testing.assert_array_equal(b.diagonal(), a.diagonal())
        assert np.isnan(b[2, :2]).all()


def test_a_task_costs_one_test_where_the_last_row_alone_is_asked_for(monkeypatch):
    scored = []
    from maskcl.training import task_scores

    real = task_scores.score_task

    def counted(*args, **more):
        scored.append(args[4])
        return real(*args, **more)

    class Begin(Callback):
        def on_task_start(self, task, epochs, first_epoch):
            scored.append("begin")

    monkeypatch.setattr(task_scores, "score_task", counted)
    run("last", callback=Begin()).fit()
    after = scored[scored.index("begin") :]
    assert after == ["begin", 0, "begin", 1, "begin", 2, "begin", 0, 1, 2, 3]
