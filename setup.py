"""Builds the native libraries of maskcl; everything else is in pyproject.toml.

Two libraries come of csrc: `maskcl/libmaskcl_cpu.so` and, where nvcc is present,
`maskcl/libmaskcl_cuda.so`. Both use the LibTorch stable ABI and nothing of Python's: one file
serves every Python and every torch from TORCH_TARGET on. torch is read for its headers and not
imported.

    MASKCL_BUILD=auto|0|1    0: pure Python. 1: fail where it cannot be built. auto: if possible
    MASKCL_CUDA=auto|0|1     the same for the CUDA library alone
    TORCH_CUDA_ARCH_LIST     default "8.0;9.0+PTX"
    CXX, CXXFLAGS, CUDA_HOME, MAX_JOBS

What was built, and why something was not, is written to maskcl/_build.json for `maskcl info`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

CSRC = Path(__file__).resolve().parent / "csrc"
TORCH_TARGET = (2, 11)  # the oldest torch that the libraries load under
CPU_LIBRARY = "libmaskcl_cpu.so"
CUDA_LIBRARY = "libmaskcl_cuda.so"
DEFINES = [
    f"-DTORCH_TARGET_VERSION=0x{TORCH_TARGET[0]:02x}{TORCH_TARGET[1]:02x}000000000000",
    "-DTORCH_STABLE_ONLY",
]


class BuildError(RuntimeError):
    """A native library cannot be built here; the message is the reason that users are told."""


def switch(name: str) -> str:
    value = os.environ.get(name) or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"setup.py: {name} must be auto, 0 or 1, found {value!r}")
    return value


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise BuildError(
            f"{name} was not installed where maskcl was built"
            f" (pip install {name}; then build with --no-build-isolation)"
        )
    return Path(spec.submodule_search_locations[0])


def torch_folder() -> tuple[Path, str, str]:
    """The folder of torch, its version and the CUDA version that it was built for ("" for none)."""
    folder = package_folder("torch")
    facts: dict[str, str | None] = {}
    exec((folder / "version.py").read_text(), facts)
    version = str(facts["__version__"])
    if tuple(map(int, version.split(".")[:2])) < TORCH_TARGET:
        raise BuildError(
            f"torch >= {'.'.join(map(str, TORCH_TARGET))} is needed to build, found torch {version}"
        )
    return folder, version, facts.get("cuda") or ""


def cxx_compiler() -> list[str]:
    if sys.platform == "win32":
        raise BuildError("the native libraries are built on Linux and macOS only")
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    for words in map(shlex.split, wanted):
        if shutil.which(words[0]):
            return words
    raise BuildError(f"no C++ compiler was found (looked for {', '.join(wanted)})")


def nvcc_compiler(torch: Path, torch_cuda: str) -> tuple[str, str]:
    """The path of nvcc and its version."""
    if not torch_cuda:
        raise BuildError("the torch that maskcl was built with has no CUDA")
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    beside_torch = sorted((torch.parent / "nvidia").glob("cu*/bin/nvcc"))
    places = [
        *(home / "bin/nvcc" for home in homes),
        "nvcc",
        "/usr/local/cuda/bin/nvcc",
        *beside_torch,
    ]
    nvcc = next((found for found in map(shutil.which, map(str, places)) if found), None)
    if nvcc is None:
        raise BuildError("nvcc was not found in CUDA_HOME or on PATH")
    text = subprocess.run([nvcc, "--version"], text=True, capture_output=True).stdout
    found = re.search(r"release ((\d+)\.\d+)", text)
    if found is None or found[2] != torch_cuda.split(".")[0]:
        version = found[1] if found else "of unknown version"
        raise BuildError(
            f"{nvcc} is CUDA {version}, torch is built for CUDA {torch_cuda}; set CUDA_HOME"
        )
    return nvcc, found[1]


def arch_flags(archs: str) -> list[str]:
    flags = []
    for arch in re.split(r"[;,\s]+", archs.strip()):
        found = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", arch)
        if found is None:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: {arch!r} is not a compute capability such as 9.0 or 9.0+PTX"
            )
        number = found[1] + found[2]
        codes = [f"sm_{number}"] + ([f"compute_{number}"] if found[3] else [])
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return flags


def ninja_build(
    folder: Path, output: Path, compiler: list[str], sources: list[Path], linker: list[str]
) -> None:
    """Compile and link what changed, then put the library in place in one step."""
    program = shutil.which("ninja")
    if program is None:  # pip puts it in the bin folder of an environment that need not be on PATH
        program = str(package_folder("ninja") / "data/bin/ninja")
        beside = Path(sys.executable).with_name("ninja")
        program = str(beside) if beside.exists() else program
    folder.mkdir(parents=True, exist_ok=True)

    def path(name: object) -> str:
        return re.sub(r"([$ :])", r"$\1", str(name))

    def command(words: list[str]) -> str:
        return shlex.join(words).replace("$", "$$")

    objects = [folder / f"{source.parent.name}_{source.name}.o" for source in sources]
    at = linker.index("{objects}")
    lines = [
        "rule compile",
        f"  command = {command(compiler)} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {command(linker[:at])} $in -o $out {command(linker[at + 1 :])}",
        *(f"build {path(obj)}: compile {path(source)}" for obj, source in zip(objects, sources)),
        f"build {path(folder / output.name)}: link {' '.join(map(path, objects))}",
        "",
    ]
    script = folder / f"{output.name}.ninja"
    script.write_text("\n".join(lines))
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    words = [program, "-C", str(folder), "-f", script.name, *jobs]
    ran = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(ran.stdout, flush=True)
    if ran.returncode:
        error = re.search(
            r"^.*(?:\berror\b|\bfatal\b|undefined reference).*$", ran.stdout, re.M | re.I
        )
        raise BuildError(
            f"the compiler failed: {error[0].strip() if error else ran.stdout[-400:].strip()}"
        )
    staged = output.with_name(output.name + ".new")
    shutil.copy2(folder / output.name, staged)
    os.replace(staged, output)  # a process that has the old file mapped lives on


def build_native(package: Path, temporary: Path) -> None:
    """Build what can be built into `package` and record it there."""
    record: dict[str, object] = {
        "platform": sysconfig.get_platform(),
        "torch_target": f"{TORCH_TARGET[0]}.{TORCH_TARGET[1]}",
        "not_built": {},
    }
    package.mkdir(parents=True, exist_ok=True)
    for name, library, variable, build in (
        ("cpp", CPU_LIBRARY, "MASKCL_BUILD", build_cpp),
        ("cuda", CUDA_LIBRARY, "MASKCL_CUDA", build_cuda),
    ):
        try:
            zero = [v for v in ("MASKCL_BUILD", variable) if switch(v) == "0"]
            if zero:
                raise BuildError(f"maskcl was built with {zero[0]}=0")
            record.update(build(package / library, temporary))
        except BuildError as error:
            if switch(variable) == "1":
                raise SystemExit(f"setup.py: {variable}=1, but {error}") from error
            print(f"maskcl: the {name} library was not built: {error}", file=sys.stderr)
            record["not_built"][name] = str(error)  # type: ignore[index]
            (package / library).unlink(missing_ok=True)  # one of an earlier build
    (package / "_build.json").write_text(json.dumps(record, indent=1) + "\n")


def build_cpp(output: Path, temporary: Path) -> dict[str, str]:
    compiler = cxx_compiler()
    torch, version, _ = torch_folder()
    flags = ["-std=c++20", "-O3", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall"]
    flags += [
        "-fno-math-errno",  # these two change no value; they let selects and sqrt vectorise
        "-fno-trapping-math",
        "-fopenmp-simd",  # sums over a plane by lanes; no OpenMP runtime comes with it
        *DEFINES,
        f"-I{CSRC}",
        "-isystem",
        str(torch / "include"),
    ]
    flags += shlex.split(os.environ.get("CXXFLAGS", ""))
    flags.append(f'-DMASKCL_TORCH_BUILD="{version}"')
    sources = [CSRC / "library.cpp", *sorted((CSRC / "cpu").glob("*.cpp"))]
    # No rpath: `import torch` has loaded libtorch_cpu before.
    link = (
        ["-bundle", "-undefined", "dynamic_lookup"]
        if sys.platform == "darwin"
        else ["-shared", "-Wl,-s"]
    )
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu"]
    ninja_build(
        temporary,
        output,
        compiler + flags,
        sources,
        [*compiler, *link, "{objects}", *libraries],
    )
    return {"torch_build": version}


def build_cuda(output: Path, temporary: Path) -> dict[str, str]:
    host = cxx_compiler()
    torch, _, torch_cuda = torch_folder()
    nvcc, cuda = nvcc_compiler(torch, torch_cuda)
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0;9.0+PTX"
    compiler = [nvcc, f"-ccbin={shlex.join(host)}", *arch_flags(archs)]
    flags = [
        "-std=c++20",
        "-O3",
        "--expt-relaxed-constexpr",
        "-Xcompiler=-fPIC,-fvisibility=hidden,-g0",
        "-DUSE_CUDA",
    ]
    flags += [*DEFINES, f"-I{CSRC}", "-isystem", str(torch / "include")]
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    # The runtime that torch itself loads, so that both share one; nvcc's where torch brings none.
    runtime = next((torch.parent / "nvidia").glob("*/lib/libcudart.so.*"), None)
    libraries = ["-cudart", "none", f"-Xlinker={runtime}"] if runtime else ["-cudart", "shared"]
    libraries += [f"-L{torch / 'lib'}", "-ltorch_cpu", "-ltorch_cuda"]
    link = [*compiler, "-shared", "{objects}", *libraries]
    ninja_build(temporary, output, compiler + flags, sources, link)
    return {"cuda": cuda, "cuda_archs": archs}


class BuildExt(build_ext):
    def run(self) -> None:
        in_place = self.inplace or getattr(self, "editable_mode", False)
        self.package = (
            CSRC.parent / "maskcl" if in_place else Path(self.build_lib).resolve() / "maskcl"
        )
        # Kept in the source tree when in place, so that the next build compiles only what changed.
        kept = CSRC.parent / "build" / "native"
        build_native(self.package, kept if in_place else Path(self.build_temp).resolve())

    def get_outputs(self) -> list[str]:
        names = [CPU_LIBRARY, CUDA_LIBRARY, "_build.json"]
        return [str(self.package / name) for name in names if (self.package / name).exists()]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class BdistWheel(bdist_wheel):
    """A wheel with libraries is tied to the platform; they use no symbol of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BuildPy(build_py):
    """MASKCL_BUILD=0 has no extension, hence a pure-Python wheel; the reason is recorded here."""

    def run(self) -> None:
        super().run()
        if switch("MASKCL_BUILD") == "0":
            in_place = getattr(self, "editable_mode", False)
            build_native(
                CSRC.parent / "maskcl" if in_place else Path(self.build_lib).resolve() / "maskcl",
                Path(),
            )


# No module of Python's: the name is setuptools' sign that BuildExt has something to build.
native = [] if switch("MASKCL_BUILD") == "0" else [Extension("maskcl.libmaskcl", sources=[])]
commands = {"build_ext": BuildExt, "build_py": BuildPy, "bdist_wheel": BdistWheel}
setup(ext_modules=native, cmdclass=commands)
