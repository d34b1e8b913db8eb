"""Runs csrc/cuda on the CPU: tests/ops and tests/cuda/emulated in a process whose GPU is emulated.

emulator/README.md says what that shows and what it cannot.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.emulator import build, device

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ["tests/ops", "tests/cuda/emulated"]

pytestmark = pytest.mark.skipif(build.absent() is not None, reason=str(build.absent()))


@pytest.mark.slow
def test_cuda_kernels_match_the_reference_on_an_emulated_gpu() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", device.SWITCH: str(build.kernels())}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", *FOLDERS]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-9000:] + ran.stderr[-2000:]
    assert " passed" in ran.stdout.splitlines()[-1]
