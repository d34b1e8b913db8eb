"""Two processes that share a run have the result of one, each to the bit that of the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from maskcl.checkpoint import CheckpointError
from tests import resume_run

pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
from tests.training import two_processes

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SAME = ("hat", "piggyback", "mas", "ewc", "few", "inferring", "node")


def in_two(folder: Path, *cases: str) -> tuple[list[list[int]], str]:
    """Run cases in two processes; the exit codes of each, and what was said."""
    root = str(Path(two_processes.__file__).parents[2])
    environment = os.environ | resume_run.ONE_THREAD | {"PYTHONPATH": root}
    command = [sys.executable, "-m", "tests.training.two_processes", str(folder), *cases]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    codes = [[int(code) for code in line[2:]] for line in lines if line[:1] == ["exit"]]
    assert len(codes) == len(cases), run.stdout + run.stderr
    return codes, run.stdout


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    codes, said = in_two(folder, ",".join([*SAME, "norms", "dropout"]))
    assert codes == [[0, 0]], said
    return folder


def load(folder: Path, case: str, rank: int):
    return torch.load(folder / f"{case}.{rank}.pt")


@pytest.mark.parametrize("case", SAME)
def test_two_processes_are_as_one(case, shared):
    """65 and 66 samples in batches of 16, and fewer samples than two batches of two."""
    (first, result), (second, other) = (load(shared, case, k) for k in range(2))
    one = two_processes.CASES[case](1)
    one.fit()
    wanted = one.net.state_dict()
    assert first.keys() == second.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(first[name], second[name]), name
        # Float32 statistics of large features: sums of products go in another order.
        near = 1e-3 if name.startswith("inference.") else 1e-5
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=near)
    mine = one.result.to_dict()
    for name in mine.keys() - {"seconds"}:
        assert repr(result[name]) == repr(other[name]), name
    np.testing.assert_array_equal(result["matrix"], mine["matrix"])
    for name in ("losses", "accuracies", "validation"):
        for found, own in zip(result[name], mine[name], strict=True):
            np.testing.assert_allclose(found, own, rtol=1e-5)


def test_running_statistics_are_the_same_everywhere(shared):
    (first, _), (second, _) = (load(shared, "norms", k) for k in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_a_run_whose_second_process_was_killed_ends_as_one_that_was_not(shared, tmp_path):
    """With dropout: each process goes on with its own generators."""
    codes, said = in_two(tmp_path, "killed:6", "killed", "spoilt")
    assert codes == [[1, -9], [0, 0], [1, 1]]
    assert "RuntimeError: Trainer: another process of the run has ended" in said
    for rank in range(2):
        state, result = load(tmp_path, "killed", rank)
        wanted, whole = load(shared, "dropout", rank)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in state.items())
        assert result["losses"] == whole["losses"]
    # Where the second has another network at the end of a task, both raise.
    assert (
        said.count("after task 1 processes hold different values of model.5.norms.1.running_mean")
        == 2
    )
    with pytest.raises(CheckpointError, match="is of a run with processes 2, this run has 1"):
        two_processes.CASES["killed"](1, directory=tmp_path / "killed").fit(resume=True)
