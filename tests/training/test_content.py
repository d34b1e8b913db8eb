"""A result reports itself, for every method, on images and on graphs."""

import copy
import json
import pickle
import re

import pytest
import torch

import maskcl
from maskcl import models, problems, scenarios
from maskcl.extras import install
from maskcl.report import read_result
from maskcl.training.content import run_content

CONVERTED = {"HAT": "to_hat", "Piggyback": "to_piggyback", "MAS": "to_importance",
             "EWC": "to_importance"}  # fmt: skip
OWN = {"HAT": ["capacity", "masks"], "Piggyback": ["differing", "off"], "MAS": ["drift"],
       "EWC": ["importance"]}  # fmt: skip


def adam(groups):
    return torch.optim.Adam(groups, lr=0.005)


def trained(method, scenario_name="split-digits", **more):
    """A Trainer and what its fit returned."""
    scenario = scenarios.load(scenario_name, tasks=2)
    torch.manual_seed(0)
    if scenario.problem == "vision":
        model, problem = models.mlp((1, 8, 8), classes=5, hidden=(20, 20)), problems.Vision()
        example = torch.zeros(2, 1, 8, 8)
    else:
        model = models.build_graph("node", "gcn", scenario.input_shape[0], 5, hidden=(16, 16))
        problem = problems.Node(models.ENCODERS["gcn"])
        example = models.example_inputs("node", models.ENCODERS["gcn"], scenario.input_shape[0])
    given = (example,) if method == "HAT" else ()
    convert = getattr(maskcl.nn, CONVERTED[method])
    net = convert(model, 2, *given, classes=scenario.head_sizes)
    is_graph = scenario.problem != "vision" and method in ("MAS", "EWC")
    own = {"reduction": "batch"} if is_graph else {}
    trainer = maskcl.Trainer(
        net, getattr(maskcl, method)(**own), problem, scenario, adam, epochs=2, batch_size=64,
        device="cpu", **more,
    )  # fmt: skip
    return trainer, trainer.fit()


@pytest.mark.parametrize("method", list(CONVERTED))
@pytest.mark.parametrize("scenario", ["split-digits", "nodes-digits"])
def test_a_result_writes_what_the_command_does(tmp_path, method, scenario):
    _, result = trained(method, scenario)
    page = result.report(tmp_path / "new" / "out")
    assert page == tmp_path / "new" / "out" / "report.html"
    pictures = {path.stem for path in page.parent.glob("*.svg")}
    assert {"accuracy", "accuracy_over_time", "loss", "training", *OWN[method]} <= pictures
    content = read_result(page.parent)
    assert content["method"] == method.lower()
    assert content["configuration"]["lr"] == 0.005
    assert content["metrics"]["ACC"]["value"] == pytest.approx(result.matrix[-1].mean())
    assert content["parameters"] > 0 and content["environment"]["torch"] == torch.__version__


def test_a_folder_keeps_what_else_is_in_it_and_is_reported_into_again(tmp_path):
    _, result = trained("MAS")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.html").write_text("old")
    first = result.report(tmp_path).read_text()
    assert first != "old"
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert result.report(tmp_path).read_text() == first
    with pytest.raises(OSError, match=r"notes\.txt"):
        result.report(tmp_path / "notes.txt")


def test_a_copy_has_the_figures_and_says_that_it_has_no_run(tmp_path):
    _, result = trained("MAS")
    for other in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert other.losses == result.losses
        with pytest.raises(RuntimeError, match="does not know its run"):
            other.report(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    from maskcl import report

    _, result = trained("MAS")
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape(install("train"))):
        result.report(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_on_its_way_is_described_by_its_configuration_and_scores():
    trainer, result = trained("HAT")
    content = run_content(json.loads(json.dumps(trainer.config)), result)
    assert content["capacity"] == result.capacity
    assert content["configuration"]["s_max"] == 400
    assert content["chance"] is None
    json.dumps(content, allow_nan=False)
