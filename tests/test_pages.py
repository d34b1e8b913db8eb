"""What the pages of docs/ say is run: their Python, their commands, what they print."""

import re
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch

import maskcl
import maskcl.models
from tests.pages import README, blocks, page, run_in_order

LATER_TASKS = page("later-tasks.md")
CALLBACKS = page("callbacks.md")
TRAINING = page("training.md")
YOUR_DATA = page("your-data.md")
SCALING = page("scaling.md")
TASK_INFERENCE = page("task-inference.md")
SCENARIOS = page("scenarios.md")
QUICK_START = page("quick-start.md")
VECTOR_TARGETS = page("regression-and-multilabel.md")

RUN = {"optimizer_fn": lambda p: torch.optim.Adam(p, lr=0.005), "batch_size": 16}


def test_the_quick_start_runs(tmp_path, monkeypatch):
    """From README's example on; its last block ends with an assertion of its own."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    monkeypatch.chdir(tmp_path)
    first, piggyback, importance, loop = blocks("python", QUICK_START)
    assert first == blocks("python", README)[0]
    assert blocks("text", QUICK_START) == blocks("text", README)[1:]
    names = {}
    exec(compile(first[: first.index("net =")], "quick-start.md", "exec"), names)
    names["run"] = {**RUN, "epochs": 2}
    run_in_order([piggyback], names, tmp_path)
    matrix = names["result"].matrix
    assert (matrix.diagonal() == matrix[-1]).all()
    assert 0 < names["net"].differing(0, 4) < 1
    assert (tmp_path / "masks-0.safetensors").exists()
    run_in_order([importance], names, tmp_path)
    assert names["result"].matrix[-1].mean() > 0.8
    assert names["importances"].keys() == dict(names["base"].named_parameters()).keys()
    run_in_order([loop], names, tmp_path)
    assert names["logits"].shape == (32, 2)


def test_the_page_on_training_runs():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    names = {}
    for block in blocks("python", TRAINING):
        exec(compile(block, "training.md", "exec"), names)
    result = names["result"]
    assert result.matrix[-1].mean() > 0.9
    for scores, best in zip(result.validation, result.best_epochs, strict=True):
        assert scores[best] == max(scores)
    parameter = torch.nn.Parameter(torch.zeros(1))
    assert names["one_cycle"](torch.optim.Adam([parameter]), 5).total_steps == 5


def test_the_example_of_values_and_of_labels():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    values, labels = blocks("python", VECTOR_TARGETS)
    names = {}
    exec(compile(values, "regression-and-multilabel.md", "exec"), names)
    matrix = names["result"].matrix
    assert (matrix.diagonal() == matrix[-1]).all()
    assert matrix[-1].min() > 0.5
    exec(compile(labels, "regression-and-multilabel.md", "exec"), names)
    assert names["labels"].matrix[-1].min() > 0.8


def test_the_page_on_graphs_runs():
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    (example,) = blocks("python", page("graphs.md"))
    names = {}
    exec(compile(example, "graphs.md", "exec"), names)
    matrix = names["result"].matrix
    assert matrix[-1].mean() > 0.8
    assert (matrix.diagonal() == matrix[-1]).all()


def test_begins_example(tmp_path, monkeypatch):
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python", page("compat-begin.md"))
    names = {}
    exec(compile(example.replace("=50", "=3"), "compat-begin.md", "exec"), names)
    assert names["trainer"].run


def test_the_page_on_export_runs(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="files of weights need maskcl[train]")
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python", page("export.md"))
    names = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(example.replace("64, 3", "4, 3"), "export.md", "exec"), names)
    x, net = torch.rand(2, 3, 32, 32), names["net"].eval()
    with torch.no_grad(), net.task(0):
        torch.testing.assert_close(names["small"](x), net(x), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "task-0.safetensors").exists()


def commands():
    pages = [README, SCENARIOS, page("command-line.md"), page("graphs.md")]
    lines = "".join(block for text in pages for block in blocks("console", text)).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ maskcl ")]


@pytest.mark.parametrize("command", commands())
def test_commands_parse_and_pass_the_checks_of_their_values(command, tmp_path):
    """Up to where the run would begin: the options must be right as printed."""
    typer = pytest.importorskip("typer", reason="the command line needs maskcl[train]")
    from maskcl.cli.app import METHODS, app
    from maskcl.cli.options import check_values, combine

    words = shlex.split(command)[1:]
    leaf, door = typer.main.get_command(app), words[0]
    while hasattr(leaf, "commands"):
        method, *words = words
        leaf = leaf.commands[method]
    context = leaf.make_context(method, words)
    if door != "train":
        return
    given = {name: v for name, v in context.params.items() if v is not None}
    resume = given.pop("resume")
    base = {"base": "random"} if method == "piggyback" else {}
    saved = {"scenario": "split-digits", "out": "runs", **base} if resume else None
    kind = METHODS[method].options
    combine(kind, check_values(kind, given, "a page"), {}, saved)


def test_the_page_of_scenarios_has_every_set_and_the_model_that_it_is_given():
    from maskcl.scenarios.image_names import IMAGES, SOURCES

    rows = re.findall(r"^\| `([\w-]+)` \| .* \| (\d+)[^|]* \| (\w+) \|$", SCENARIOS, re.MULTILINE)
    cut = {name: IMAGES[f"split-{name}"] for name in SOURCES}
    assert set(rows) == {(name, str(made.tasks), made.model) for name, made in cut.items()}


def test_the_page_on_later_tasks_runs():
    """It ends with an assertion of its own: the outputs of before have their bits."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    (example,) = blocks("python", LATER_TASKS)
    names = {}
    exec(compile(example, "later-tasks.md", "exec"), names)
    assert names["net"].finished.tolist() == [True] * 4
    assert names["result"].matrix[1].min() > 0.5


