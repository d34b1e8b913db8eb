"""Builds the emulated CUDA kernels: csrc/cuda, rewritten, and the emulator, in one library.

Objects are named by all that they are made of, in ``build/emulator``, the compiler too: what did
not change is not compiled again, and what nobody asked for in a week goes. CXX says which compiler:
``CXX=clang++ python -m tests.cuda.emulator.build`` prints the library's path.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
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
        return "no C++ compiler was found (looked for CXX, g++, c++, clang++)"
    return None


def compiler() -> list[str]:
    """The words that start it: CXX where that is set; empty where there is none."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    return next((w for w in map(shlex.split, wanted) if shutil.which(w[0])), [])


def torch_folder() -> Path:
    return Path(find_spec("torch").origin).parent  # type: ignore[arg-type,union-attr]


def kernels(
    sanitized: bool = False,
    edited: dict[str, str] | None = None,
    units: Collection[str] | None = None,
    by: list[str] | None = None,
) -> Path:
    """The library of maskcl's CUDA kernels.

    Args:
        sanitized: with AddressSanitizer and UBSan.
        edited: other text for files of csrc/cuda, by name.
        units: the ``.cu`` files to compile; all by default.
        by: the words that start the compiler; :func:`compiler` by default.
    """
    sources = {path.name: path.read_text() for path in sorted((ROOT / "csrc/cuda").iterdir())}
    sources.update(edited or {})
    if units is not None:
        sources = {n: t for n, t in sources.items() if n in units or n.endswith(".cuh")}
    command = [*(by or compiler()), *FLAGS, *(SANITIZERS if sanitized else [])]
    torch_library = [f"-L{torch_folder() / 'lib'}", "-ltorch_cpu"]
    objects = _objects(sources, ROOT / "csrc", command)
    return _linked(objects, "kernels", ".so", [*command, "-shared"], torch_library)


def program(source: Path, by: list[str] | None = None) -> Path:
    """The program of one CUDA file with a ``main`` that does not need torch's libraries."""
    command = [*(by or compiler()), *FLAGS]
    objects = _objects({source.name: source.read_text()}, source.parent, command)
    return _linked(objects, source.stem, "", command, [])


def _objects(sources: dict[str, str], folder: Path, command: list[str]) -> list[Path]:
    """The emulator's and those of the CUDA files ``sources``, which lie in ``folder``'s cuda."""
    texts = {n: rewrite(text, str(folder / "cuda" / n)) for n, text in sources.items()}
    torch = torch_folder()
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
    return list(objects.values())


def _linked(
    objects: list[Path], stem: str, ending: str, command: list[str], libraries: list[str]
) -> Path:
    output = CACHE / f"{stem}-{_hash(*map(str, objects))}{ending}"
    if not output.exists():
        staged = f"{output}.{os.getpid()}"
        _run([*command, *map(str, objects), "-o", staged, *libraries])
        os.replace(staged, output)
    output.touch()
    for path in CACHE.iterdir():
        with suppress(FileNotFoundError):  # another process tidies too
            if path.is_file() and time.time() - path.stat().st_mtime > WEEK:
                path.unlink()
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
