"""Instructions of training steps and of ops' calls, over those of an unmasked step.

``python -m benchmarks.instructions`` prints the table, ``--write`` puts it into
``instructions.csv``; tests/test_instructions.py compares. Valgrind's callgrind counts, in one run
of `counted.py`: ratios of two runs differ by less than 1 % for steps, by up to 2 % for calls, where
times on a shared machine differ by far more. The steps are those of `steps.py`; the calls are those
of `calls.py`, over the unmasked step of the smaller MLP, whose kernels have next to nothing to do
either.

Every machine with AVX2 is the same processor under valgrind, without AVX-512. Other torches and
Pythons have other instructions: torch 2.13's ratios are within 5 % of 2.14's for steps, but up to
38 % above for calls, hence the wider bounds where the table is of other versions.
"""

from __future__ import annotations

import csv
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.counted import PLANTED, base_of
from maskcl import backends

FOLDER = Path(__file__).resolve().parent
TABLE = FOLDER / "instructions.csv"
FIELDS = ("piece", "instructions", "ratio")
BOUND = 0.1
OTHER_VERSIONS = {"step": 0.2, "call": 0.5}
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def absent() -> str:
    """Why nothing can be counted here; empty where it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"counted on Linux on x86-64 alone, this is {sys.platform} on {platform.machine()}"
    if shutil.which("valgrind") is None:
        return "valgrind is not installed (Debian and Ubuntu: apt install valgrind)"
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        return "this processor has no AVX2, or torch does not use it: other kernels, other counts"
    if reasons := backends.not_supported_reasons("cpp", "hat_gate", "cpu", torch.float32):
        return "; ".join(reasons)
    with tempfile.TemporaryDirectory() as folder:
        try:
            build(Path(folder))
        except RuntimeError as error:
            return str(error)
    return ""


def build(folder: Path) -> Path:
    """Compile the requests to callgrind; raises RuntimeError with the compiler's words."""
    library = folder / "callgrind.so"
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    command = [*compiler, "-shared", "-fPIC", str(FOLDER / "callgrind.cpp"), "-o", str(library)]
    try:
        ran = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"{compiler[0]}: {error.strerror}") from None
    if ran.returncode:
        raise RuntimeError(ran.stderr.strip().splitlines()[0])
    return library


def count() -> dict[str, int]:
    """Instructions of a call of each piece."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build(folder)
        command = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]
        command += [f"--callgrind-out-file={folder / 'out'}", f"--log-file={folder / 'log'}"]
        command += [sys.executable, "-m", "benchmarks.counted", str(library)]
        environment = {**os.environ, **ENVIRONMENT}
        environment.pop("COVERAGE_PROCESS_CONFIG", None)  # a process that is counted is not traced
        ran = subprocess.run(
            command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True
        )
        if ran.returncode:
            raise RuntimeError(f"{ran.stderr}\n{(folder / 'log').read_text()}"[-3000:])
        dumps = sorted(folder.glob("out.*"), key=lambda path: int(path.suffix[1:]))
        return dict(map(dumped, dumps))


def dumped(path: Path) -> tuple[str, int]:
    """The piece of one dump, and the instructions of one of its calls."""
    text = path.read_text()
    piece = re.search(r"^desc: Trigger: Client Request: (\d+) x (.*)$", text, flags=re.MULTILINE)
    total = re.search(r"^totals: (\d+)$", text, flags=re.MULTILINE)
    if piece is None or total is None:
        raise RuntimeError(f"{path.name} is no dump of callgrind's that was asked for")
    return piece[2], round(int(total[1]) / int(piece[1]))


def ratios(counts: dict[str, int]) -> dict[str, float]:
    """Each piece's count over the unmasked step's."""
    return {piece: number / counts[base_of(piece)] for piece, number in counts.items()}


def versions() -> str:
    """What the table was made with."""
    minor = ".".join(torch.__version__.split(".")[:2])
    return f"torch {minor}, Python {sys.version_info.major}.{sys.version_info.minor}"


def read() -> tuple[str, dict[str, float]]:
    """What the checked-in table was made with, and its ratios."""
    with TABLE.open(newline="") as file:
        (made_with,), _, *lines = csv.reader(file)
    return made_with, {piece: float(ratio) for piece, _, ratio in lines}


def write(counts: dict[str, int]) -> None:
    """Check the table in."""
    lines = [(p, counts[p], f"{r:.5f}") for p, r in ratios(counts).items() if p != PLANTED]
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([(versions(),), FIELDS, *lines])


def bound(piece: str, made_with: str) -> float:
    """By how much a ratio may differ from that of a table made with these versions."""
    if made_with == versions():
        return BOUND
    return OTHER_VERSIONS["step" if piece.startswith("step ") else "call"]


def differences(found: dict[str, float], known: dict[str, float], made_with: str) -> list[str]:
    """A line for each piece that is in one of them alone or is not within its bound."""
    lines = [f"{piece}: not in both" for piece in sorted(found.keys() ^ known.keys())]
    for piece, before in known.items():
        change = found.get(piece, before) / before - 1
        if abs(change) > bound(piece, made_with):
            lines.append(f"{piece}: was {before:.5f}, now {found[piece]:.5f} ({change:+.0%})")
    return lines


def main(arguments: list[str]) -> int:
    """Count, print, and with --write check in."""
    if reason := absent():
        print(reason)
        return 1
    counts = count()
    print(versions())
    for piece, ratio in ratios(counts).items():
        print(f"{piece:40}{counts[piece]:>10}{ratio:10.5f}")
    if "--write" in arguments:
        write(counts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
