"""Runs csrc/cuda on the CPU: tests/ops and tests/cuda/emulated in a process whose GPU is emulated.

emulator/README.md says what that shows and what it cannot.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.emulator import build, device

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["tests/ops", "tests/cuda/emulated"]

pytestmark = pytest.mark.skipif(build.absent() is not None, reason=str(build.absent()))


def run(kernels: Path, tests: list[str]) -> str:
    """What pytest prints of ``tests`` in the process of an emulated GPU with these kernels."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", device.SWITCH: str(kernels)}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", *tests]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-9000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout.splitlines()[-1]
    return ran.stdout


@pytest.mark.slow
def test_cuda_kernels_match_the_reference_on_an_emulated_gpu() -> None:
    run(build.kernels(), FOLDERS)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang++") is None, reason="clang++ was not found")
def test_kernels_that_clang_compiles_match_the_reference() -> None:
    """Some of them: shared memory, barriers, votes, products of tensor cores."""
    kernels = build.kernels(units=["bitmask.cu", "packed_linear.cu"], by=["clang++"])
    found = run(kernels, ["tests/ops/test_bitmask.py", "-k", "cuda-cpu"])
    launched = re.search(r"emulated GPU: (\d+) of \d+ kernels were launched", found)
    assert launched and int(launched[1]) > 30, found[-2000:]
