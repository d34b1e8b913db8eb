"""The command line as a person uses it: exit codes, sentences, files, kill and resume."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from maskcl import cli
from maskcl.extras import install

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SMALL = ["--scenario", "split-digits", "--tasks", "2", "--hidden", "16,16", "--epochs", "2"]


def train(*arguments):
    return cli.main(["train", "hat", *map(str, arguments)])


def result_of(directory):
    return json.loads((directory / "result.json").read_text())


def everything_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run from start to end without interruption."""
    directory = tmp_path_factory.mktemp("runs") / "whole"
    assert train(*SMALL, "--out", directory) == 0
    return directory


# What a run leaves behind


def test_a_run_writes_result_report_and_pictures(finished):
    assert everything_in(finished) == [
        "accuracy.svg",
        "accuracy_over_time.svg",
        "capacity.svg",
        "checkpoint.safetensors",
        "config.json",
        "free.svg",
        "loss.svg",
        "masks.svg",
        "overlap.svg",
        "protected.svg",
        "report.html",
        "result.json",
        "training.svg",
    ]


def test_result_holds_what_the_issue_of_a_figure_needs(finished):
    result = result_of(finished)
    matrix = np.array(result["accuracy"], dtype=float)
    assert matrix.shape == (2, 2)
    assert np.isnan(matrix[0, 1])
    assert matrix[1, 0] == matrix[0, 0] > 0.5
    assert result["metrics"]["BWT"] == {"value": 0.0, "reason": None}
    assert result["metrics"]["ACC"]["value"] == pytest.approx(matrix[1].mean())
    assert result["metrics"]["FWT"]["value"] is None
    assert result["metrics"]["FWT"]["reason"]
    assert len(result["capacity"]) == len(result["protected"]) == len(result["seconds"]) == 2
    assert result["scenario"]["classes"] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert result["configuration"]["hidden"] == [16, 16]
    assert result["environment"]["torch"] == torch.__version__
    assert result["environment"]["backends"]["clamp_grads_"]
    # Two heads of 16 x 5, and 32 units a task.
    plain = 64 * 16 + 16 + 16 * 16 + 16 + 2 * (16 * 5 + 5)
    assert result["parameters"] == plain + 2 * 32
    assert result["mask_bytes"] == 4


def test_a_run_says_what_its_figures_are_of(tmp_path, capsys):
    assert train(*SMALL, "--out", tmp_path / "run", "--seed", 3) == 0
    out = capsys.readouterr().out
    assert "split-digits, task setting, seed 3: 2 tasks, classes 0-4 | 5-9, " in out
    assert "task 1 (2 of 2) epoch 2/2 loss " in out
    assert "after task 1 (2 of 2)" in out
    assert "after task 1  " in out
    assert "BWT 0.0000" in out
    assert "BWT: final minus just-trained accuracy, negative is forgetting" in out
    assert f"report: {tmp_path / 'run' / 'report.html'}" in out
    # A log gets no control characters.
    assert "\x1b" not in out


def test_the_seed_decides_the_run(finished, tmp_path):
    assert train(*SMALL, "--out", tmp_path / "again") == 0
    assert train(*SMALL, "--out", tmp_path / "other", "--seed", 1) == 0
    same, other = result_of(tmp_path / "again"), result_of(tmp_path / "other")
    assert same["weights_sha256"] == result_of(finished)["weights_sha256"]
    assert other["weights_sha256"] != same["weights_sha256"]


def test_domain_setting_scores_tasks_before_they_are_trained(tmp_path):
    arguments = ["--scenario", "permuted-digits", "--tasks", 2, "--hidden", "16", "--epochs", 1]
    assert train(*arguments, "--out", tmp_path / "run") == 0
    result = result_of(tmp_path / "run")
    assert result["accuracy"][0][1] is not None
    assert result["metrics"]["FWT"]["reason"] is None
    assert result["metrics"]["BWT"]["value"] == 0.0


