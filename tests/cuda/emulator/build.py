"""Builds the emulated CUDA kernels: csrc/cuda, rewritten, and the emulator, in one library.

Objects are named by all that they are made of, in ``build/emulator``: what did not change is not
compiled again, and what nobody asked for in a week goes. ``python -m tests.cuda.emulator.build``
prints the library's path.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from tests.cuda.emulator.rewrite import rewrite

ROOT = Path(__file__).resolve().parents[3]
HOST = Path(__file__).resolve().parent / "host"
CACHE = ROOT / "build" / "emulator"
WEEK = 7 * 24 * 3600
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g1"]
FLAGS = [
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # the same bits from every compiler and processor
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # as setup.py has it
    "-DTORCH_STABLE_ONLY",
]


def absent() -> str | None:
    """Why the kernels cannot be built on this machine; None where they can."""
    if sys.platform != "linux":
        return f"the emulator runs on Linux, this is {sys.platform}"
    if not compiler():
        return "no C++ compiler was found (looked for CXX, c++, g++, clang++)"
    return None


def compiler() -> list[str]:
    """The words that start it; empty where there is none."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((w for w in map(shlex.split, wanted) if shutil.which(w[0])), [])


def torch_folder() -> Path:
    return Path(find_spec("torch").origin).parent  # type: ignore[arg-type,union-attr]


def kernels(sanitized: bool = False, edited: dict[str, str] | None = None) -> Path:
    """The library of all of maskcl's CUDA kernels.

    Args:
        sanitized: with AddressSanitizer and UBSan.
        edited: other text for files of csrc/cuda, by name.
    """
    sources = {path.name: path.read_text() for path in sorted((ROOT / "csrc/cuda").iterdir())}
    return library({**sources, **(edited or {})}, ROOT / "csrc", sanitized)


def library(sources: dict[str, str], folder: Path, sanitized: bool = False) -> Path:
    """The library of the CUDA files ``sources``, which lie in ``folder``'s cuda."""
    texts = {n: rewrite(text, str(folder / "cuda" / n)) for n, text in sources.items()}
    torch = torch_folder()
    command = [*compiler(), *FLAGS, *(SANITIZERS if sanitized else [])]
    beside = [*sorted(HOST.glob("*.h")), *sorted(folder.glob("*.h"))]
    common = [" ".join(command), _version(command[0]), (torch / "version.py").read_text()]
    common += [path.read_text() for path in beside]
    common += [text for name, text in texts.items() if name.endswith(".cuh")]

    # Rewritten files include each other, and ../common.h, as they did where they were.
    tree = CACHE / ("tree-" + _hash(*common, *texts.values()))
    (tree / "cuda").mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.h"):
        (tree / path.name).write_text(f'#line 1 "{path}"\n{path.read_text()}')
    for name, text in texts.items():
        (tree / "cuda" / name).write_text(text)

    includes = [f"-I{HOST}", "-isystem", str(torch / "include")]
    units = [(path, path.read_text()) for path in sorted(HOST.glob("*.cpp"))]
    units += [(tree / "cuda" / name, text) for name, text in texts.items() if name.endswith(".cu")]
    objects = {path: CACHE / f"{path.stem}-{_hash(text, *common)}.o" for path, text in units}

    def compile_unit(path: Path) -> None:
        output = objects[path]
        if not output.exists():
            staged = f"{output}.{os.getpid()}"
            _run([*command, *includes, "-x", "c++", "-c", str(path), "-o", staged])
            os.replace(staged, output)
        output.touch()

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        list(pool.map(compile_unit, objects))
    shutil.rmtree(tree)
    output = CACHE / f"kernels-{_hash(*map(str, objects.values()))}.so"
    if not output.exists():
        staged = f"{output}.{os.getpid()}"
        torch_library = [f"-L{torch / 'lib'}", "-ltorch_cpu"]
        _run([*command, "-shared", *map(str, objects.values()), "-o", staged, *torch_library])
        os.replace(staged, output)
    output.touch()
    for path in CACHE.glob("*.*"):
        if time.time() - path.stat().st_mtime > WEEK:
            path.unlink(missing_ok=True)
    return output


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True).stdout


def _run(command: list[str]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise RuntimeError(f"{shlex.join(command)}\n{ran.stderr[-6000:]}")


if __name__ == "__main__":
    print(kernels("--sanitized" in sys.argv))
