"""``maskcl watch`` and ``maskcl report --out``: pages of runs at work and of several runs."""

import json
import shutil
import threading
import time

import pytest

from maskcl.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from maskcl.cli import main
from maskcl.cli.watch import watch
from maskcl.extras import install

SMALL = ("train", "hat", "--scenario", "split-digits", "--tasks", "2", "--epochs", "2",
         "--hidden", "20,20", "--device", "cpu")  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert main([*SMALL, "--out", str(directory)]) == 0
    return directory


@pytest.fixture
def at_work(finished, tmp_path):
    """A run's folder in the middle of its second task."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "config.json", run)
    whole = load_checkpoint(finished / "checkpoint.safetensors")
    result = json.loads(json.dumps(whole.facts["result"]))
    result["matrix"][1] = [float("nan")] * 2
    result["measures"] = result["measures"][:1]
    for key in ("losses", "accuracies"):
        result[key][1] = result[key][1][:1]
    position = {"task": 1, "epoch": 1, "first_task": 0}
    facts = {**whole.facts, "result": result}
    save_checkpoint(
        run / "checkpoint.safetensors", Checkpoint(whole.config, position, whole.tensors, facts)
    )
    return run


def until(page, words):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if page.exists() and words in page.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{page} never said {words}")


def test_a_run_at_work_has_a_page_that_reloads_until_it_is_finished(finished, at_work, capsys):
    watcher = threading.Thread(target=watch, args=(at_work, 0.05), daemon=True)
    watcher.start()
    until(at_work / "watch.html", "In training; task 1 (2 of 2), epoch 1/2, loss ")
    assert 'http-equiv="refresh" content="5"' in (at_work / "watch.html").read_text()
    before = (at_work / "checkpoint.safetensors").read_bytes()
    for name in ("checkpoint.safetensors", "result.json"):
        shutil.copy(finished / name, at_work / f"{name}.new")
        (at_work / f"{name}.new").rename(at_work / name)
    watcher.join(60)
    assert not watcher.is_alive()
    page = (at_work / "watch.html").read_text()
    assert "Finished" in page and "refresh" not in page
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"page: {at_work / 'watch.html'}"
    assert said[1].startswith("task 1 (2 of 2), epoch 1/2, loss ")
    assert said[-1] == f"finished: {at_work / 'report.html'}"
    assert sorted(p.name for p in at_work.iterdir()) == [
        "checkpoint.safetensors", "config.json", "result.json", "watch.html",
    ]  # fmt: skip
    assert before != (at_work / "checkpoint.safetensors").read_bytes()


def test_a_trainers_run_is_over_after_its_last_task(finished, tmp_path, capsys):
    shutil.copy(finished / "checkpoint.safetensors", tmp_path)
    watch(tmp_path, 0.05)
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("task 1 (2 of 2), epoch 2/2, loss ")
    assert said[-1] == f"finished: {tmp_path / 'watch.html'}"
    page = (tmp_path / "watch.html").read_text()
    assert "Trained; task 1" in page and "refresh" not in page


def test_a_run_that_stands_still_is_said_to(at_work, monkeypatch, capsys):
    from maskcl.cli import watch as module

    monkeypatch.setattr(module, "STILL", 0.2)
    looks = iter(range(12))

    def sleep(seconds):
        if next(looks) == 11:
            raise KeyboardInterrupt
        monotonic[0] += 0.1

    monotonic = [0.0]
    monkeypatch.setattr(module.time, "sleep", sleep)
    monkeypatch.setattr(module.time, "monotonic", lambda: monotonic[0])
    watch(at_work, 0.1)
    said = capsys.readouterr().out.splitlines()
    assert sum("the run is slow, or has died" in line for line in said) == 1
    assert "--resume" in " ".join(said)
    assert said[-1] == "no longer watched; the run goes on"
    assert "has died" in (at_work / "watch.html").read_text()


@pytest.mark.parametrize("content", [None, "empty", "damaged"])
def test_what_is_no_run_is_a_sentence(tmp_path, capsys, content):
    run = tmp_path / "run"
    if content is not None:
        run.mkdir()
    if content == "damaged":
        (run / "checkpoint.safetensors").write_bytes(b"x" * 100)
    assert main(["watch", str(run)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("maskcl: ") and str(run) in said and "Traceback" not in said
    assert not (run / "watch.html").exists()


def test_runs_are_compared_in_a_new_folder(finished, tmp_path, capsys):
    out = tmp_path / "new" / "compared"
    assert main(["report", str(finished), str(finished), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{finished} is given twice: it counts once" in said
    assert f"report: {out / 'report.html'}" in said
    assert sorted(p.name for p in out.iterdir()) == ["report.html", "runs.csv", "tasks.csv"]
    kept = (out / "report.html").read_text()
    assert main(["report", str(finished), "--out", str(out)]) == 2
    assert f"{out} exists already" in capsys.readouterr().err
    assert (out / "report.html").read_text() == kept
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_a_run_that_could_not_be_drawn_does_not_begin(tmp_path, monkeypatch, capsys):
    from maskcl import report

    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert main([*SMALL, "--out", str(tmp_path / "run")]) == 2
    assert install("train") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_table_says_what_its_columns_are(finished, capsys):
    assert main(["report", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "ACC: mean final accuracy" in said
    assert "BWT: final minus just-trained accuracy, negative is forgetting" in said


def test_a_pretrained_base_is_no_run_to_watch(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"format": "maskcl-base", "scenario": "split-digits"}')
    assert main(["watch", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("config.json is not a run's configuration\n")


@pytest.mark.parametrize("every", ["inf", "1e300"])
def test_seconds_without_an_end_are_refused(at_work, capsys, every):
    assert main(["watch", str(at_work), "--every", every]) == 2
    assert "every must be at most" in capsys.readouterr().err