@pytest.mark.parametrize("infer", [None, "masked"])
def test_the_class_setting_infers_tasks_and_says_both_views(infer, tmp_path):
    given = [] if infer is None else ["--infer", infer]
    run = tmp_path / "run"
    assert train(*SMALL, "--setting", "class", "--epochs", 4, *given, "--out", run) == 0
    result = result_of(run)
    found = result["inference"]
    assert found["space"] == result["configuration"]["infer"] == (infer or "shared")
    for name in ("told", "identified", "alone"):
        assert found[name][0][1] is None
        assert 0.3 < min(found[name][1]) <= 1
    assert [sum(row) for row in found["confusion"]] == result["scenario"]["test_sizes"]
    page = (run / "report.html").read_text()
    assert "Task inferred and task told" in page
    assert (run / "confusion.svg").stat().st_size > 1000
    out = ["--out", str(tmp_path / "task.pt2")]
    assert cli.main(["export", str(run), "--task", "1", *out]) == 0


# Bad input: one sentence, exit code 2, nothing written

BAD = [
    (["--scenario", "split-digit"], "unknown scenario 'split-digit': known are split-digits"),
    (["--scenario", "split-mnist"], "with --data DIR"),
    (["--scenario", "split-mnist", "--data", "/no/such"], "--data /no/such is not a folder"),
    (["--tasks", "11"], "10 classes, which cannot be cut into 11 tasks"),
    (["--tasks", "0"], "tasks must be at least 1, got 0"),
    (["--epochs", "0"], "epochs must be at least 1, got 0"),
    (["--epochs", "many"], "Invalid value for '--epochs'"),
    (["--batch-size", "0"], "batch-size must be at least 1, got 0"),
    (["--lr", "0"], "lr must be above 0, got 0.0"),
    (["--lr", "nan"], "lr must be a finite number above 0, got nan"),
    (["--lr", "inf"], "lr must be a finite number above 0, got inf"),
    (["--s-max", "inf"], "s_max is inf, wanted a finite number"),
    (["--weight-decay", "-1"], "weight-decay must be at least 0, got -1.0"),
    (["--seed", "-1"], "seed must be at least 0 and below 4294967296, got -1"),
    (["--optimizer", "lion"], "unknown optimizer 'lion': known are sgd, adam, adamw"),
    (["--momentum", "0.9"], "momentum belongs to sgd, adam has its own"),
    (["--model", "vgg"], "unknown model 'vgg': known are mlp, conv, resnet18"),
    (["--model", "conv"], "hidden belongs to the mlp, conv has none"),
    (["--hidden", "16,x"], "hidden must be widths such as 200,200, got '16,x'"),
    (["--precision", "8"], "unknown precision '8': known are 32, bf16, 16"),
    (["--precision", "16", "--device", "cpu"], "precision is '16', float16 with a scaled loss"),
    (["--lr-schedule", "linear"], "unknown lr-schedule 'linear': known are constant, cosine"),
    (["--warmup", "1"], "warmup must be at least 0 and below 1, got 1.0"),
    (["--warmup", "0.1", "--lr-schedule", "plateau"], "the schedule plateau has none"),
    (["--validation", "1"], "validation must be above 0 and below 1, got 1.0"),
    (["--patience", "2"], "patience goes with --validation"),
    (["--keep-last"], "keep-last goes with --validation"),
    (["--validation", "0.1", "--patience", "0"], "patience must be at least 1, got 0"),
    (["--evaluate", "first"], "evaluate must be all, last or a whole number of at least 1"),
    (["--evaluate", "0"], "evaluate must be all, last or a whole number of at least 1"),
    (["--accumulate", "0"], "accumulate must be at least 1, got 0"),
    (["--device", "tpu"], "unknown device 'tpu': known are auto, cpu, cuda"),
    (["--setting", "class", "--infer", "none"], "which the class setting does not tell at test"),
    (["--infer", "shared"], "infer is shared, and the task setting tells the task at test"),
    (["--setting", "class", "--infer", "all"], "unknown infer 'all': known are shared, masked"),
    (["--setting", "class", "--infer", "base"], "has no frozen base"),
    (["--setting", "time"], "split-digits has the settings task, domain, class, not 'time'"),
    (["--setting", "clss"], "unknown setting 'clss': known are task, domain, class, time"),
    (["--s-max", "0.5"], "s_max is 0.5"),
    (["--rule", "hatt"], "rule is 'hatt'"),
    (["--rule-value", "0.5"], "rule-value belongs to the rules const and adahat, rule is hat"),
    (["--rule", "const"], "rule const needs a number: --rule-value is missing"),
    (["--no-such-flag"], "No such option: --no-such-flag"),
    (["--config", "/no/such.yaml"], "--config /no/such.yaml does not exist"),
    (["--resume"], "holds no run that --resume could go on with"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(a) for a, _ in BAD])
