"""Finished runs that go on: with more tasks of their scenario, or with another scenario's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from maskcl import cli
from tests import tiny

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

from maskcl.cli import continuing
from maskcl.cli.app import METHODS
from maskcl.cli.export import _inputs
from maskcl.cli.saved_network import Described, network_as_made
from maskcl.training.trainer import Trainer

OWN = {"hat": [], "piggyback": ["--base", "random"], "mas": [], "ewc": []}
SMALL = ["--scenario", "split-digits", "--hidden", "16", "--epochs", 2]
TWO, FOUR = "0,1/2,3", "0,1/2,3/4,5/6,7"


def train(method, *arguments):
    return cli.main(["train", method, *map(str, arguments)])


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def network_of(folder: Path, method: str):
    run = continuing.read_finished(folder, method)
    net = network_as_made(METHODS[method], run.options, run.made_from, run.cut)
    run.load_into(net)
    return net.eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each method a run of two tasks and one of the same and two more."""
    folder = tmp_path_factory.mktemp("runs")
    for method, own in OWN.items():
        for name, groups in (("two", TWO), ("four", FOUR)):
            out = folder / f"{method}-{name}"
            assert train(method, *SMALL, *own, "--groups", groups, "--out", out) == 0
    return folder


@pytest.fixture
def two(runs, tmp_path):
    """By method, a copy of the run of two tasks."""

    def copied(method: str) -> Path:
        shutil.copytree(runs / f"{method}-two", tmp_path / "run")
        return tmp_path / "run"

    return copied


def interrupt(monkeypatch, task: int, epoch: int, error: type[BaseException] = KeyboardInterrupt):
    """Let training stop where this epoch begins."""
    whole = Trainer._train_epoch

    def stopped(self, running, at):
        if (running.task, at) == (task, epoch):
            raise error("Trainer: stopped")
        whole(self, running, at)

    monkeypatch.setattr(Trainer, "_train_epoch", stopped)


def assert_equal_runs(found: Path, wanted: Path) -> None:
    a, b = result_of(found), result_of(wanted)
    for name in b.keys() - {"configuration", "seconds", "environment"}:
        assert a[name] == b[name], name
    assert content(found).keys() == content(wanted).keys()


@pytest.mark.parametrize("method", OWN)
def test_two_tasks_and_two_more_are_a_run_of_four(runs, two, method):
    run = two(method)
    assert train(method, "--out", run, "--add-tasks", 2, "--groups", FOUR) == 0
    assert_equal_runs(run, runs / f"{method}-four")
    assert json.loads((run / "config.json").read_text())["groups"] == FOUR
    assert train(method, "--out", run, "--resume") == 0
    assert_equal_runs(run, runs / f"{method}-four")


def test_a_scenario_that_can_give_more_needs_no_groups(tmp_path):
    small = ["--scenario", "permuted-digits", "--hidden", 16, "--epochs", 1]
    for name, tasks in (("run", 2), ("whole", 3)):
        assert train("hat", *small, "--tasks", tasks, "--out", tmp_path / name) == 0
    assert train("hat", "--out", tmp_path / "run", "--add-tasks", 1) == 0
    found, wanted = result_of(tmp_path / "run"), result_of(tmp_path / "whole")
    # One output layer for all: that two of three were scored before the third is not the same.
    assert found["accuracy"][2] == wanted["accuracy"][2]
    assert found["weights_sha256"] == wanted["weights_sha256"]


@pytest.mark.parametrize("method", OWN)
def test_interrupted_it_leaves_the_run_and_resumes(runs, two, method, monkeypatch, capsys):
    run = two(method)
    before = content(run)
    interrupt(monkeypatch, 3, 1)
    assert train(method, "--out", run, "--add-tasks", 2, "--groups", FOUR) == 130
    assert f"maskcl train {method} --out {run} --resume" in capsys.readouterr().err
    assert {n: b for n, b in content(run).items() if not n.startswith("adding/")} == before
    monkeypatch.undo()
    assert train(method, "--out", run, "--add-tasks", 2, "--groups", FOUR) == 2
    assert "adding exists already (--resume goes on with it)" in capsys.readouterr().err
    assert train(method, "--out", run, "--resume") == 0
    assert_equal_runs(run, runs / f"{method}-four")


def test_a_run_that_fails_leaves_what_was_there(two, monkeypatch, capsys):
    run = two("hat")
    before = content(run)
    interrupt(monkeypatch, 2, 0, RuntimeError)
    assert train("hat", "--out", run, "--add-tasks", 2, "--groups", FOUR) == 1
    assert {n: b for n, b in content(run).items() if not n.startswith("adding/")} == before


