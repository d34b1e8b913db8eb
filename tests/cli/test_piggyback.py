"""``maskcl pretrain``, ``maskcl train piggyback``, ``maskcl masks`` as a person uses them."""

import json
import shutil

import numpy as np
import pytest
import torch

from maskcl import cli
from maskcl.progress import Lines

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SCENARIO = ["--scenario", "split-digits", "--tasks", "2"]
SMALL = [*SCENARIO, "--epochs", "2"]


def maskcl(*arguments):
    return cli.main([str(part) for part in arguments])


def train(*arguments):
    return maskcl("train", "piggyback", *arguments)


def pretrain(*arguments):
    return maskcl("pretrain", "--scenario", "split-digits", "--hidden", "16,16", *arguments)


def json_of(path):
    return json.loads(path.read_text())


def everything_in(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def assert_only_said(sentence, capsys):
    """One line of an error with the sentence in it, and nothing else."""
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.startswith("maskcl: ")
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def base(runs):
    """A base of one epoch."""
    assert pretrain("--epochs", 1, "--out", runs / "base") == 0
    return runs / "base"


@pytest.fixture(scope="module")
def finished(runs, base):
    """A run from start to end without interruption."""
    assert train(*SMALL, "--base", base, "--out", runs / "whole") == 0
    return runs / "whole"


@pytest.fixture
def copy(finished, tmp_path):
    """A finished run that a test may change."""
    shutil.copytree(finished, tmp_path / "copy")
    return tmp_path / "copy"


# maskcl pretrain


def test_pretrain_says_what_it_trained_on_and_writes_weights_and_facts(tmp_path, capsys):
    assert pretrain("--epochs", 2, "--out", tmp_path / "base", "--seed", 3) == 0
    out = capsys.readouterr().out
    assert "training images of split-digits turned by 90, 180 or 270 degrees, never upright" in out
    assert "epoch 2/2 loss " in out
    facts = json_of(tmp_path / "base" / "config.json")
    assert f"held-out accuracy {facts['accuracy']:.4f}" in out
    assert sorted(everything_in(tmp_path)) == [
        "base",
        "base/base.safetensors",
        "base/config.json",
    ]
    assert facts["source"] == "rotated"
    assert (facts["model"], facts["hidden"], facts["outputs"]) == ("mlp", [16, 16], 10)
    # Far above chance, as turned digits can be told apart.
    assert facts["accuracy"] > 0.3
    assert facts["seed"] == 3
    assert facts["train_size"] + facts["held_out_size"] == 3 * 1438
    assert facts["environment"]["torch"] == torch.__version__


def test_the_seed_decides_the_base(tmp_path, base):
    assert pretrain("--epochs", 1, "--out", tmp_path / "again") == 0
    assert pretrain("--epochs", 1, "--out", tmp_path / "other", "--seed", 1) == 0
    hashes = [
        json_of(folder / "config.json")["sha256"]
        for folder in (base, tmp_path / "again", tmp_path / "other")
    ]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--source", "imagenet"], "unknown source 'imagenet': known are rotated, digits"),
        (["--source", "digits"], "split-digits is made of the digits themselves"),
        (["--scenario", "split-mnist"], "with --data DIR"),
        (["--model", "conv"], "hidden belongs to the mlp, conv has none"),
        (["--epochs", "0"], "epochs must be at least 1, got 0"),
        (["--lr", "0"], "lr must be above 0, got 0.0"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml does not exist"),
        (["--base", "x"], "No such option: --base"),
        (["--resume"], "No such option: --resume"),
    ],
)
def test_pretrain_refuses_bad_input_and_writes_nothing(tmp_path, capsys, arguments, sentence):
    assert pretrain("--out", tmp_path / "new" / "base", *arguments) == 2
    assert_only_said(sentence, capsys)
    assert everything_in(tmp_path) == {}


def test_pretrain_leaves_an_existing_folder_alone(base, capsys):
    before = everything_in(base)
    assert pretrain("--out", base) == 2
    assert "exists already" in capsys.readouterr().err
    assert everything_in(base) == before