def test_bad_input_gets_one_sentence_and_writes_nothing(tmp_path, capsys, arguments, sentence):
    (tmp_path / "kept").mkdir()
    code = train(*SMALL, "--out", tmp_path / "new" / "run", *arguments)
    said = capsys.readouterr()
    assert code == 2
    assert sentence in said.err
    assert said.err.startswith("maskcl: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err
    assert said.out == ""
    assert everything_in(tmp_path) == ["kept"]


def test_an_existing_directory_is_left_alone(tmp_path, capsys, finished):
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    assert train(*SMALL, "--out", finished) == 2
    assert "exists already (--resume goes on with it)" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert train(*SMALL, "--out", tmp_path / "empty") == 2
    assert "empty exists already\n" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert train(*SMALL, "--out", tmp_path / "file" / "run") == 2
    assert "is not a folder to write in" in capsys.readouterr().err
    assert everything_in(tmp_path) == ["empty", "file"]


def test_out_and_scenario_must_be_given(tmp_path, capsys):
    assert train("--scenario", "split-digits") == 2
    assert capsys.readouterr().err == "maskcl: --out is missing\n"
    assert train("--out", tmp_path / "run") == 2
    assert capsys.readouterr().err == "maskcl: --scenario is missing\n"
    assert everything_in(tmp_path) == []


def test_a_device_that_is_not_here_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train(*SMALL, "--out", tmp_path / "run", "--device", "cuda") == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err
    assert everything_in(tmp_path) == []


@pytest.mark.parametrize("arguments", [["tarin"], ["train", "hta"], ["report"], ["--nope"]])
def test_unknown_commands_get_one_sentence(capsys, arguments):
    assert cli.main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_diverging_run_says_so_without_a_traceback(tmp_path, capsys):
    assert train(*SMALL, "--out", tmp_path / "run", "--optimizer", "sgd", "--lr", "1e30") == 1
    said = capsys.readouterr().err
    assert "the run failed: the loss is" in said
    assert "smaller learning rate" in said
    assert said.count("\n") == 1


# A file of options


def test_flags_win_over_the_file(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "scenario: split-digits\ntasks: 2\nhidden: [16, 16]\nepochs: 7\nweight-decay: 1e-3\n"
        "precision: 32\ns_max: 100\n"
    )
    arguments = ["--config", tmp_path / "run.yaml", "--epochs", 1, "--out", tmp_path / "run"]
    assert train(*arguments) == 0
    found = result_of(tmp_path / "run")["configuration"]
    assert found["epochs"] == 1
    # YAML reads 1e-3 as text and 32 as a number; both are meant.
    assert found["weight_decay"] == 0.001
    assert found["precision"] == "32"
    assert found["s_max"] == 100.0


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("epoch: 3", "unknown key 'epoch'"),
        ("resume: true", "unknown key 'resume'"),
        ("epochs: 2.5", "epochs must be a whole number, got 2.5"),
        ("epochs: true", "epochs must be a whole number, got True"),
        ("lr: fast", "lr must be a number, got 'fast'"),
        ("model: [mlp]", "model must be text, got ['mlp']"),
        ("- epochs", "must hold 'name: value' lines"),
        ("a: b: c", "is not YAML"),
    ],
)
def test_a_bad_file_gets_one_sentence(tmp_path, capsys, content, sentence):
    (tmp_path / "run.yaml").write_text(content)
    assert train(*SMALL, "--out", tmp_path / "run", "--config", tmp_path / "run.yaml") == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert everything_in(tmp_path) == ["run.yaml"]


