"""Whatever lies in a run's folder: a sentence and exit code 2, or it works; never a traceback."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from maskcl import cli, files, masks
from maskcl.checkpoint import load_checkpoint, save_checkpoint
from maskcl.lock import LOCK, locked
from tests.cli.refusal import refused

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")

SMALL = ["--scenario", "split-digits", "--tasks", "2", "--hidden", "8", "--epochs", "1"]
OWN: dict[str, list[str]] = {"hat": [], "piggyback": ["--base", "random"], "mas": []}


def maskcl(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three methods; no test changes them."""
    folder = tmp_path_factory.mktemp("runs")
    for method, own in OWN.items():
        assert maskcl("train", method, *SMALL, *own, "--out", folder / method) == 0
    return folder


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs / "hat", tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- config.json, result.json, YAML


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"new_option": 1}, "unknown key 'new_option', which this maskcl does not have"),
        ({"lr": "x"}, "config.json: lr must be a number, got 'x'"),
        ({"lr": -1}, "config.json: lr must be above 0, got -1"),
        ({"epochs": [1]}, "config.json: epochs must be a whole number, got [1]"),
        ({"hidden": {"a": 1}}, "config.json: hidden must be widths"),
        ({"rule": "x\x1b[31m"}, "config.json: rule is 'x\\x1b[31m'"),
        ({"made_from": 3}, "config.json: made_from is 3, wanted an object"),
        ({"method": None}, "config.json: method is None, wanted text"),
        ({"seed": 10**400}, "config.json: seed must be a whole number, got 1000"),
    ],
)
def test_a_saved_value_is_checked_as_one_that_is_typed(copy, capsys, values, sentence):
    change(copy / "config.json", **values)
    before = content(copy)
    refused(capsys, sentence, "train", "hat", "--out", copy, "--resume")
    refused(capsys, sentence, "export", copy, "--task", 0, "--out", copy / "new.pt2")
    assert content(copy) == before


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "cannot be read"),
        ("[" * 200_000, "nested too deeply"),
        ('{"scenario": "a", "scenario": "b"}', "the key 'scenario' is there twice"),
        ('{"lr": ' + "9" * 5000 + "}", "number of thousands of digits"),
        ('{"lr": NaN}', "NaN is no JSON number"),
        ("[]", "is not a run's configuration"),
        (b"\xff\xfe", "byte 0 is not UTF-8 text"),
    ],
)
def test_a_config_that_is_none_is_told(copy, capsys, text, sentence):
    path = copy / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(capsys, sentence, "train", "hat", "--out", copy, "--resume")
    path.unlink()
    path.mkdir()
    refused(capsys, "is a directory", "forget", copy, "--task", 0)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"metrics": None}, "result.json: metrics is None, wanted an object"),
        ({"metrics": {}}, "result.json has no metrics.ACC"),
        ({"version": 2}, "has version 2, this maskcl reads 1"),
        ({"version": "1\n"}, "has version 1\\n, this maskcl reads 1"),
        ({"format": "other"}, "is not a result of maskcl"),
        ({"accuracy": [[0.5]]}, "accuracy has 1 entries for 2 tasks"),
        ({"accuracy": [[0.5, "x"], [0.5, 0.5]]}, "accuracy[0][1] is 'x', wanted a number or null"),
        ({"seconds": 3}, "seconds is 3, wanted a list"),
        ({"method": ["hat"]}, "method is ['hat'], wanted text"),
        ({"parameters": True}, "parameters is True, wanted a whole number"),
    ],
)
def test_a_result_is_checked_when_it_is_read(copy, capsys, values, sentence):
    change(copy / "result.json", **values)
    refused(capsys, sentence, "report", copy)


@pytest.mark.parametrize("key", ["metrics", "scenario", "configuration", "seconds", "accuracy"])
def test_a_fact_that_a_result_lacks_is_named(copy, capsys, key):
    path = copy / "result.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))
    refused(capsys, f"result.json has no {key}", "report", copy)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("lr: 2024-13-45", "lr must be a number, got '2024-13-45'"),
        ("lr: " + "9" * 400, "lr must be a number, got 999"),
        ("lr: " + "9" * 5000, "is not YAML"),
        ("epochs: " + "9" * 400, "epochs must be a whole number, got 999"),
        ("lr: 1\nlr: 2", "the key 'lr' is there twice"),
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: &a [1]\nb: [*a, *a]", "aliases (*name) are not read"),
        ("lr: !!python/object/apply:os.getcwd []", "is not YAML"),
        ("lr: .inf", "lr must be a finite number above 0, got inf"),
        ("out: 'a\\0b'", "--out is missing"),
        ('out: "a\\0b"', "out must be text, got 'a\\x00b'"),
        ("? [1, 2]\n: 3", "is not YAML"),
        ("\x00", "is not YAML"),
        ("hidden: 99999999999", "hidden must be widths"),
        ("hidden: 100000000,100000000", "this machine has"),
    ],
)
def test_a_yaml_file_is_read_with_the_options_own_rules(tmp_path, capsys, text, sentence):
    (tmp_path / "a.yaml").write_text(text)
    out = [] if text.startswith("out") else ["--out", tmp_path / "run"]
    if "--out is missing" in sentence:
        (tmp_path / "a.yaml").write_text("")
    words = ["--scenario", "split-digits", *out, "--config", tmp_path / "a.yaml"]
    refused(capsys, sentence, "train", "hat", *words)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.yaml"]


