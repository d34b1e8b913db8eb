"""``torchrun -m maskcl train``: one writer, one voice, the result of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from maskcl.cli import main, processes
from maskcl.cli.options import CommandError
from tests import resume_run

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**resume_run.ONE_THREAD, "PYTHONPATH": str(ROOT)}
RUN = ["--scenario", "split-digits", "--tasks", "2", "--epochs", "2", "--device", "cpu"]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def in_two(*commands: tuple[int, list[str]]) -> list[tuple[list[int], str, str]]:
    """Exit codes, standard output and errors of each command."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    call = [sys.executable, "-m", "tests.cli.two_commands", json.dumps(commands)]
    environment = os.environ | ENVIRONMENT
    run = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    found = []
    for part in run.stdout.split("begin\n")[1:]:
        said, _, codes = part.rpartition("exit ")
        found.append(([int(code) for code in codes.split()], said))
    assert len(found) == len(commands), run.stdout
    return [(codes, said, run.stderr) for codes, said in found]


def test_torchrun_has_the_result_of_one_process(tmp_path):
    """72 images a batch, 717 in all: the last batch is shared too."""
    given = ["train", "mas", *RUN, "--batch-size", "72"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    call = [*torchrun, "--nproc-per-node", "2", "-m", "maskcl", *given, "--out", tmp_path / "two"]
    run = subprocess.run(call, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("report:") == 1
    assert run.stdout.count("after task 1 (2 of 2)") == 1
    assert not list((tmp_path / "two").glob(".*"))  # no lock is left
    assert main([*given, "--out", str(tmp_path / "one")]) == 0
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    for name in ("losses", "training_accuracies"):
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5)
    assert two["accuracy"] == one["accuracy"]


def test_a_killed_first_process_ends_the_other_and_the_run_resumes_to_the_same(tmp_path):
    whole, killed, bad = tmp_path / "whole", tmp_path / "killed", tmp_path / "bad"
    given = ["train", "hat", *RUN, "--dropout", "0.3"]
    found = in_two(
        (0, [*given, "--out", str(whole)]),
        (3, [*given, "--out", str(killed)]),  # config.json's renaming comes before checkpoints'
        (0, ["train", "hat", "--resume", "--out", str(killed)]),
        (0, [*given, "--out", str(killed)]),
        (0, [*given, "--batch-size", "15", "--out", str(bad)]),
        (0, [*given, "--references", "--out", str(bad)]),
        (0, ["train", "hat", *RUN, "--model", "conv", "--sync-batchnorm", "--out", str(bad)]),
        (0, ["train", "joint", *RUN, "--out", str(bad)]),
        (0, ["report", str(whole)]),
    )
    assert [codes for codes, _, _ in found] == [[0, 0], [-9, 1], [0, 0], *[[2, 2]] * 6]
    assert [said.count("report:") for _, said, _ in found] == [1, 0, 1] + [0] * 6
    errors = found[0][2]
    for sentence in (
        "process 1: another process of the run has ended or does not answer",
        f"{killed} exists already",
        "batch-size 15 is shared among 2 processes, wanted a multiple of 2",
        "leave out --references",
        "sync-batchnorm is for CUDA",
        "joint mixes",
        "maskcl report is for one process",
    ):
        assert errors.count(sentence) == 1, (sentence, errors)
    assert "Traceback" not in errors
    assert not bad.exists()
    assert result(killed)["weights_sha256"] == result(whole)["weights_sha256"]
    assert main(["train", "hat", "--resume", "--out", str(killed)]) == 2  # as one process


def test_who_a_process_is_is_what_torchrun_says(monkeypatch):
    for name in processes._NAMES:
        monkeypatch.delenv(name, raising=False)
    assert (processes.count(), processes.number(), processes.is_first()) == (1, 0, True)
    monkeypatch.setenv("WORLD_SIZE", "4")  # a cluster's own, of no torchrun
    assert processes.count() == 1
    assert processes.share_of(7) == 7
    for name, value in zip(processes._NAMES, ("3", "4", "1", "host", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert (processes.count(), processes.number(), processes.is_first()) == (4, 3, False)
    assert processes.share_of(64) == 16
    with pytest.raises(CommandError, match="batch-size 6 is shared among 4"):
        processes.share_of(6)
