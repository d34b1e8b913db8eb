"""save: a compact network as a torch.export program, for ONNX, and as its numbers."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

from maskcl.export import compact, save, save_file
from maskcl.extras import install
from tests.export.zoo import network
from tests.nn.zoo import images


@pytest.fixture(scope="module")
def small() -> fx.GraphModule:
    """Convolutions and norms, sizes read and written, a channel shuffle."""
    return compact(network("grouped", 0.4).float(), 1)


def test_a_program_of_torch_export_takes_any_number_of_samples(
    small: fx.GraphModule, tmp_path: Path
) -> None:
    size = save(small, tmp_path / "net.pt2", images(2))
    assert (tmp_path / "net.pt2").stat().st_size == size
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt2"]
    program = torch.export.load(tmp_path / "net.pt2").module()
    for samples in (2, 7):
        x = images(samples, 3)
        torch.testing.assert_close(program(x), small(x), rtol=0, atol=1e-6)


def test_onnx_gives_the_same_logits(small: fx.GraphModule, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"writing and checking ONNX needs {name}")
    import onnxruntime

    save(small, tmp_path / "net.onnx", images(2))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    x = images(5, 3)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), small(x), rtol=0, atol=1e-6)


def test_safetensors_hold_the_state_and_say_what_it_is_of(
    small: fx.GraphModule, tmp_path: Path
) -> None:
    safetensors = pytest.importorskip("safetensors")
    load_file = pytest.importorskip("safetensors.torch").load_file
    save(small, tmp_path / "net.safetensors", images(2))
    other = compact(network("grouped", 0.4).float(), 1)
    with torch.no_grad():
        for value in other.state_dict().values():
            value.zero_()
    other.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert torch.equal(other(images(4)), small(images(4)))
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["forward"] == small.code
    assert json.loads(metadata["modules"])["stem"] == str(small.get_submodule("stem"))


def test_a_file_that_is_there_stays(small: fx.GraphModule, tmp_path: Path) -> None:
    path = tmp_path / "net.pt2"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"net\.pt2 exists already"):
        save(small, path, images(2))
    assert path.read_bytes() == b"mine"


def test_another_ending_is_refused(small: fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in '.pth', wanted one of .pt2, .onnx, .safet"):
        save(small, tmp_path / "net.pth", images(2))
    assert not list(tmp_path.iterdir())


def test_what_is_not_installed_is_named(
    small: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(save_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape(f".onnx needs onnx: {install('export')}")):
        save(small, tmp_path / "net.onnx", images(2))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_torch_export_cannot_take_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torch\.export cannot take the network \(.*safetensors"):
        save(Branching(), tmp_path / "net.pt2", images(2))
    sparse = torch.eye(3).to_sparse()
    with pytest.raises(ValueError, match=r"argument 0 .* is a torch\.sparse_coo matrix"):
        save(Branching(), tmp_path / "net.pt2", (sparse,))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(
    small: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors")

    def full(self: Path, data: bytes) -> int:
        with io.FileIO(self, "w") as file:
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save(small, tmp_path / "net.safetensors", images(2))
    assert not list(tmp_path.iterdir())
