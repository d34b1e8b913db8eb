"""``maskcl train finetune``, ``joint`` and ``independent`` as a person uses them."""

import json

import numpy as np
import pytest

from maskcl import cli
from tests.cli.refusal import refused

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

BASELINES = ("finetune", "joint", "independent")
SMALL = ["--scenario", "split-digits", "--tasks", 3, "--hidden", 16, "--epochs", 3]


def run(*arguments):
    return cli.main([*map(str, arguments)])


def train(method, *arguments):
    return run("train", method, *arguments)


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


def matrix_of(directory):
    return np.array(result_of(directory)["accuracy"], dtype=float)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Runs of all three on the same tasks, which are hard to keep: one head answers for all."""
    folder = tmp_path_factory.mktemp("runs")
    arguments = ["--scenario", "permuted-digits", "--tasks", 3, "--hidden", 32, "--epochs", 6]
    for name in BASELINES:
        assert train(name, *arguments, "--out", folder / name) == 0
    return folder


def test_finetuning_forgets_what_the_others_have(finished):
    kept = {name: np.nanmean(matrix_of(finished / name)[-1]) for name in BASELINES}
    assert kept["finetune"] < kept["joint"] - 0.1
    assert kept["finetune"] < kept["independent"] - 0.1
    assert result_of(finished / "finetune")["metrics"]["F"]["value"] > 0.1


def test_independent_networks_forget_nothing_and_know_nothing_of_later_tasks(finished):
    matrix = matrix_of(finished / "independent")
    for task in range(3):
        assert np.isnan(matrix[:task, task]).all()
        assert (matrix[task:, task] == matrix[task, task]).all()
    assert result_of(finished / "independent")["metrics"]["F"]["value"] == 0


def test_the_parameters_are_of_all_networks(finished, tmp_path):
    one = result_of(finished / "finetune")["parameters"]
    assert result_of(finished / "joint")["parameters"] == one
    assert result_of(finished / "independent")["parameters"] == 3 * one
    # With a head a task, each network has its own alone.
    assert train("independent", *SMALL, "--epochs", 1, "--out", tmp_path / "run") == 0
    body, heads = 64 * 16 + 16, (16 + 1) * 10
    assert result_of(tmp_path / "run")["parameters"] == 3 * body + heads


def test_report_compares_them_with_methods(finished, tmp_path, capsys):
    arguments = ["--scenario", "permuted-digits", "--tasks", 3, "--hidden", 32, "--epochs", 6]
    assert train("hat", *arguments, "--out", tmp_path / "hat") == 0
    capsys.readouterr()
    assert run("report", *(finished / name for name in BASELINES), tmp_path / "hat") == 0
    said = capsys.readouterr().out
    for name in (*BASELINES, "hat"):
        assert name in said
        folder = tmp_path / "hat" if name == "hat" else finished / name
        assert (folder / "report.html").is_file()
    page = (finished / "joint" / "report.html").read_text()
    assert "trained from the same weights on all tasks up to it together" in page


@pytest.mark.parametrize("name", BASELINES)
def test_an_interrupted_run_ends_in_the_same_bits(tmp_path, monkeypatch, name):
    from maskcl.progress import Lines

    assert train(name, *SMALL, "--out", tmp_path / "whole") == 0

    def stop(self, task, epoch, loss, accuracy, outlook):
        if (task, epoch) == (1, 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Lines, "on_epoch_end", stop)
        assert train(name, *SMALL, "--out", tmp_path / "run") == 130
    assert train(name, "--out", tmp_path / "run", "--resume") == 0
    again, whole = result_of(tmp_path / "run"), result_of(tmp_path / "whole")
    for key in ("weights_sha256", "accuracy", "losses", "untrained"):
        assert again[key] == whole[key]


def test_only_finetuning_depends_on_the_tasks_before(tmp_path):
    hashes = {}
    for name in ("finetune", "independent"):
        for first in ("0,1", "8,9"):
            out = tmp_path / f"{name}-{first}"
            own = ["--groups", f"{first}/2,3", "--hidden", 16, "--epochs", 2, "--out", out]
            assert train(name, "--scenario", "split-digits", *own) == 0
            hashes[name, first] = result_of(out)["weights_sha256"]
    assert hashes["independent", "0,1"] == hashes["independent", "8,9"]
    assert hashes["finetune", "0,1"] != hashes["finetune", "8,9"]


@pytest.mark.parametrize("setting", ["domain", "class"])
def test_settings_without_heads_of_their_own(tmp_path, setting):
    arguments = ["--scenario", "split-digits", "--tasks", 2, "--hidden", 16, "--epochs", 8]
    for name in ("finetune", "joint"):
        own = [*arguments, "--setting", setting, "--out", tmp_path / name]
        assert train(name, *own) == 0
    joint, finetune = (matrix_of(tmp_path / name)[-1] for name in ("joint", "finetune"))
    # Whatever the task, the joint network has learned both.
    assert joint.min() > finetune.min()
    assert joint.min() > (0.6 if setting == "class" else 0.5)


@pytest.mark.parametrize("scenario", ["nodes-digits", "links-digits", "graphs-digits"])
@pytest.mark.parametrize("name", BASELINES)
def test_graphs_are_trained_alike(tmp_path, scenario, name):
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    small = ["--scenario", scenario, "--tasks", 2, "--hidden", "8,8", "--epochs", 1]
    assert train(name, *small, "--out", tmp_path / "run") == 0
    assert np.isfinite(matrix_of(tmp_path / "run")[-1]).all()


def test_a_finetuned_run_goes_on_with_more_tasks(tmp_path):
    own = ["--scenario", "split-digits", "--hidden", 16, "--epochs", 1]
    groups = ["0,1/2,3", "0,1/2,3/4,5"]
    assert train("finetune", *own, "--groups", groups[0], "--out", tmp_path / "run") == 0
    more = ["--add-tasks", 1, "--groups", groups[1], "--out", tmp_path / "run"]
    assert train("finetune", *more) == 0
    assert matrix_of(tmp_path / "run").shape == (3, 3)


def test_independent_networks_take_the_trainers_options(tmp_path):
    own = ["--validation", 0.2, "--patience", 1, "--lr-schedule", "cosine", "--evaluate", "last"]
    assert train("independent", *SMALL, *own, "--out", tmp_path / "run") == 0
    matrix = matrix_of(tmp_path / "run")
    assert np.isfinite(np.tril(matrix)).all()
    assert (matrix[2, :2] == matrix.diagonal()[:2]).all()


BAD = [
    ("joint", ["--infer", "shared", "--setting", "domain"], "infer does not go with joint"),
    ("joint", ["--validation", "0.1"], "validation does not go with joint"),
    ("joint", ["--accumulate", "2"], "accumulate does not go with joint"),
    ("joint", ["--references"], "references does not go with joint"),
    ("independent", ["--references"], "references does not go with independent"),
    ("independent", ["--setting", "class"], "the class setting does not tell the task at test"),
    ("joint", ["--add-tasks", "1"], "joint trains a fresh network for each task"),
    ("independent", ["--from", "x"], "independent trains a fresh network for each task"),
    ("finetune", ["--lr", "-1"], "lr must be above 0"),
]


@pytest.mark.parametrize(("method", "arguments", "sentence"), BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(
    tmp_path, capsys, method, arguments, sentence
):
    refused(capsys, sentence, "train", method, *SMALL, "--out", tmp_path / "run", *arguments)
    assert not any(tmp_path.iterdir())