# Kill and resume


def start(directory, *more):
    command = [
        sys.executable,
        "-m",
        "maskcl",
        "train",
        "hat",
        *SMALL,
        "--out",
        directory,
        *more,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell's background job ignores SIGINT, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process, text):
    """Read the run's lines until one holds the text."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"the run ended without {text!r}: {process.stderr.read()}")


SAME = ("accuracy", "losses", "capacity", "protected", "masks", "weights_sha256", "metrics")


def test_killed_resumes_to_the_identical_result(tmp_path, finished):
    """At one moment: test_checkpoint has the others."""
    process = start(tmp_path / "run")
    wait_for(process, "task 0 (1 of 2) epoch 2/2")
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "run" / "result.json").exists()
    assert train("--out", tmp_path / "run", "--resume") == 0
    found, whole = result_of(tmp_path / "run"), result_of(finished)
    for name in SAME:
        assert found[name] == whole[name], name


def test_interrupt_exits_130_and_says_how_to_go_on(tmp_path, finished):
    process = start(tmp_path / "run")
    wait_for(process, "task 0 (1 of 2) epoch 1/2")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    command = f"maskcl train hat --out {tmp_path / 'run'} --resume"
    assert said == f"maskcl: interrupted; to go on from the last whole epoch: {command}\n"
    # The command that was printed, with nothing added.
    assert train("--out", tmp_path / "run", "--resume") == 0
    assert result_of(tmp_path / "run")["weights_sha256"] == result_of(finished)["weights_sha256"]


def test_an_interrupt_that_a_library_swallows_is_one(tmp_path, capsys, monkeypatch):
    """As torch.fx does while it imports torch._dynamo: another error comes of it."""

    def swallow(*arguments):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            signal.pthread_sigmask(signal.SIG_BLOCK, [])  # the handler runs here at the latest
        raise RuntimeError("half of it is not there")

    monkeypatch.setattr("maskcl.cli.train.scenario_of", swallow)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job behind & has none
    try:
        assert train(*SMALL, "--out", tmp_path / "new") == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    err = capsys.readouterr().err
    assert err == "maskcl: interrupted; a run that has begun goes on with --resume\n"


def test_resuming_a_finished_run_writes_the_same_result(finished):
    before = result_of(finished)
    assert train("--out", finished, "--resume") == 0
    after = result_of(finished)
    assert {name: after[name] for name in (*SAME, "seconds")} == {
        name: before[name] for name in (*SAME, "seconds")
    }


def test_a_run_with_held_out_samples_a_schedule_and_rare_tests(tmp_path):
    out = tmp_path / "run"
    more = ["--groups", "0,1/2,3/4,5", "--validation", "0.2", "--patience", "1", "--epochs", "4"]
    more += ["--lr-schedule", "cosine", "--warmup", "0.2", "--accumulate", "2"]
    assert train(*SMALL[:2], "--hidden", "16", *more, "--evaluate", "last", "--out", out) == 0
    result = result_of(out)
    assert result["accuracy"][1][0] is None
    assert None not in result["accuracy"][2]
    assert result["metrics"]["ACC"]["value"] is not None
    assert "not measured" in result["metrics"]["AIA"]["reason"]
    scores, best = result["validation_scores"], result["best_epochs"]
    assert all(task[at] == max(task) for task, at in zip(scores, best, strict=True))
    assert [len(task) for task in result["free_by_epoch"]] == [len(task) for task in scores]
    before = result["weights_sha256"]
    assert train("--out", out, "--resume") == 0
    assert result_of(out)["weights_sha256"] == before


def test_resume_refuses_other_options_and_names_the_first(finished, capsys):
    before = {p.name: p.read_bytes() for p in finished.iterdir()}
    assert train("--out", finished, "--resume", "--epochs", 9) == 2
    said = capsys.readouterr().err
    assert said == (
        f"maskcl: the run in {finished} has epochs 2, which --resume cannot change to 9\n"
    )
    assert {p.name: p.read_bytes() for p in finished.iterdir()} == before


def test_resume_from_a_damaged_checkpoint_is_refused(tmp_path, capsys, finished):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((finished / "config.json").read_bytes())
    checkpoint = (finished / "checkpoint.safetensors").read_bytes()
    (run / "checkpoint.safetensors").write_bytes(checkpoint[: len(checkpoint) // 2])
    assert train("--out", run, "--resume") == 2
    assert "checkpoint.safetensors is damaged" in capsys.readouterr().err


def test_a_run_killed_before_its_first_checkpoint_starts_anew(tmp_path, finished):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_bytes((finished / "config.json").read_bytes())
    assert train("--out", run, "--resume") == 0
    assert result_of(run)["weights_sha256"] == result_of(finished)["weights_sha256"]


# The other commands


def test_report_compares_runs(finished, tmp_path, capsys):
    assert train(*SMALL, "--out", tmp_path / "other", "--seed", 5) == 0
    capsys.readouterr()
    assert cli.main(["report", str(finished), str(tmp_path / "other")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("all runs: scenario split-digits, setting task, tasks 2, metric accuracy")
    assert "mean ± sd of 2" in out
    assert str(finished) in out


def test_an_encoding_without_a_sign_gets_its_number(finished, tmp_path):
    """The ± of a mean in an ASCII pipe is no error."""
    again = json.loads((finished / "result.json").read_text())
    again["configuration"]["seed"] = 1
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "result.json").write_text(json.dumps(again))
    command = [sys.executable, "-m", "maskcl", "report", str(finished), str(tmp_path / "again")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "mean \\xb1 sd of 2" in ran.stdout


def test_report_names_a_directory_without_a_result(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said == f"maskcl: {tmp_path / 'result.json'} does not exist: is the run finished?\n"


def test_info_names_every_op_and_backend(capsys):
    assert cli.main(["info"]) == 0
    out = capsys.readouterr().out
    for word in ("torch", "hat_gate", "clamp_grads_", "reference", "cpp", "triton", "cuda"):
        assert word in out


def test_help_names_the_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["train", "hat", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("--s-max", "400.0", "--weight-decay", "--embedding-clamp", "split-digits"):
        assert word in out


def test_without_typer_one_sentence_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "typer", None)
    for name in [name for name in sys.modules if name.startswith("maskcl.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == (
        f"maskcl: the command line needs typer: {install('train')}\n"
    )
    assert cli.main(["info"]) == 0  # a bug report's facts need torch alone
    assert "native libraries" in capsys.readouterr().out


def test_a_run_says_that_it_starts_before_torch_is_there(tmp_path):
    """Importing torch takes seconds; the installed command imports ``maskcl.cli`` likewise."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('none here', name='torch')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from maskcl.cli import main; sys.exit(main(['train', 'hat']))"
    )
    needed = f"maskcl: the command line needs torch: {install('train')}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (2, f"{needed}\n")
    reader, terminal = os.openpty()
    try:
        subprocess.run([sys.executable, "-c", code], stderr=terminal)
        assert os.read(reader, 1000).decode().split("\r\n")[:2] == ["maskcl: starting", needed]
    finally:
        os.close(reader)
        os.close(terminal)