@pytest.mark.parametrize("moves", [0, 3, 7])
def test_killed_while_its_files_change_it_goes_on(runs, two, moves, monkeypatch):
    run, left = two("hat"), [moves]
    whole = Path.replace

    def stopped(self, target):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return whole(self, target)

    monkeypatch.setattr(Path, "replace", stopped)
    assert train("hat", "--out", run, "--add-tasks", 2, "--groups", FOUR) == 130
    monkeypatch.undo()
    assert train("hat", "--out", run, "--resume") == 0
    assert_equal_runs(run, runs / "hat-four")


@pytest.mark.parametrize("method", OWN)
def test_another_scenario_on_a_runs_network(runs, tmp_path, method, monkeypatch, capsys):
    run, out = runs / f"{method}-two", tmp_path / "after"
    before = content(run)
    more = ["--from", run, "--scenario", "split-digits", "--groups", "4,5,6/8,9", "--out"]
    assert train(method, *more, out) == 0
    assert content(run) == before
    result = result_of(out)
    assert len(result["accuracy"]) == result["scenario"]["num_tasks"] == 2
    config = json.loads((out / "config.json").read_text())
    assert config["made_from"]["continues"]["run"] == str(run)
    assert (config["hidden"], config["groups"]) == ([16], "4,5,6/8,9")
    net, old = network_of(out, method), network_of(run, method)
    assert net.num_tasks == 4
    x = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    if method in ("hat", "piggyback"):
        for task in range(2):
            assert torch.equal(tiny.logits(net, task, x), tiny.logits(old, task, x))
    assert tiny.logits(net, 2, x).shape == (50, 3)

    interrupt(monkeypatch, 1, 1)
    assert train(method, *more, tmp_path / "stopped") == 130
    monkeypatch.undo()
    assert train(method, "--out", tmp_path / "stopped", "--resume") == 0
    assert_equal_runs(tmp_path / "stopped", out)


def test_interrupted_before_its_first_epoch_it_still_has_the_network(runs, tmp_path, monkeypatch):
    more = ["--from", runs / "hat-two", "--scenario", "split-digits", "--groups", "4,5", "--out"]
    assert train("hat", *more, tmp_path / "whole") == 0
    interrupt(monkeypatch, 0, 0)
    assert train("hat", *more, tmp_path / "stopped") == 130
    monkeypatch.undo()
    assert train("hat", "--out", tmp_path / "stopped", "--resume") == 0
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_a_chain_of_runs_is_exported_task_by_task(runs, tmp_path, capsys):
    shutil.copytree(runs / "piggyback-two", tmp_path / "first")
    step = ["--scenario", "split-digits", "--groups"]
    chain = [tmp_path / name for name in ("first", "second", "third")]
    assert train("piggyback", "--from", chain[0], *step, "4,5", "--out", chain[1]) == 0
    assert train("piggyback", "--from", chain[1], *step, "6,7", "--out", chain[2]) == 0
    assert train("piggyback", "--out", chain[2], "--add-tasks", 1, "--groups", "6,7/8,9") == 0
    shutil.rmtree(chain[0])  # all that is needed of it is in the runs that went on
    assert train("piggyback", "--out", chain[2], "--resume") == 0
    assert [f["file"] for f in result_of(chain[2])["mask_files"]] == [
        "masks/task-3.safetensors",
        "masks/task-4.safetensors",
    ]
    for task, classes in enumerate(("0 1", "2 3", "4 5", "6 7", "8 9")):
        out = tmp_path / f"{task}.safetensors"
        arguments = ["masks", "export", str(chain[2]), "--task", str(task), "-o", str(out)]
        assert cli.main(arguments) == 0
        assert cli.main(["masks", "inspect", str(out)]) == 0
        assert f"classes: {classes}" in capsys.readouterr().out
    assert cli.main(["export", str(chain[2]), "--task", "1", "-o", str(tmp_path / "t.pt2")]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--add-tasks", 0], "add-tasks must be at least 1, got 0"),
        (["--add-tasks", 1, "--tasks", 3], "leave --tasks out"),
        (["--add-tasks", 1], "has groups 0,1/2,3: --groups must go on from there, with 3 in all"),
        (["--add-tasks", 1, "--groups", "0,1/3,2/4,5"], "--groups must go on from there"),
        (["--add-tasks", 2, "--groups", "0,1/2,3/4,5"], "with 4 in all"),
        (["--add-tasks", 1, "--groups", "0,1/2,3/4,x"], "groups must be classes such as 0,1/2,3"),
        (["--add-tasks", 1, "--groups", "0,1/2,3/3,4"], "each class at most once"),
        (["--add-tasks", 1, "--groups", "0,1/2,3/4,5", "--epochs", 9], "--add-tasks cannot change"),
        (["--add-tasks", 1, "--resume"], "exclude each other"),
        (["--add-tasks", 1, "--from", "x"], "exclude each other"),
    ],
)
def test_tasks_that_cannot_be_added(two, arguments, sentence, capsys):
    run = two("hat")
    before = content(run)
    assert train("hat", "--out", run, *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert content(run) == before


def test_an_even_cut_into_more_tasks_has_other_classes(tmp_path, capsys):
    small = [*SMALL, "--epochs", 1, "--tasks", 2]
    assert train("hat", *small, "--out", tmp_path / "run") == 0
    assert train("hat", "--out", tmp_path / "run", "--add-tasks", 1) == 2
    error = capsys.readouterr().err
    assert "does not begin with the 2 of" in error
    assert "they differ in classes" in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--scenario is missing"),
        (["--scenario", "permuted-digits"], "in the domain setting shared"),
        (["--scenario", "nodes-digits"], "model mlp does not go with nodes-digits"),
        (["--scenario", "split-digits", "--hidden", 32], "which --from cannot change to (32,)"),
        (["--scenario", "split-digits", "--seed", 1], "has seed 0, which --from cannot change"),
    ],
)
def test_scenarios_that_do_not_fit(runs, tmp_path, arguments, sentence, capsys):
    out = tmp_path / "after"
    assert train("hat", "--from", runs / "hat-two", *arguments, "--out", out) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_runs_that_cannot_go_on(runs, two, tmp_path, monkeypatch, capsys):
    run = two("hat")
    assert train("hat", "--from", run, "--scenario", "split-digits", "--out", run) == 2
    assert "exists already" in capsys.readouterr().err
    assert train("mas", "--from", run, "--scenario", "split-digits", "--out", tmp_path / "a") == 2
    assert "holds a run of hat" in capsys.readouterr().err
    interrupt(monkeypatch, 1, 0)
    assert train("hat", *SMALL, "--out", tmp_path / "half") == 130
    for way in (
        ["--add-tasks", 1, "--out", tmp_path / "half"],
        ["--from", tmp_path / "half", "--scenario", "split-digits", "--out", run / "x"],
    ):
        assert train("hat", *way) == 2
        assert "is not finished: `maskcl train hat --out" in capsys.readouterr().err


