"""The build: one binary for several torches; pure Python, with the reason, where none is built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from maskcl import _extension, schemas

ROOT = Path(__file__).resolve().parent.parent
SECOND_PYTHON = os.environ.get("MASKCL_SECOND_PYTHON")
CAN_BUILD = shutil.which("c++") or shutil.which("g++")
needs_compiler = pytest.mark.skipif(not CAN_BUILD, reason="no C++ compiler")

# Ops on the CPU by the backend named, against the reference; prints what the loader says.
USE = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch, maskcl.ops
    import maskcl.ops as again
from maskcl import _extension, backends, ops
found = {}
for name in ["reference"] + [b for b in ("cpp",) if backends.BACKENDS[b].absent is None]:
    with backends.use_backend(name):
        e = torch.linspace(-2, 2, 7, requires_grad=True)
        mask = ops.hat_gate(e, 3.0, max_scale=400.0)
        y = ops.masked_activation(torch.linspace(-1, 1, 21).view(3, 7), mask, activation="relu")
        y.sum().backward()
        grad = torch.ones(7, 7)
        bits = torch.tensor([0, 1, 2, 3, 0, 1, 2])
        ops.clamp_grads_([grad], [bits], [bits])
        found[name] = [y.sum().item(), e.grad.sum().item(), grad.sum().item()]
print(json.dumps({
    "torch": torch.__version__, "file": maskcl.__file__, "found": found,
    "status": _extension.status(),
    "warnings": [str(w.message) for w in said if "maskcl" in str(w.message)],
}))
"""

# A whole loss of each method's network, compiled, against the same without.
COMPILED = """
import torch
from torch import nn
from maskcl import HAT, MAS, Piggyback
from maskcl.nn import to_hat, to_importance, to_piggyback

x, y = torch.randn(5, 6), torch.tensor([0, 2, 1, 1, 0])
for method, convert in [(HAT(), to_hat), (Piggyback(), to_piggyback), (MAS(), to_importance)]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    net = convert(model, 2, *[x] * (convert is to_hat), classes=[3, 3]).train()
    for task in (0, 1):
        state = method.begin_task(net, task)
        scale = getattr(state, "scale", None)

        def loss():
            return nn.functional.cross_entropy(net(x), y) + method.loss_term(net, state)

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        parameters = net.task_parameters(task)
        with net.task(task, scale):
            method.before_step(net, state, 0.5)
            found, wanted = compiled(), loss()
            torch.testing.assert_close(found, wanted)
            torch.testing.assert_close(
                torch.autograd.grad(found, parameters, allow_unused=True),
                torch.autograd.grad(wanted, parameters, allow_unused=True),
            )
        net.finish_task(task)
print("compiled as without")
"""


def run(words: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("MASKCL_BUILD", "MASKCL_CUDA", "CXX")}
    ran = subprocess.run(
        words, cwd=folder, env={**clean, **environment}, capture_output=True, text=True
    )
    assert ran.returncode == 0, f"{words}\n{ran.stdout}\n{ran.stderr}"
    return ran


def use(python: str, package: Path) -> dict:
    """What a fresh interpreter makes of the maskcl in ``package``."""
    return json.loads(run([python, "-c", USE], package, PYTHONPATH=str(package)).stdout)


def sources(folder: Path) -> Path:
    """A copy of what the sdist holds, without anything built."""
    built = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    for name in ("maskcl", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=built)
    for name in (
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "LICENSE",
        "CHANGELOG.md",
        "README.md",
    ):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def wheel(folder: Path, **environment: str) -> Path:
    """The wheel that ``pip install --no-build-isolation`` makes of ``folder``."""
    script = "from setuptools import build_meta as b; print(b.build_wheel('dist'))"
    (folder / "dist").mkdir(exist_ok=True)
    ran = run([sys.executable, "-c", script], folder, **environment)
    return folder / "dist" / ran.stdout.split()[-1]


def unpack(archive: Path, to: Path) -> Path:
    with zipfile.ZipFile(archive) as content:
        content.extractall(to)
    return to


def assert_agree(found: dict[str, list[float]]) -> None:
    for values in found.values():
        assert values == pytest.approx(found["reference"], rel=1e-5)


