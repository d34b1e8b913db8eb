"""What `make wheels` says and makes, as far as it takes no compiler; the rest is what it does."""

from __future__ import annotations

import json
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from maskcl import __version__, _extension
from wheels import build, check, cuda


@pytest.fixture
def cuda_wheel(tmp_path: Path) -> Path:
    """The wheel of a library that is none, built for CUDA 99."""
    library = tmp_path / "libmaskcl_cuda.so"
    library.write_bytes(b"\0GLIBC_2.17\0exp\0GLIBC_2.34\0")
    record = {
        "platform": "linux-x86_64",
        "torch_target": "2.11",
        "cuda": "99.1",
        "cuda_archs": "8.0",
    }
    (tmp_path / "_build.json").write_text(json.dumps(record | {"not_built": {}}))
    return cuda.write_wheel(library, tmp_path)


def test_cuda_wheel_is_for_every_python_and_one_maskcl(cuda_wheel: Path) -> None:
    assert cuda_wheel.name.startswith(f"maskcl_cuda99-{__version__}-py3-none-")
    check.assert_licensed(cuda_wheel)
    with zipfile.ZipFile(cuda_wheel) as content:
        info = f"maskcl_cuda99-{__version__}.dist-info"
        about = message_from_bytes(content.read(f"{info}/METADATA"))
        files = {name for name in content.namelist() if "dist-info" not in name}
    assert about["Name"] == "maskcl-cuda99"
    assert about.get_all("Requires-Dist") == [f"maskcl=={__version__}"]
    assert files == {
        f"maskcl_cuda99/{n}" for n in ("__init__.py", "_build.json", "libmaskcl_cuda.so")
    }


def test_loader_finds_the_library_of_the_cuda_wheel(
    cuda_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(cuda_wheel) as content:
        content.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr("torch.version.cuda", "99.2")
    monkeypatch.setattr(_extension, "_CUDA_LIBRARY", tmp_path / "none" / "libmaskcl_cuda.so")
    with pytest.raises(_extension._BrokenError, match=r"does not load .* built for .* CUDA 99\.1"):
        _extension._load_cuda()


def test_reason_for_a_newer_manylinux_names_the_symbols(cuda_wheel: Path) -> None:
    assert build.newer_symbols(cuda_wheel, (2, 28)) == "GLIBC_2.34"
    assert build.newer_symbols(cuda_wheel, (2, 34)) == ""


def test_oldest_glibc_of_the_tags_is_what_counts() -> None:
    assert build.glibc("maskcl-1-py3-none-manylinux_2_34_x86_64.manylinux_2_28_x86_64.whl") == (
        2,
        28,
    )
    assert build.glibc("Tag: py3-none-any") == ()


def test_wheel_without_a_licence_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "maskcl-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as content:
        content.writestr("maskcl/__init__.py", "")
    with pytest.raises(SystemExit, match="holds no licence"):
        check.assert_licensed(wheel)


def test_python_that_is_not_here_is_left_out() -> None:
    assert check.interpreter("python3.99") is None