def test_the_page_of_task_inference_runs():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    (example,) = blocks("python", TASK_INFERENCE)
    names = {}
    exec(compile(example, "task-inference.md", "exec"), names)
    assert names["result"].matrix[-1].mean() > 0.9
    assert names["found"].task.shape == (3,)


def test_the_page_of_callbacks_runs(tmp_path, monkeypatch, capsys):
    """Weights & Biases by a stand-in that keeps what it is told."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    logged, over = [], []
    run = SimpleNamespace(log=logged.append, finish=lambda: over.append(True))
    stand_in = SimpleNamespace(init=lambda project, config: run)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.chdir(tmp_path)
    first, second = blocks("python", CALLBACKS)
    names = {}
    exec(compile(first, "callbacks.md", "exec"), names)
    assert "task 1: " in capsys.readouterr().out
    assert (tmp_path / "run.csv").read_text().count("loss") == 4
    exec(compile(second, "callbacks.md", "exec"), names)
    net = maskcl.nn.to_hat(
        maskcl.models.mlp((1, 8, 8), classes=5), 2, torch.zeros(2, 1, 8, 8), classes=[5, 5]
    )
    names["maskcl"].Trainer(
        net, maskcl.HAT(), names["problems"].Vision(), names["digits"],
        names["trainer"].optimizer_fn, epochs=1, batch_size=64, callback=names["WandB"](),
    ).fit()  # fmt: skip
    assert [sorted(line) for line in logged] == [
        ["accuracy", "epoch", "loss", "task"], ["test of task 0"],
        ["accuracy", "epoch", "loss", "task"], ["test of task 0", "test of task 1"],
    ]  # fmt: skip
    assert over == [True]


def test_the_page_of_your_own_data_runs(capsys):
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    first, second = blocks("python", YOUR_DATA)
    names = {}
    exec(compile(first, "your-data.md", "exec"), names)
    assert capsys.readouterr().out in YOUR_DATA
    exec(compile(second, "your-data.md", "exec"), names)
    matrix = names["result"].matrix
    assert matrix[1, 0] == matrix[0, 0] > 0.6


def test_its_commands_run(tmp_path, monkeypatch):
    pytest.importorskip("typer", reason="the command line needs maskcl[train]")
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    from maskcl import cli

    monkeypatch.chdir(tmp_path)
    (lines,) = blocks("console", LATER_TASKS)
    for line in lines.splitlines():
        assert cli.main([*shlex.split(line)[2:], "--epochs", "1"]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"digits", "after"}


def test_the_page_on_large_networks_keeps_a_language_models_logits():
    pytest.importorskip("transformers")
    (example,) = [b for b in blocks("python", SCALING) if "transformers" in b]
    names = {}
    exec(compile(example, "docs/scaling.md", "exec"), names)
    assert len(names["known"]) == 2 and "transformer.wte" in names["net"].units


def test_the_page_on_sharded_networks_keeps_the_first_tasks_outputs():
    pytest.importorskip("torch.distributed.fsdp", reason="torch without distributed")
    (example,) = [b for b in blocks("python", SCALING) if "fully_shard" in b]
    names = {}
    exec(compile(example, "docs/scaling.md", "exec"), names)
    assert all(hasattr(p, "placements") for p in names["net"].task_parameters(1))


def test_the_page_on_files_goes_on_with_a_killed_loop():
    (example,) = blocks("python", page("files.md"))
    exec(compile(example, "docs/files.md", "exec"), {})