@pytest.fixture(scope="module")
def native_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CPU library, built once and fast; the CUDA library is built in place and tested there."""
    folder = sources(tmp_path_factory.mktemp("native"))
    return wheel(folder, MASKCL_BUILD="1", MASKCL_CUDA="0", CXXFLAGS="-O0")


@pytest.mark.slow
@needs_compiler
def test_wheel_holds_the_library_its_record_and_no_sources(native_wheel: Path) -> None:
    with zipfile.ZipFile(native_wheel) as content:
        names = content.namelist()
        record = json.loads(content.read("maskcl/_build.json"))
    assert "maskcl/libmaskcl_cpu.so" in names
    assert "-py3-none-linux" in native_wheel.name  # one file for every Python
    assert not any("csrc" in n or n.endswith((".cpp", ".cu", ".o")) for n in names)
    assert record["torch_target"] == "2.11"
    assert record["not_built"] == {"cuda": "maskcl was built with MASKCL_CUDA=0"}


@needs_compiler
def test_built_library_runs_and_knows_its_build(native_wheel: Path, tmp_path: Path) -> None:
    told = use(sys.executable, unpack(native_wheel, tmp_path))
    assert told["file"].startswith(str(tmp_path))
    assert told["status"]["cpp"] is None
    assert told["status"]["build"]["torch_target"] == "2.11"
    assert told["warnings"] == []
    assert_agree(told["found"])
    assert "cpp" in told["found"]


@needs_compiler
@pytest.mark.skipif(SECOND_PYTHON is None, reason="MASKCL_SECOND_PYTHON names no other interpreter")
def test_the_same_binary_serves_a_second_torch(native_wheel: Path, tmp_path: Path) -> None:
    package = unpack(native_wheel, tmp_path)
    told = use(str(SECOND_PYTHON), package)
    assert told["torch"] != torch.__version__, "MASKCL_SECOND_PYTHON has the same torch"
    assert told["status"]["cpp"] is None
    assert told["warnings"] == []
    assert_agree(told["found"])
    assert "cpp" in told["found"]
    words = [str(SECOND_PYTHON), "-W", "ignore", "-c", COMPILED]
    assert "as without" in run(words, tmp_path, PYTHONPATH=str(package)).stdout


def test_build_0_is_pure_python_and_info_says_why(tmp_path: Path) -> None:
    archive = wheel(sources(tmp_path / "tree"), MASKCL_BUILD="0")
    assert archive.name.endswith("-py3-none-any.whl")
    package = unpack(archive, tmp_path / "site")
    told = use(sys.executable, package)
    assert told["status"]["cpp"] == "maskcl was built with MASKCL_BUILD=0"
    assert told["warnings"] == []
    assert set(told["found"]) == {"reference"}
    said = run([sys.executable, "-m", "maskcl.info"], package, PYTHONPATH=str(package)).stdout
    assert "MASKCL_BUILD=0" in said


def test_no_compiler_installs_as_pure_python(tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    archive = wheel(sources(tmp_path / "tree"), PATH=str(empty), MASKCL_CUDA="auto")
    told = use(sys.executable, unpack(archive, tmp_path / "site"))
    assert "no C++ compiler was found" in told["status"]["cpp"]
    assert told["warnings"] == []
    assert set(told["found"]) == {"reference"}


def test_failing_compiler_installs_as_pure_python_with_its_message(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'formulas.h:1: error: unheard of' >&2\nexit 1\n")
    compiler.chmod(0o755)
    archive = wheel(sources(tmp_path / "tree"), CXX=str(compiler), MASKCL_CUDA="0")
    told = use(sys.executable, unpack(archive, tmp_path / "site"))
    assert "error: unheard of" in told["status"]["cpp"]
    assert set(told["found"]) == {"reference"}


def test_build_1_fails_where_it_cannot_be_built(tmp_path: Path) -> None:
    words = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    environment = {**os.environ, "PATH": str(tmp_path), "MASKCL_BUILD": "1"}
    folder = sources(tmp_path / "tree")
    ran = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "MASKCL_BUILD=1, but no C++ compiler was found" in ran.stderr


def test_broken_library_is_said_once_and_breaks_nothing(tmp_path: Path) -> None:
    folder = sources(tmp_path)
    name = "libmaskcl_cpu.so"
    (folder / "maskcl" / name).write_bytes(b"this is no library")
    told = use(sys.executable, folder)
    assert len(told["warnings"]) == 1
    for part in (name, torch.__version__, "built for", "torch >= 2.11", "rebuild with"):
        assert part in told["warnings"][0]
    assert told["status"]["cpp"] in told["warnings"][0]
    assert set(told["found"]) == {"reference"}


def test_older_torch_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(_extension._BrokenError, match=r"torch 2\.9\.1\+cu128, older than 2\.11"):
        _extension._check_torch()
    monkeypatch.setattr(torch, "__version__", "2.11.0a0+git1234")
    _extension._check_torch()


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA")
def test_cuda_library_is_compiled_linked_and_loaded() -> None:
    reason = _extension.reasons.get("cuda")
    if reason is not None and "nvcc" in reason:
        pytest.skip(reason)
    assert reason is None
    for name in schemas.STEM_OF:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"maskcl::{name}", "CUDA")


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"cuda": "11.8"}, "torch .* is for CUDA 13.0, the library for 11.8"),
        ({"cuda": "13.0", "maskcl": "0.0.1"}, "maskcl_cuda13 is of maskcl 0.0.1, this is maskcl"),
        ({"cuda": "13.0", "platform": "a"}, "does not load under .* built for a, .*, CUDA 13.0"),
    ],
)
def test_cuda_wheel_that_does_not_fit_is_refused(
    record: dict[str, str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "maskcl_cuda13"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_build.json").write_text(json.dumps(record))
    (package / "libmaskcl_cuda.so").write_bytes(b"this is no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_extension, "_CUDA_LIBRARY", tmp_path / "libmaskcl_cuda.so")
    with pytest.raises(_extension._BrokenError, match=sentence):
        _extension._load_cuda()


def test_absent_cuda_library_says_which_wheel_would_bring_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(_extension, "_CUDA_LIBRARY", tmp_path / "libmaskcl_cuda.so")
    with pytest.raises(_extension._AbsentError, match="no wheel maskcl-cuda12 is installed"):
        _extension._load_cuda()


def test_sdist_holds_every_source_and_nothing_built(tmp_path: Path) -> None:
    folder = sources(tmp_path)
    (folder / "maskcl" / "libmaskcl_stale.so").write_bytes(b"")
    script = "from setuptools import build_meta as b; print(b.build_sdist('.'))"
    name = run([sys.executable, "-c", script], folder, MASKCL_BUILD="0").stdout.split()[-1]
    with tarfile.open(folder / name) as content:
        names = {member.split("/", 1)[-1] for member in content.getnames()}
    wanted = {str(f.relative_to(ROOT)) for f in (ROOT / "csrc").rglob("*") if f.is_file()}
    wanted |= {"setup.py", "pyproject.toml", "LICENSE", "README.md", "maskcl/schemas.py"}
    assert wanted <= names
    assert not {n for n in names if n.endswith((".so", "_build.json", ".pyc"))}
