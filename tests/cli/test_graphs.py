"""``maskcl train`` on graph scenarios as a person uses it: files, references, refusals."""

import json
import math

import numpy as np
import pytest
import torch

from maskcl import cli, metrics
from maskcl.cli.mas import EWCOptions, MASOptions
from maskcl.cli.piggyback import PiggybackOptions
from maskcl.masks import read_masks

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")

SMALL = ["--tasks", 2, "--hidden", "8,8"]
NODES = ["--scenario", "nodes-digits", *SMALL]


def train(method, *arguments):
    return cli.main(["train", method, *map(str, arguments)])


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A run of MAS on nodes with references, in the domain setting, where FWT is defined."""
    directory = tmp_path_factory.mktemp("runs") / "mas"
    arguments = [*NODES, "--setting", "domain", "--epochs", 20, "--lr", 0.02, "--references"]
    assert train("mas", *arguments, "--out", directory) == 0
    return directory


def test_result_says_what_the_scores_are_of(compared):
    result = result_of(compared)
    cut = result["scenario"]
    assert result["metric"] == cut["metric"] == "accuracy"
    assert (cut["problem"], cut["setting"]) == ("node", "domain")
    assert cut["detail"]["edges"]
    assert result["problem"]["name"] == "node"
    assert result["problem"]["adjacency"] == "gcn"
    assert result["chance"] == [0.1, 0.1]
    assert "node problem, accuracy, edges: " in result["summary"]


def test_references_are_kept_and_the_metrics_are_of_them(compared):
    result = result_of(compared)
    matrix = np.array(result["accuracy"], dtype=float)
    together = np.array(result["references"]["together"], dtype=float)
    scratch = np.array(result["references"]["scratch"], dtype=float)
    assert math.isnan(together[0, 1])
    wanted = {
        "INT": metrics.intransigence(matrix, together.diagonal()),
        "FTS": metrics.transfer_from_scratch(matrix, scratch),
        "FWT": metrics.forward_transfer(matrix, result["untrained"]),
        "AF": metrics.average_forgetting(matrix),
        "rho": metrics.forgetting_ratio(matrix, result["chance"], together[-1]),
    }
    for name, metric in wanted.items():
        assert metric.reason is None
        assert result["metrics"][name] == metric.to_json()
    # They learned: chance is .1.
    assert scratch.min() > 0.3


def test_the_page_shows_references_and_defines_the_metrics(compared):
    page = (compared / "report.html").read_text()
    for word in ("References", "trained together so far", "intransigence", "T - 1 tasks"):
        assert word in page


def test_references_can_be_added_to_a_finished_run(tmp_path):
    arguments = [*NODES, "--epochs", 1, "--out", tmp_path / "run"]
    assert train("hat", *arguments) == 0
    before = result_of(tmp_path / "run")
    assert before["references"] is None
    assert "--references" in before["metrics"]["INT"]["reason"]
    assert before["metrics"]["FWT"]["value"] is None
    assert train("hat", "--out", tmp_path / "run", "--resume", "--references") == 0
    after = result_of(tmp_path / "run")
    assert after["weights_sha256"] == before["weights_sha256"]
    assert after["metrics"]["INT"]["reason"] is None
    assert after["metrics"]["FTS"]["reason"] is None


@pytest.mark.parametrize(
    ("method", "arguments", "metric"),
    [
        ("hat", ["--scenario", "links-digits", "--model", "sage"], "accuracy"),
        ("piggyback", ["--scenario", "graphs-digits", "--model", "gin"], "accuracy"),
        ("ewc", ["--scenario", "missing-links-digits", "--setting", "time"], "auroc"),
        ("mas", ["--scenario", "nodes-digits", "--setting", "class", "--fanouts", "4,4"],
         "accuracy"),
        ("mas", ["--scenario", "nodes-digits", "--model", "gat", "--batch-norm"], "accuracy"),
    ],
)  # fmt: skip
def test_methods_problems_settings_and_models_go_together(
    tmp_path, capsys, method, arguments, metric
):
    assert train(method, *arguments, *SMALL, "--epochs", 1, "--out", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert f"after task 1 (2 of 2): test {metric} " in said
    result = result_of(tmp_path / "run")
    assert result["metric"] == metric
    assert result["accuracy"][1][1] is not None
    if "class" in arguments:  # at the end it chooses among all ten
        assert result["chance"] == [0.1, 0.1]
    label = {"auroc": "AUROC"}.get(metric, metric)
    assert f"mean {label}" in (tmp_path / "run" / "report.html").read_text()


def test_runs_of_different_metrics_are_not_compared(compared, tmp_path, capsys):
    arguments = ["--scenario", "missing-links-digits", "--setting", "domain", *SMALL]
    assert train("mas", *arguments, "--epochs", 1, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    assert cli.main(["report", str(compared), str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"accuracy in {compared}, auroc in {tmp_path / 'run'}" in said


def test_defaults_follow_the_problem():
    def of(kind, scenario, **other):
        return kind(scenario=scenario, out="x", **other)

    for kind in (MASOptions, EWCOptions):
        assert of(kind, "nodes-digits").reduction == "batch"
        assert of(kind, "links-digits").reduction == "batch"
        assert of(kind, "graphs-digits").reduction == "sample"
        assert of(kind, "split-digits").reduction == "sample"
        assert of(kind, "nodes-digits", setting="time").heads is True
        assert of(kind, "nodes-digits", setting="class").heads is False
        assert of(kind, "nodes-digits").model == "gcn"
        assert of(kind, "split-digits").model == "mlp"
    whole, sampled = of(MASOptions, "nodes-digits"), of(MASOptions, "nodes-digits", fanouts=(4,))
    assert whole.epochs > sampled.epochs == of(MASOptions, "split-digits").epochs
    assert of(PiggybackOptions, "nodes-digits").base == "random"


BAD = [
    ("hat", ["--scenario", "missing-links-digits", "--setting", "time"], "wanted accuracy"),
    ("hat", [*NODES, "--setting", "class", "--infer", "none"], "HAT chooses the mask by the task"),
    (
        "piggyback",
        [*NODES, "--setting", "time", "--infer", "none"],
        "Piggyback chooses the mask by the task",
    ),
    ("mas", [*NODES, "--reduction", "sample"], 'reduction="batch"'),
    ("mas", ["--scenario", "missing-links-digits", "--setting", "task"], "no classes"),
    ("mas", ["--scenario", "planetoid"], "--data"),
    ("mas", [*NODES, "--variant", "cora"], "variant"),
    ("mas", [*NODES, "--metric", "auc"], "auc"),
    ("mas", [*NODES, "--setting", "task", "--metric", "hits@500"], "hits@500"),
    ("mas", [*NODES, "--model", "mlp"], "wanted one of gcn, sage, gin, gat"),
    ("mas", ["--scenario", "split-digits", "--model", "gcn"], "wanted one of mlp, conv, resnet18"),
    ("mas", ["--scenario", "links-digits", "--fanouts", "4"], "links-digits is a link problem"),
    ("mas", ["--scenario", "split-digits", "--batch-norm"], "belongs to graph models"),
    ("mas", [*NODES, "--data", "/no/such"], "reads no --data"),
    ("piggyback", [*NODES, "--base", "/no/such"], "whose only base is random"),
]


@pytest.mark.parametrize(("method", "arguments", "sentence"), BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(
    tmp_path, capsys, method, arguments, sentence
):
    assert train(method, *arguments, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("maskcl: ")
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_pretrain_is_for_images(tmp_path, capsys):
    arguments = ["pretrain", "--scenario", "nodes-digits", "--out", str(tmp_path / "base")]
    assert cli.main(arguments) == 2
    assert "takes a random base for graphs" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_masks_of_a_graph_run_are_files_too(tmp_path, capsys):
    arguments = [*NODES, "--epochs", 1, "--batch-norm", "--out", tmp_path / "run"]
    assert train("piggyback", *arguments) == 0
    task = ["--task", "1", "--out", str(tmp_path / "one.safetensors")]
    assert cli.main(["masks", "export", str(tmp_path / "run"), *task]) == 0
    found = read_masks(tmp_path / "one.safetensors")
    kept = read_masks(tmp_path / "run" / "masks" / "task-1.safetensors")
    assert found.base == kept.base
    assert set(found.words) == set(kept.words)
    assert all(torch.equal(found.words[name], kept.words[name]) for name in kept.words)
