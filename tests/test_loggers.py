"""Callbacks that keep a run's figures."""

import csv

import numpy as np
import pytest

import maskcl
from maskcl.callback import Callback
from maskcl.loggers import CSVLogger, TensorBoardLogger
from maskcl.problems import Vision
from tests import tiny


def trainer(**changed):
    return maskcl.Trainer(
        tiny.network("mlp", 3), maskcl.HAT(sparsity=0.2), Vision(), tiny.scenario(3),
        tiny.OPTIMIZERS["adam"], epochs=2, batch_size=8, device="cpu", **changed,
    )  # fmt: skip


def rows(path):
    return list(csv.DictReader(path.open()))


def test_a_csv_file_has_every_figure_of_the_result(tmp_path):
    path = tmp_path / "run.csv"
    result = trainer(callback=CSVLogger(path)).fit()
    found = rows(path)
    for task, losses in enumerate(result.losses):
        own = [float(r["value"]) for r in found if (r["task"], r["figure"]) == (str(task), "loss")]
        assert own == losses
    scores = {(int(r["task"]), r["figure"]): float(r["value"]) for r in found}
    for task, row in enumerate(result.matrix.tolist()):
        own = {f"test of task {k}": score for k, score in enumerate(row) if not np.isnan(score)}
        assert {name: scores[task, name] for name in own} == own
        assert len([key for key in scores if key[0] == task]) == 2 + len(own)


def test_a_csv_file_of_a_killed_and_resumed_run_is_that_of_a_whole_one(tmp_path):
    class Kill(Callback):
        def on_epoch_start(self, task, epoch, batches):
            if (task, epoch) == (1, 1):
                raise KeyboardInterrupt

    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    trainer(callback=CSVLogger(whole)).fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(callback=[CSVLogger(killed), Kill()], directory=tmp_path / "run").fit()
    trainer(callback=CSVLogger(killed), directory=tmp_path / "run").fit(resume=True)
    assert rows(killed) == rows(whole)


@pytest.mark.parametrize("last", [0, 2])
def test_scores_of_a_task_that_was_saved_and_not_told_of_are_caught_up(last, tmp_path):
    class Kill(Callback):
        def on_task_end(self, task, scores):
            if task == last:
                raise KeyboardInterrupt

    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    trainer(callback=CSVLogger(whole)).fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(callback=[Kill(), CSVLogger(killed)], directory=tmp_path / "run").fit()
    trainer(callback=CSVLogger(killed), directory=tmp_path / "run").fit(resume=True)
    assert rows(killed) == rows(whole)


def test_a_file_that_is_there_is_not_written_over(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("mine\n")
    with pytest.raises(FileExistsError, match=r"mine\.csv exists, wanted a new file"):
        trainer(callback=CSVLogger(path)).fit()
    with pytest.raises(ValueError, match="has columns"):
        trainer(callback=CSVLogger(path), directory=tmp_path / "run").fit(resume=True)
    assert path.read_text() == "mine\n"


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard", reason="there is no tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = trainer(callback=TensorBoardLogger(tmp_path)).fit()
    read = EventAccumulator(str(tmp_path)).Reload()
    losses = [event.value for event in read.Scalars("train/loss")]
    assert losses == pytest.approx([loss for task in result.losses for loss in task])
    assert [event.step for event in read.Scalars("test/task 1")] == [1, 2]


def test_callbacks_get_the_trainer_and_are_closed_whatever_happens(tmp_path):
    class Watch(Callback):
        closed = 0

        def on_task_end(self, task, scores):
            assert isinstance(self.trainer, maskcl.Trainer)
            raise RuntimeError("stop")

        def close(self):
            self.closed += 1

    watch = Watch()
    made = trainer(callback=[watch])
    with pytest.raises(RuntimeError, match="stop"):
        made.fit()
    assert watch.trainer is made
    assert watch.closed == 1


def test_a_class_is_no_callback():
    with pytest.raises(TypeError, match="callback is CSVLogger, wanted an object of a Callback's"):
        trainer(callback=[CSVLogger])
