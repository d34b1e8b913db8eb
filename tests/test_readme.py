"""What the README says is run: its Python, its table of ops, its commands, its links."""

import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import maskcl
import maskcl.models
from maskcl import ops

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text()
LATER_TASKS = (ROOT / "docs" / "later-tasks.md").read_text()
CALLBACKS = (ROOT / "docs" / "callbacks.md").read_text()
TRAINING = (ROOT / "docs" / "training.md").read_text()
YOUR_DATA = (ROOT / "docs" / "your-data.md").read_text()
FILES = (ROOT / "docs" / "files.md").read_text()
SCALING = (ROOT / "docs" / "scaling.md").read_text()
TASK_INFERENCE = (ROOT / "docs" / "task-inference.md").read_text()
SCENARIOS = (ROOT / "docs" / "scenarios.md").read_text()

VECTOR_TARGETS = (ROOT / "docs" / "regression-and-multilabel.md").read_text()


def blocks(language, text=TEXT):
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_first_example_has_ten_lines_and_learns_without_forgetting():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    example = blocks("python")[0]
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) == 10
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    matrix = names["result"].matrix
    assert matrix[-1].mean() > 0.97
    assert (matrix.diagonal() == matrix[-1]).all()


def test_the_piggyback_example_goes_on_from_the_first(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    monkeypatch.chdir(tmp_path)
    first, second = blocks("python")[:2]
    names = {}
    exec(compile(first[: first.index("net =")], "README.md", "exec"), names)
    names["run"] = {**README_RUN, "epochs": 2}
    exec(compile(second, "README.md", "exec"), names)
    matrix = names["result"].matrix
    assert (matrix.diagonal() == matrix[-1]).all()
    assert 0 < names["net"].differing(0, 4) < 1
    assert (tmp_path / "task-0.safetensors").exists()


def test_the_importance_example_goes_on_from_both():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    first, second, third = blocks("python")[:3]
    names = {}
    exec(compile(first[: first.index("net =")], "README.md", "exec"), names)
    exec(compile(second[: second.index("net =")], "README.md", "exec"), names)
    names["run"] = {**README_RUN, "epochs": 2}
    exec(compile(third, "README.md", "exec"), names)
    assert names["result"].matrix[-1].mean() > 0.8
    assert names["importances"].keys() == dict(names["base"].named_parameters()).keys()


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


README_RUN = {"optimizer_fn": lambda p: torch.optim.Adam(p, lr=0.005), "batch_size": 16}


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


def test_the_loop_of_your_own_runs():
    """It ends with an assertion of its own: to_plain has the network's outputs."""
    names = {}
    exec("import torch\nimport maskcl\nfrom maskcl import models", names)
    exec(compile(blocks("python")[3], "README.md", "exec"), names)
    assert names["logits"].shape == (32, 2)


def test_the_graph_example_goes_on_from_the_first():
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    first, graphs = blocks("python")[0], blocks("python")[4]
    names = {}
    exec(compile(first[: first.index("net =")], "README.md", "exec"), names)
    names["run"] = {**README_RUN, "epochs": 20}
    exec(compile(graphs, "README.md", "exec"), names)
    matrix = names["result"].matrix
    assert matrix[-1].mean() > 0.8
    assert (matrix.diagonal() == matrix[-1]).all()


def test_begins_example(tmp_path, monkeypatch):
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch}
    exec(compile(blocks("python")[6].replace("=50", "=3"), "README.md", "exec"), names)
    assert names["trainer"].run


def test_the_export_example(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="files of weights need maskcl[train]")
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "maskcl": maskcl, "models": maskcl.models}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(compile(blocks("python")[5].replace("64, 3", "4, 3"), "README.md", "exec"), names)
    x, net = torch.rand(2, 3, 32, 32), names["net"].eval()
    with torch.no_grad(), net.task(0):
        torch.testing.assert_close(names["small"](x), net(x), rtol=1e-4, atol=1e-4)
    assert (tmp_path / "task-0.safetensors").exists()


