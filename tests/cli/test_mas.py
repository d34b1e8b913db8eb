"""``maskcl train mas`` and ``maskcl train ewc`` as a person uses them."""

import json

import numpy as np
import pytest

from maskcl import cli, scenarios
from maskcl.cli.mas import EWCOptions, MASOptions
from tests.cli.refusal import refused

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SMALL = ["--scenario", "split-digits", "--tasks", "2", "--hidden", "16", "--epochs", "2"]


def train(method, *arguments):
    return cli.main(["train", method, *map(str, arguments)])


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of MAS from start to end without interruption."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert train("mas", *SMALL, "--out", directory) == 0
    return directory


def test_a_run_writes_result_report_and_pictures(finished):
    pictures = ["accuracy", "accuracy_over_time", "drift", "importance", "learned", "loss"]
    pictures.append("training")
    assert sorted(path.name for path in finished.iterdir()) == sorted(
        [*(f"{name}.svg" for name in pictures), "checkpoint.safetensors", "config.json",
         "report.html", "result.json"]
    )  # fmt: skip


def test_result_holds_importance_and_drift_by_parameter(finished):
    result = result_of(finished)
    # Heads of their own are left out.
    assert result["regularised"] == {"1.weight": 64 * 16, "1.bias": 16}
    first, second = result["importance"]
    assert set(first) == set(second) == set(result["regularised"])
    # Sums over tasks: what mattered to the first still does.
    assert all(second[name] > first[name] > 0 for name in first)
    assert result["drift"][0] == {}
    assert all(value > 0 for value in result["drift"][1].values())
    assert np.array(result["accuracy"][1]).min() > 0.5
    assert result["configuration"]["heads"] is False


def test_a_stronger_penalty_holds_more(finished, tmp_path):
    assert train("mas", *SMALL, "--strength", 100, "--out", tmp_path / "run") == 0
    held, free = result_of(tmp_path / "run")["drift"][1], result_of(finished)["drift"][1]
    assert all(held[name] < free[name] for name in free)


def test_ewc_has_options_of_its_own(tmp_path, capsys):
    own = ["--labels", "sampled", "--anchors", "last", "--decay", 0.9, "--epochs", 1]
    assert train("ewc", *SMALL, *own, "--out", tmp_path / "run") == 0
    assert "strength 10000, mean importance" in capsys.readouterr().out
    result = result_of(tmp_path / "run")
    config = result["configuration"]
    assert result["method"] == "ewc"
    assert (config["labels"], config["anchors"], config["decay"]) == ("sampled", "last", 0.9)
    assert set(result["importance"][0]) == {"1.weight", "1.bias"}


@pytest.mark.parametrize(
    ("setting", "outputs", "held"),
    [
        ("domain", 5, {"1.weight", "1.bias", "3.weight", "3.bias"}),
        ("class", 10, {"1.weight", "1.bias"}),
    ],
)
def test_settings_have_their_heads(tmp_path, setting, outputs, held):
    arguments = [*SMALL, "--epochs", 1, "--setting", setting]
    assert train("mas", *arguments, "--out", tmp_path / "run") == 0
    result = result_of(tmp_path / "run")
    assert result["parameters"] == 64 * 16 + 16 + outputs * (16 + 1)
    assert set(result["regularised"]) == held
    # A task that was not trained yet has a score where one head answers for all.
    assert (result["accuracy"][0][1] is None) == (setting == "class")


def test_a_shared_head_is_held_in_the_domain_setting_unless_told():
    def heads(kind, scenario, **other):
        return kind(scenario=scenario, out="x", **other).heads

    for kind in (MASOptions, EWCOptions):
        assert heads(kind, "permuted-digits") is True
        assert heads(kind, "permuted-digits", setting="task") is False
        assert heads(kind, "split-digits") is False
        assert heads(kind, "split-digits", setting="domain") is True
        assert heads(kind, "permuted-digits", heads=False) is False
    assert [scenarios.default_setting(name) for name in ("split-mnist", "no-such")] == [
        "task",
        None,
    ]


def test_held_heads_can_be_turned_off(tmp_path):
    arguments = [*SMALL, "--epochs", 1, "--setting", "domain", "--no-heads"]
    assert train("mas", *arguments, "--out", tmp_path / "run") == 0
    assert set(result_of(tmp_path / "run")["regularised"]) == {"1.weight", "1.bias"}


def test_the_same_run_again_and_an_interrupted_one_end_alike(finished, tmp_path, monkeypatch):
    from maskcl.progress import Lines

    def stop(self, task, epoch, loss, accuracy, outlook):
        # Importances of the first task are in the checkpoint, the second is half trained.
        if (task, epoch) == (1, 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Lines, "on_epoch_end", stop)
        assert train("mas", *SMALL, "--out", tmp_path / "run") == 130
    assert train("mas", "--out", tmp_path / "run", "--resume") == 0
    again, whole = result_of(tmp_path / "run"), result_of(finished)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert again["importance"] == whole["importance"]
    assert again["drift"] == whole["drift"]


BAD = [
    ("mas", ["--strength", "-1"], "strength is -1.0"),
    ("mas", ["--reduction", "mean"], "reduction is 'mean'"),
    ("mas", ["--norm", "max"], "norm is 'max'"),
    ("mas", ["--labels", "data"], "No such option: --labels"),
    ("ewc", ["--decay", "2"], "decay is 2.0"),
    ("ewc", ["--labels", "true"], "labels is 'true'"),
    ("ewc", ["--anchors", "first"], "anchors is 'first'"),
]


@pytest.mark.parametrize(("method", "arguments", "sentence"), BAD)
def test_bad_input_gets_one_sentence_and_writes_nothing(
    tmp_path, capsys, method, arguments, sentence
):
    refused(capsys, sentence, "train", method, *SMALL, "--out", tmp_path / "run", *arguments)
    assert not any(tmp_path.iterdir())
