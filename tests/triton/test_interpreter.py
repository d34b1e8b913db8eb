"""Runs tests/triton/interpreted under Triton's interpreter, chosen before Triton is imported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_interpreted_kernels_match_the_reference() -> None:
    pytest.importorskip("triton.language", reason="Triton is not installed")
    import triton

    if (
        triton.__version__.startswith("3.6.")
        and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0"
    ):
        pytest.skip("the interpreter of Triton 3.6 cannot run a loop under NumPy 2.4")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-x", str(HERE / "interpreted")]
    ran = subprocess.run(
        command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, timeout=600
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    summary = ran.stdout.splitlines()[-1]
    assert " passed" in summary
    assert "skipped" not in summary