@pytest.mark.parametrize("name", ["\0", "n" * 300, "", "none/\x1b[1m"])
def test_names_that_no_file_has_are_told(tmp_path, capsys, name):
    refused(capsys, "", "report", tmp_path / name)
    refused(capsys, "", "masks", "inspect", tmp_path / name)
    refused(capsys, "", "train", "hat", "--config", tmp_path / name, "--out", "o")


def test_an_unknown_key_of_a_yaml_file_cannot_act_on_the_terminal(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text('"\\e[31m[red]\\u202e": 1')
    words = ["train", "hat", "--config", tmp_path / "a.yaml", "--out", "o"]
    refused(capsys, "unknown key '\\x1b[31m[red]\\u202e'", *words)


# --- places


def test_a_place_that_cannot_be_is_told_before_anything_is_read(tmp_path, capsys, monkeypatch):
    from maskcl import scenarios

    def read(*_: object, **__: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr(scenarios, "load", read)
    words = ["train", "hat", *SMALL, "--out"]
    refused(capsys, "its name is too long", *words, tmp_path / "a" / ("n" * 300))
    refused(capsys, "exists already", *words, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words += [tmp_path / "run", "--device", "cuda"]
    refused(capsys, "torch finds no CUDA device here", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", [99, -1])
def test_a_task_that_a_run_has_not_is_told_before_all_else(runs, tmp_path, capsys, task):
    said = f"has tasks 0 to 1, got {task}"
    out = ["--out", tmp_path / "x.onnx"]
    refused(capsys, said, "export", runs / "hat", "--task", task, *out)
    refused(capsys, said, "masks", "export", runs / "piggyback", "--task", task, *out)
    refused(capsys, said, "forget", runs / "hat", "--task", task)
    file = runs / "piggyback" / "masks" / "task-0.safetensors"
    refused(capsys, said, "masks", "import", file, runs / "piggyback", "--task", task)


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_a_run_with_a_sentence_and_the_run_goes_on_later(
    runs, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    words = ["train", "hat", *SMALL, "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        assert maskcl(*words) == 1
    said = capsys.readouterr().err
    assert said.startswith("maskcl: the run failed: ")
    assert said.endswith("config.json: no space left on device\n")
    assert list(tmp_path.iterdir()) == []
    shutil.copytree(runs / "hat", out)
    before = content(out)
    for command in (
        ["train", "hat", "--out", out, "--resume"],
        ["forget", out, "--task", "0"],
        ["export", out, "--task", "0", "--out", out / "x.safetensors"],
    ):
        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            assert maskcl(*command) == 1
        assert "the run failed: " in capsys.readouterr().err
        assert content(out) == before
    assert maskcl("train", "hat", "--out", out, "--resume") == 0


# --- the lock


def test_a_folder_in_use_is_refused_to_all_that_write(runs, tmp_path, capsys):
    out, other = tmp_path / "hat", tmp_path / "piggyback"
    shutil.copytree(runs / "hat", out)
    shutil.copytree(runs / "piggyback", other)
    code = "import sys, time\nfrom maskcl.lock import locked\nwith locked(sys.argv[1]), "
    code += "locked(sys.argv[2]):\n print('held', flush=True)\n time.sleep(60)"
    command = [sys.executable, "-c", code, str(out), str(other)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        before = content(tmp_path)
        said = f"is in use by process {process.pid} on "
        refused(capsys, said, "train", "hat", "--out", out, "--resume")
        refused(capsys, said, "train", "hat", "--out", out, "--add-tasks", 1)
        refused(capsys, said, "forget", out, "--task", 0)
        file = other / "masks" / "task-0.safetensors"
        refused(capsys, said, "masks", "import", file, other, "--replace")
        assert content(tmp_path) == before
        assert maskcl("report", out) == 0  # to read needs no lock
        assert maskcl("masks", "export", other, "--task", 0, "--out", tmp_path / "m") == 0
        process.kill()
    assert maskcl("forget", out, "--task", 0) == 0
    assert not (out / LOCK).exists()


def test_a_folder_that_gets_tables_is_locked_too(tmp_path, capsys):
    code = "import sys, time\nfrom maskcl.lock import locked\nwith locked(sys.argv[1]):\n"
    code += " print('held', flush=True)\n time.sleep(60)"
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        words = ["reproduce", "class-incremental", "--seeds", 1, "--out", tmp_path / "out"]
        refused(capsys, f"is in use by process {process.pid} on ", *words)
        process.kill()


# --- nobody reads


def test_a_closed_pipe_ends_a_run_with_the_hint(tmp_path, capfd, monkeypatch):
    class Closed:
        encoding, closed = "utf-8", False

        def write(self, text: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        def flush(self) -> None:
            self.write("")

        def isatty(self) -> bool:
            return False

        def fileno(self) -> int:
            raise OSError(errno.EBADF, "not a file")

    monkeypatch.setattr(sys, "stdout", Closed())
    assert maskcl("train", "hat", *SMALL, "--out", tmp_path / "run") == 141
    assert maskcl("info") == 141
    monkeypatch.undo()
    said = capfd.readouterr().err
    hint = f"maskcl train hat --out {tmp_path / 'run'} --resume"
    assert said == (
        "maskcl: nobody reads the output any more: ended; to go on from the last whole epoch:"
        f" {hint}\n"
    )
    assert maskcl("train", "hat", "--out", tmp_path / "run", "--resume") == 0


def test_a_pipe_that_closes_leaves_no_word_at_the_interpreters_end(runs):
    # The reader is gone before anything is said.
    command = (
        f"{sys.executable} -m maskcl.cli report {runs / 'hat'} | true; exit ${{PIPESTATUS[0]}}"
    )
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (found.stderr, found.returncode) == ("", 141)


# --- names from files


def test_facts_of_a_file_of_masks_are_shown_and_do_nothing(runs, tmp_path, capsys):
    found = masks.read_masks(runs / "piggyback" / "masks" / "task-0.safetensors")
    evil = "\x1b]0;owned\x07[red]\r\n\u202e"
    found.facts.update({"trained_on": evil, evil: [evil]})
    masks.mask_file.write_masks(tmp_path / "m", found)
    capsys.readouterr()
    assert maskcl("masks", "inspect", tmp_path / "m") == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert "trained on: \\x1b]0;owned\\x07[red]\\r\\n\\u202e" in out


def test_a_result_of_odd_names_is_shown_and_does_nothing(copy, capsys):
    found = json.loads((copy / "result.json").read_text())
    found["scenario"]["name"] = "\x1b[2J[bold]name\n"
    found["configuration"]["model"] = "\x07"
    (copy / "result.json").write_text(json.dumps(found))
    capsys.readouterr()
    assert maskcl("report", copy) == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert "\\x1b[2J[bold]name\\n" in out


# --- anything

ODD: tuple[Any, ...] = (
    None, True, -1, 0, 3, 1e308, 10**30, "", "x", "\x1b[31m", [], [[]], {}, {"a": {}}, [None],
    [-1, 10**12], "0,1/2,3", "../../x", 2**63,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to everything in a JSON value."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    return [path, *(way for key in keys for way in places(value[key], (*path, key)))]


def mutated(value: Any, rng: random.Random) -> Any:
    """A copy with one or two things replaced, taken away or added."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.randint(1, 2)):
        ways = [way for way in places(value) if way]
        if not ways:
            return rng.choice(ODD)
        *above, key = rng.choice(ways)
        inner = value
        for step in above:
            inner = inner[step]
        match rng.randrange(4):
            case 0:
                del inner[key]
            case 1 if isinstance(inner, dict):
                inner[rng.choice(["new", "\x1b", key])] = rng.choice(ODD)
            case _:
                inner[key] = rng.choice(ODD)
    return value


def ends_well(capsys: pytest.CaptureFixture[str], note: str, *arguments: object) -> None:
    capsys.readouterr()
    try:
        code = maskcl(*arguments)
    except Exception as error:
        raise AssertionError(f"{note}: {type(error).__name__}: {error}") from error
    said = capsys.readouterr().err
    assert code in (0, 2), f"{note}: exit {code}: {said}"
    assert all(line.isprintable() for line in said.split("\n")), note
    assert said.count("maskcl: ") == (code == 2), f"{note}: {said}"


@pytest.mark.parametrize("method", list(OWN))
def test_any_result_ends_in_a_report_or_a_sentence(runs, tmp_path, capsys, method):
    rng, whole = random.Random(method), json.loads((runs / method / "result.json").read_text())
    for index in range(60):
        (tmp_path / "result.json").write_text(json.dumps(mutated(whole, rng)))
        ends_well(capsys, f"result {method} {index}", "report", tmp_path)


@pytest.mark.parametrize("method", list(OWN))
def test_any_config_ends_in_a_run_or_a_sentence(runs, tmp_path, capsys, method):
    rng, run = random.Random(method), tmp_path / "run"
    shutil.copytree(runs / method, run)
    whole = json.loads((run / "config.json").read_text())
    for index in range(30):
        (run / "config.json").write_text(json.dumps(mutated(whole, rng)))
        target = tmp_path / f"{index}.safetensors"
        ends_well(capsys, f"config {index}", "export", run, "--task", 0, "--out", target)


@pytest.mark.parametrize("method", list(OWN))
def test_any_checkpoint_ends_in_a_run_or_a_sentence(runs, tmp_path, capsys, method):
    """Of another hand, with a right SHA-256."""
    rng, run = random.Random(method), tmp_path / "run"
    shutil.copytree(runs / method, run)
    path = run / "checkpoint.safetensors"
    for index in range(30):
        found = load_checkpoint(runs / method / path.name)
        part = rng.choice(["config", "position", "facts", "tensors"])
        if part == "tensors":
            name = rng.choice(sorted(found.tensors))
            found.tensors[name] = rng.choice([torch.zeros(0), torch.ones(3, 3), torch.tensor(7)])
            if rng.random() < 0.3:
                del found.tensors[name]
        else:
            setattr(found, part, mutated(getattr(found, part), rng))
        save_checkpoint(path, found)
        target = tmp_path / f"{index}.safetensors"
        ends_well(capsys, f"checkpoint {index}", "export", run, "--task", 0, "--out", target)
        ends_well(capsys, f"checkpoint {index}", "train", method, "--out", run, "--add-tasks", 99)
        if index % 6 == 0:
            ends_well(capsys, f"checkpoint {index}", "train", method, "--out", run, "--resume")


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "masks/task-0.safetensors"])
def test_any_flipped_bit_is_told(runs, tmp_path, capsys, name):
    run = tmp_path / "run"
    shutil.copytree(runs / "piggyback", run)
    path, rng = run / name, random.Random(name)
    data = path.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    for index in range(40):
        changed = bytearray(data)
        at = rng.randrange(size) if index % 2 else rng.randrange(len(data))
        changed[at] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        note = f"bit in byte {at} of {len(data)}"
        if name.startswith("masks"):
            ends_well(capsys, note, "masks", "inspect", path)
            with pytest.raises(masks.MaskFileError):
                masks.read_masks(path)
        else:
            with pytest.raises(ValueError, match="checkpoint"):
                load_checkpoint(path)
    ends_well(capsys, "the last", "masks", "export", run, "--task", 0, "--out", tmp_path / "m")


def test_any_yaml_ends_in_a_sentence(tmp_path, capsys):
    rng, path = random.Random(0), tmp_path / "a.yaml"
    whole = {"scenario": "split-digits", "lr": 0.1, "hidden": [8, 8], "epochs": 1, "seed": 0}
    for index in range(80):
        text = json.dumps(mutated(whole, rng))
        if index % 2:
            at = rng.randrange(len(text))
            text = text[:at] + rng.choice("[]{}:&*!|>%@`\"'\t#?,- \x1b\n") + text[at + 1 :]
        path.write_text(text)
        # A device that is refused at the latest.
        words = ["--out", tmp_path / "run", "--config", path, "--no-such"]
        ends_well(capsys, f"YAML {text!r}", "train", "hat", *words)
        ends_well(capsys, f"YAML {text!r}", "train", "hat", *words[:-1], "--tasks", 99)


def test_a_writer_inside_a_lock_is_one_with_its_trainer(tmp_path):
    """The command holds the folder around the Trainer, which asks for it too."""
    with locked(tmp_path), locked(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_an_option_in_the_place_of_a_method_is_told_what_comes_first(capsys):
    wanted = "No such option: --out: wanted one of hat, piggyback, mas, ewc, finetune"
    refused(capsys, wanted, "train", "--out", "run", "--resume")
    refused(capsys, "wanted one of export, import, inspect in front of it", "masks", "--task", 1)