def test_pretrain_that_diverges_says_so_and_writes_nothing(tmp_path, capsys):
    arguments = ["--optimizer", "sgd", "--lr", "1e30", "--epochs", 1]
    assert pretrain("--out", tmp_path / "base", *arguments) == 1
    said = capsys.readouterr().err
    assert "the run failed: the loss is" in said
    assert said.count("\n") == 1
    assert everything_in(tmp_path) == {}


def test_pretrain_reads_a_file_of_options(tmp_path):
    (tmp_path / "base.yaml").write_text("scenario: permuted-digits\nepochs: 1\nhidden: 16\n")
    arguments = ["--config", tmp_path / "base.yaml", "--hidden", 8, "--out", tmp_path / "base"]
    assert maskcl("pretrain", *arguments) == 0
    facts = json_of(tmp_path / "base" / "config.json")
    assert (facts["scenario"], facts["hidden"]) == ("permuted-digits", [8])


# What a run leaves behind


def test_a_run_writes_result_report_and_a_file_of_masks_for_each_task(finished):
    names = everything_in(finished)
    assert {"checkpoint.safetensors", "config.json", "report.html", "result.json"} <= names.keys()
    assert {"masks/task-0.safetensors", "masks/task-1.safetensors"} <= names.keys()


def test_result_holds_what_the_masks_are(finished, base):
    result = json_of(finished / "result.json")
    assert result["method"] == "piggyback"
    matrix = np.array(result["accuracy"], dtype=float)
    assert np.isnan(matrix[0, 1])
    assert matrix[1, 0] == matrix[0, 0] > 0.5
    assert result["metrics"]["BWT"] == {"value": 0.0, "reason": None}
    facts = json_of(base / "config.json")
    assert result["base"]["accuracy"] == facts["accuracy"]
    assert result["base"]["source"] == "rotated"
    assert "never upright" in result["base"]["trained_on"]
    assert (result["configuration"]["model"], result["configuration"]["hidden"]) == (
        "mlp",
        [16, 16],
    )
    # The last layer gave way to the heads.
    assert result["masked_weights"] == {"1": 64 * 16, "3": 16 * 16}
    assert [sorted(off) for off in result["off"]] == [["1", "3"]] * 2
    assert all(0 < share < 1 for off in result["off"] for share in off.values())
    differing = np.array(result["differing"])
    assert differing.shape == (2, 2)
    assert (np.diag(differing) == 0).all()
    assert differing[0, 1] == differing[1, 0] > 0


def test_bytes_of_a_task_are_those_of_its_file(finished):
    for task, entry in enumerate(json_of(finished / "result.json")["mask_files"]):
        assert entry["task"] == task
        assert entry["bytes"] == (finished / entry["file"]).stat().st_size
        # A bit a weight, in words of 32; a head of 16 x 5 and its bias.
        assert entry["words_bytes"] == (64 * 16 + 16 * 16) // 8
        assert entry["own_bytes"] == 4 * (16 * 5 + 5)


