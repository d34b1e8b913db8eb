"""Two processes that share a run have the result of one, each to the bit that of the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import resume_run

pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
from tests.training import two_processes

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
SAME = ("hat", "piggyback", "mas", "ewc", "few", "inferring", "node")


def in_two(folder: Path, *cases: str) -> dict[str, tuple[int, int]]:
    """Run cases in two processes; their exit codes by case."""
    root = str(Path(two_processes.__file__).parents[2])
    environment = os.environ | resume_run.ONE_THREAD | {"PYTHONPATH": root}
    command = [sys.executable, "-m", "tests.training.two_processes", str(folder), *cases]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines() if line.startswith(cases)]
    codes = {name: (int(a), int(b)) for name, *rest in lines if len(rest) == 2 for a, b in [rest]}
    assert codes.keys() == set(cases), run.stdout + run.stderr
    return codes


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    assert set(in_two(folder, ",".join(SAME)).values()) == {(0, 0)}
    return folder


@pytest.mark.parametrize("case", SAME)
def test_two_processes_are_as_one(case, shared):
    """65 and 66 samples in batches of 16, and fewer samples than two batches of two."""
    (first, result), (second, other) = (torch.load(shared / f"{case}.{k}.pt") for k in range(2))
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