def test_a_growing_head_gains_tasks_but_takes_no_other_scenario(tmp_path, capsys):
    small = [*SMALL, "--setting", "class"]
    assert train("mas", *small, "--groups", TWO, "--out", tmp_path / "run") == 0
    after = ["--from", tmp_path / "run", "--scenario", "split-digits", "--setting", "class"]
    assert train("mas", *after, "--out", tmp_path / "after") == 2
    assert "begin at 0 again; --add-tasks goes on" in capsys.readouterr().err
    assert train("mas", "--out", tmp_path / "run", "--add-tasks", 2, "--groups", FOUR) == 0
    assert len(result_of(tmp_path / "run")["accuracy"]) == 4


@pytest.mark.parametrize("infer", ["shared", "masked"])
def test_inferred_tasks_go_on_with_another_scenario(tmp_path, infer):
    small = [*SMALL, "--setting", "class", "--epochs", 3, "--infer", infer]
    assert train("hat", *small, "--groups", TWO, "--out", tmp_path / "run") == 0
    after = ["--from", tmp_path / "run", "--scenario", "split-digits", "--setting", "class"]
    assert train("hat", *after, "--groups", "6,7/8,9", "--out", tmp_path / "after") == 0
    found = result_of(tmp_path / "after")["inference"]
    assert min(found["told"][1]) > 0.6
    assert len(found["confusion"]) == 2
    # More tasks of the run's own scenario: as one run of all of them.
    assert train("hat", "--out", tmp_path / "run", "--add-tasks", 2, "--groups", FOUR) == 0
    assert train("hat", *small, "--groups", FOUR, "--out", tmp_path / "whole") == 0
    more, whole = (result_of(tmp_path / name)["inference"] for name in ("run", "whole"))
    assert more == whole


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("scenario", ["nodes-digits", "links-digits", "graphs-digits"])
def test_runs_on_graphs_go_on_too(tmp_path, method, scenario):
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    small = ["--scenario", scenario, "--hidden", "8", "--epochs", 1, "--groups", "0,1", "--out"]
    assert train(method, *small, tmp_path / "run") == 0
    run = continuing.read_finished(tmp_path / "run", method)
    inputs = _inputs(run.options["model"], Described.of(run.cut), 20)
    before = outputs(network_of(tmp_path / "run", method), inputs)
    more = ["--scenario", scenario, "--groups", "4,5,6", "--out", tmp_path / "after"]
    assert train(method, "--from", tmp_path / "run", *more) == 0
    assert train(method, "--out", tmp_path / "run", "--add-tasks", 1, "--groups", "0,1/2,3") == 0
    for folder in ("run", "after"):
        net = network_of(tmp_path / folder, method)
        assert net.finished.tolist() == [True, True]
        if method in ("hat", "piggyback"):
            assert torch.equal(outputs(net, inputs), before)


@torch.no_grad()
def outputs(net, inputs) -> torch.Tensor:
    with net.task(0):
        return net(*inputs).clone()