def test_a_run_says_what_its_figures_are_of(tmp_path, base, capsys):
    assert train(*SMALL, "--base", base, "--out", tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "split-digits, task setting, seed 0: 2 tasks, classes 0-4 | 5-9, " in out
    assert "task 1 (2 of 2) epoch 2/2 loss " in out
    assert " off " in out
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out


def test_the_seed_decides_the_run(finished, base, tmp_path):
    assert train(*SMALL, "--base", base, "--out", tmp_path / "again") == 0
    assert same_outcome(tmp_path / "again", finished)


def test_a_random_base_needs_no_folder(tmp_path):
    arguments = ["--base", "random", "--hidden", "8", "--epochs", 1, "--out", tmp_path / "run"]
    assert train(*SCENARIO, *arguments) == 0
    result = json_of(tmp_path / "run" / "result.json")
    assert result["base"]["accuracy"] is None
    assert result["base"]["source"] == "random"
    assert result["configuration"]["norms"] == "task"
    assert result["masked_weights"] == {"1": 64 * 8}


def test_domain_setting_has_masks_and_a_head_for_each_domain(tmp_path, base):
    arguments = ["--scenario", "permuted-digits", "--tasks", 2, "--epochs", 1, "--base", base]
    assert train(*arguments, "--out", tmp_path / "run") == 0
    result = json_of(tmp_path / "run" / "result.json")
    # A later domain has no mask to be scored with.
    assert result["accuracy"][0][1] is None
    assert result["metrics"]["BWT"]["value"] == 0.0
    assert result["metrics"]["FWT"]["value"] is None


@pytest.mark.parametrize(
    ("levels", "more"),
    [
        ("ternary", []),
        ("ternary_symmetric", ["--spread", "uniform"]),
        ("topk", ["--density", "0.25", "--spread", "uniform"]),
    ],
)
def test_levels_go_from_the_command_line_into_the_masks(tmp_path, base, capsys, levels, more):
    arguments = ["--epochs", 1, "--base", base, "--levels", levels, *more]
    assert train(*SCENARIO, *arguments, "--out", tmp_path / "run") == 0
    result = json_of(tmp_path / "run" / "result.json")
    planes = 1 if levels == "topk" else 2
    assert result["mask_files"][0]["words_bytes"] == planes * (64 * 16 + 16 * 16) // 8
    if levels == "topk":
        assert all(off == {"1": 0.75, "3": 0.75} for off in result["off"])
    capsys.readouterr()
    assert maskcl("masks", "inspect", tmp_path / "run" / "masks" / "task-0.safetensors") == 0
    out = capsys.readouterr().out
    assert f"task 0, {levels} masks" in out
    assert (" as -1" in out) == levels.startswith("ternary")


def test_a_rate_too_small_to_cross_the_threshold_is_warned_of_in_a_sentence(tmp_path, base, capsys):
    arguments = ["--epochs", 1, "--base", base, "--lr", "1e-6", "--out", tmp_path / "run"]
    assert train(*SCENARIO, *arguments) == 0
    said = capsys.readouterr().err.splitlines()
    assert any("no score can cross the threshold" in line for line in said)
    assert all(line.startswith("maskcl: ") for line in said)


# Bad input: one sentence, exit code 2, nothing written

BAD = [
    (
        [],
        "--base is missing: a folder made by `maskcl pretrain --scenario split-digits --out BASE`",
    ),
    (["--base", "/no/such"], "--base: /no/such holds no base"),
    (["--base", "random", "--model", "vgg"], "unknown model 'vgg': known are mlp, conv, resnet18"),
    (["--base", "BASE", "--model", "conv"], "model belongs to --base random"),
    (["--base", "BASE", "--hidden", "8"], "hidden belongs to --base random"),
    (["--base", "BASE", "--seed", "1"], "was pretrained with seed 0 and has seen test images"),
    (["--base", "BASE", "--norms", "none"], "unknown norms 'none': known are frozen, task"),
    (["--base", "BASE", "--levels", "soft"], "levels is 'soft'"),
    (["--base", "BASE", "--threshold", "nan"], "threshold is nan"),
    (["--base", "BASE", "--density", "0.5"], "density is 0.5, wanted None for 'binary'"),
    (["--base", "BASE", "--levels", "topk", "--density", "2"], "density is 2.0"),
    (["--base", "BASE", "--lr", "0"], "lr must be above 0, got 0.0"),
    (["--base", "BASE", "--head-lr", "-1"], "head-lr must be above 0, got -1.0"),
    (["--base", "BASE", "--setting", "class", "--infer", "none"], "class"),
    (["--base", "BASE", "--s-max", "4"], "No such option: --s-max"),
    (["--base", "BASE", "--resume"], "holds no run that --resume could go on with"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_gets_one_sentence_and_writes_nothing(
    tmp_path, base, capsys, arguments, sentence
):
    arguments = [base if part == "BASE" else part for part in arguments]
    assert train(*SMALL, "--out", tmp_path / "new" / "run", *arguments) == 2
    assert_only_said(sentence, capsys)
    assert everything_in(tmp_path) == {}


def test_a_base_of_another_input_shape_is_refused_with_both(tmp_path, base, capsys):
    facts = json_of(base / "config.json")
    other = tmp_path / "base"
    shutil.copytree(base, other)
    (other / "config.json").write_text(json.dumps({**facts, "input_shape": [1, 4, 16]}))
    assert train(*SMALL, "--base", other, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "takes inputs of shape (1, 4, 16), split-digits has (1, 8, 8)" in said


@pytest.mark.parametrize("name", ["base.safetensors", "config.json"])
@pytest.mark.parametrize("how", ["cut", "gone", "altered"])
def test_a_damaged_base_is_refused(tmp_path, base, capsys, name, how):
    other = tmp_path / "base"
    shutil.copytree(base, other)
    content = (other / name).read_bytes()
    (other / name).unlink()
    if how == "cut":
        (other / name).write_bytes(content[: len(content) // 2])
    elif how == "altered" and name == "config.json":
        (other / name).write_bytes(content.replace(b'"sha256": "', b'"sha256": "0'))
    elif how == "altered":
        (other / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert train(*SMALL, "--base", other, "--out", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.startswith("maskcl: --base: ")
    assert "`maskcl pretrain` makes one" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_file_of_options_may_hold_true_and_false(tmp_path, base):
    (tmp_path / "run.yaml").write_text("inclusive: true\nepochs: 1\nthreshold: 1e-3\n")
    arguments = ["--config", tmp_path / "run.yaml", "--base", base, "--out", tmp_path / "run"]
    assert train(*SCENARIO, *arguments) == 0
    found = json_of(tmp_path / "run" / "result.json")["configuration"]
    assert (found["inclusive"], found["threshold"]) == (True, 0.001)


def test_a_file_that_says_yes_for_true_gets_one_sentence(tmp_path, base, capsys):
    (tmp_path / "run.yaml").write_text("inclusive: 1\n")
    arguments = ["--config", tmp_path / "run.yaml", "--base", base, "--out", tmp_path / "run"]
    assert train(*SCENARIO, *arguments) == 2
    assert "inclusive must be true or false, got 1" in capsys.readouterr().err


# Interrupt and resume


def same_outcome(one, other):
    names = ("accuracy", "losses", "off", "differing", "weights_sha256", "metrics")
    found, wanted = json_of(one / "result.json"), json_of(other / "result.json")
    return all(found[name] == wanted[name] for name in names)


@pytest.fixture
def unfinished(tmp_path, base, monkeypatch):
    """A run in which Ctrl-C was pressed in the second epoch of the second task."""

    def press(self, task, epoch, batches):
        if (task, epoch) == (1, 1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Lines, "on_epoch_start", press)
        assert train(*SMALL, "--base", base, "--out", tmp_path / "run") == 130
    return tmp_path / "run"


def test_interrupt_exits_130_and_says_how_to_go_on(capsys, unfinished, finished):
    command = f"maskcl train piggyback --out {unfinished} --resume"
    said = capsys.readouterr().err
    assert said == f"maskcl: interrupted; to go on from the last whole epoch: {command}\n"
    assert train("--out", unfinished, "--resume") == 0
    assert same_outcome(unfinished, finished)


def test_pretrain_interrupted_leaves_nothing(tmp_path, capsys, monkeypatch):
    def press(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("maskcl.cli.pretrain.train_backbone", press)
    assert pretrain("--out", tmp_path / "new" / "base") == 130
    assert capsys.readouterr().err == "maskcl: interrupted before anything was written\n"
    assert everything_in(tmp_path) == {}


def test_resume_follows_a_base_that_moved(copy, base, finished, tmp_path):
    (copy / "result.json").unlink()
    shutil.copytree(base, tmp_path / "moved")
    assert train("--out", copy, "--base", tmp_path / "moved", "--resume") == 0
    assert same_outcome(copy, finished)


def test_resume_refuses_another_base_with_both_hashes(copy, base, tmp_path, capsys):
    assert pretrain("--epochs", 2, "--out", tmp_path / "other") == 0
    before = everything_in(copy)
    capsys.readouterr()
    assert train("--out", copy, "--base", tmp_path / "other", "--resume") == 2
    said = capsys.readouterr().err
    for folder in (base, tmp_path / "other"):
        assert json_of(folder / "config.json")["sha256"] in said
    assert said.count("\n") == 1
    assert everything_in(copy) == before


def test_resume_refuses_other_options_and_other_methods(finished, capsys):
    assert train("--out", finished, "--resume", "--threshold", 0.25) == 2
    assert "has threshold 0.005, which --resume cannot change to 0.25" in capsys.readouterr().err
    assert maskcl("train", "hat", "--out", finished, "--resume") == 2
    said = capsys.readouterr().err
    assert said == (
        f"maskcl: {finished} holds a run of piggyback: `maskcl train piggyback --resume` goes on "
        "with it\n"
    )


# maskcl masks


def test_export_and_inspect_of_a_finished_task(finished, tmp_path, capsys):
    assert maskcl("masks", "export", finished, "--task", 1, "-o", tmp_path / "mask") == 0
    size = (tmp_path / "mask").stat().st_size
    assert capsys.readouterr().out == (
        f"{tmp_path / 'mask'}: {size:,} bytes, task 1 of {finished}\n"
    )
    assert maskcl("masks", "inspect", tmp_path / "mask") == 0
    out = capsys.readouterr().out
    result = json_of(finished / "result.json")
    assert "task 1, binary masks" in out
    assert f"base SHA-256: {result['base']['sha256']}" in out
    assert "classes: 5 6 7 8 9" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    for name, shape in (("1", "16x64"), ("3", "16x16")):
        assert shape in rows[name]
        assert f"{100 * (1 - result['off'][1][name]):.1f} %" in rows[name]
    assert f"masks 160 bytes, head and norms 340 bytes, file {size:,} bytes" in out


def test_an_exported_task_imported_again_changes_no_bit(copy, tmp_path, capsys):
    from maskcl.checkpoint import load_checkpoint

    path = copy / "checkpoint.safetensors"
    before = load_checkpoint(path)
    file = copy / "masks" / "task-1.safetensors"
    assert maskcl("masks", "import", file, copy, "--replace") == 0
    assert "task 1 has the masks of" in capsys.readouterr().out
    after = load_checkpoint(path)
    assert after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(after.tensors[name], t) for name, t in before.tensors.items())
    assert (after.config, after.position, after.facts) == (
        before.config,
        before.position,
        before.facts,
    )


def test_imported_masks_answer_as_where_they_were_learned(copy, tmp_path):
    from pathlib import Path

    from maskcl.cli.masks import open_run

    file = copy / "masks" / "task-1.safetensors"
    assert maskcl("masks", "import", file, copy, "--task", 0, "--replace") == 0
    _, net = open_run(Path(copy))
    net.eval()
    x = torch.rand(4, 1, 8, 8)
    with net.task(0):
        here = net(x)
    with net.task(1):
        there = net(x)
    assert torch.equal(here, there)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["RUN", "--task", "2", "-o", "NEW"], "has tasks 0 to 1, got 2"),
        (["RUN", "--task", "-1", "-o", "NEW"], "has tasks 0 to 1, got -1"),
        (["RUN", "--task", "0", "-o", "OLD"], "exists already"),
        (["RUN", "--task", "0", "-o", "/no/such/folder/file"], "there is no such folder"),
        (["BASE", "--task", "0", "-o", "NEW"], "is not a run's configuration"),
        (["/no/such", "--task", "0", "-o", "NEW"], "/no/such holds no run"),
        (["RUN", "-o", "NEW"], "Missing option '--task'"),
    ],
)
def test_export_refuses_with_a_sentence(finished, base, tmp_path, capsys, arguments, sentence):
    (tmp_path / "old").write_text("kept")
    names = {"RUN": finished, "BASE": base, "NEW": tmp_path / "new", "OLD": tmp_path / "old"}
    assert maskcl("masks", "export", *[names.get(part, part) for part in arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert everything_in(tmp_path) == {"old": b"kept"}


def test_masks_of_a_hat_run_are_no_files(tmp_path, capsys):
    arguments = ["--hidden", "8", "--epochs", 1, "--out", tmp_path / "run"]
    assert maskcl("train", "hat", *SCENARIO, *arguments) == 0
    assert maskcl("masks", "export", tmp_path / "run", "--task", 0, "-o", tmp_path / "new") == 2
    assert "holds a run of hat" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def refused(capsys, run, *arguments):
    """What ``maskcl masks import`` says when it refuses; the run must be as before."""
    before = everything_in(run)
    assert maskcl("masks", "import", *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("maskcl: ")
    assert said.count("\n") == 1
    assert everything_in(run) == before
    return said


def test_import_refuses_a_finished_task_without_replace(finished, capsys):
    file = finished / "masks" / "task-1.safetensors"
    assert "--replace is not given" in refused(capsys, finished, file, finished)
    said = refused(capsys, finished, file, finished, "--task", 7, "--replace")
    assert "has tasks 0 to 1, got 7" in said


def test_import_refuses_another_base_with_both_hashes(finished, tmp_path, capsys):
    arguments = ["--base", "random", "--hidden", "16,16", "--epochs", 1]
    assert train(*SCENARIO, *arguments, "--out", tmp_path / "run") == 0
    file = tmp_path / "run" / "masks" / "task-0.safetensors"
    said = refused(capsys, finished, file, finished, "--replace")
    for run in (finished, tmp_path / "run"):
        assert json_of(run / "result.json")["base"]["sha256"] in said


@pytest.mark.parametrize("how", ["cut", "altered", "foreign", "gone"])
def test_import_and_inspect_refuse_a_damaged_file(finished, tmp_path, capsys, how):
    content = (finished / "masks" / "task-0.safetensors").read_bytes()
    file = tmp_path / "file"
    made = {
        "cut": content[: len(content) // 2],
        "altered": content[:-1] + bytes([content[-1] ^ 1]),
        "foreign": (finished / "checkpoint.safetensors").read_bytes(),
    }
    if how in made:
        file.write_bytes(made[how])
    refused(capsys, finished, file, finished, "--replace")
    assert maskcl("masks", "inspect", file) == 2
    said = capsys.readouterr().err
    assert str(file) in said
    assert said.count("\n") == 1


def test_an_unfinished_run_exports_what_is_finished_and_imports_nothing(
    unfinished, copy, tmp_path, capsys
):
    run = unfinished
    assert maskcl("masks", "export", run, "--task", 0, "-o", tmp_path / "mask") == 0
    capsys.readouterr()
    assert maskcl("masks", "export", run, "--task", 1, "-o", tmp_path / "other") == 2
    assert f"task 1 of {run} is not finished" in capsys.readouterr().err
    said = refused(capsys, run, tmp_path / "mask", run, "--replace")
    assert f"the run in {run} is not finished" in said
    # A whole run with the same base takes it.
    assert maskcl("masks", "import", tmp_path / "mask", copy, "--replace") == 0


def test_a_run_without_a_checkpoint_is_refused(tmp_path, finished, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished / "config.json", run)
    assert maskcl("masks", "export", run, "--task", 0, "-o", tmp_path / "new") == 2
    assert "checkpoint.safetensors does not exist" in capsys.readouterr().err


def test_report_compares_piggyback_runs(finished, capsys):
    assert maskcl("report", finished) == 0
    out = capsys.readouterr().out
    assert "piggyback" in out
    assert str(finished) in out


def test_help_names_the_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert maskcl("train", "piggyback", "--help") == 0
    out = capsys.readouterr().out
    for word in ("--base", "--head-lr", "--inclusive", "0.005", "frozen", "--norms"):
        assert word in out
    assert maskcl("pretrain", "--help") == 0
    assert "never upright" in capsys.readouterr().out