def op_rows():
    found = re.findall(r"^\| `(\w+\(.*?\))` \| `(.*?)` \|$", TEXT, flags=re.MULTILINE)
    found = [(call, formula.replace("\\|", "|")) for call, formula in found]  # | ends a cell
    assert len(found) == 38
    return found


def arguments():
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    def tasks(units):
        return torch.randint(4, (units,), generator=generator)

    return {
        "torch": torch, "F": F, "e": rand(6) - 0.5, "s": 3.0, "m": rand(6), "p": 0.25,
        "s_max": 400.0, "used": torch.tensor([True, False] * 3), "x": rand(4, 6) - 0.5,
        "b": rand(6) - 0.5, "w": rand(6, 6) - 0.5, "g": rand(6, 6), "saved": rand(6, 6),
        "r": rand(6, 6) - 0.5, "q": rand(6, 6) > 0.5, "t": 0.1, "i": torch.tensor([5, 0, 2]),
        "d": rand(4, 6) - 0.5, "k": rand(6, 6),
        "u": torch.randint(-9, 9, (5,)).int(), "v": torch.randint(-9, 9, (5,)).int(),
        "out": tasks(6), "inp": tasks(6), "a": rand(6), "c": rand(6),
        "im": (rand(2, 6, 5, 5) - 0.5).contiguous(memory_format=torch.channels_last),
        "f": rand(6, 6, 3, 3) - 0.5,
    }  # fmt: skip


@pytest.mark.parametrize(("call", "formula"), op_rows())
def test_each_op_equals_the_formula_beside_it(call, formula):
    names = arguments()
    functions = {name: getattr(ops, name) for name in ops.__all__}
    expected = eval(formula, {**names, **functions})
    found = eval(call, {**names, **functions})
    if found is None:  # in place, on the first tensor
        written = re.match(r"\w+\(\[?(\w+)", call)[1]
        found = names[written]
        assert not torch.equal(found, arguments()[written])
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(expected))


def test_every_op_is_in_the_table():
    assert {call.partition("(")[0] for call, _ in op_rows()} == set(ops.__all__) - {
        "epoch_progress",
        "task_progress",
    }


def commands():
    lines = "".join(blocks("console") + blocks("console", SCENARIOS)).splitlines()
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ maskcl train")]


@pytest.mark.parametrize("command", commands())
def test_commands_parse_and_pass_the_checks_of_their_values(command, tmp_path):
    """Up to where the run would begin: the options must be right as printed."""
    typer = pytest.importorskip("typer", reason="the command line needs maskcl[train]")
    from maskcl.cli.app import METHODS, app
    from maskcl.cli.options import check_values, combine

    words = shlex.split(command)
    method, kind = words[2], METHODS[words[2]].options
    group = typer.main.get_command(app)
    leaf = group.commands["train"].commands[method]
    context = leaf.make_context(method, words[3:])
    given = {name: v for name, v in context.params.items() if v is not None}
    resume = given.pop("resume")
    base = {"base": "random"} if method == "piggyback" else {}
    saved = {"scenario": "split-digits", "out": "runs", **base} if resume else None
    combine(kind, check_values(kind, given, "README"), {}, saved)


def test_the_page_of_scenarios_has_every_set_and_the_model_that_it_is_given():
    from maskcl.scenarios.image_names import IMAGES, SOURCES

    rows = re.findall(r"^\| `([\w-]+)` \| .* \| (\d+)[^|]* \| (\w+) \|$", SCENARIOS, re.MULTILINE)
    cut = {name: IMAGES[f"split-{name}"] for name in SOURCES}
    assert set(rows) == {(name, str(made.tasks), made.model) for name, made in cut.items()}


def test_pictures_and_links_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).is_file(), target


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
    (example,) = blocks("python", FILES)
    exec(compile(example, "docs/files.md", "exec"), {})
