"""A network as a file that needs no maskcl to run: torch.export, ONNX, or its numbers."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from maskcl.extras import install
from maskcl.files import write_atomic


def save(model: nn.Module, path: str | os.PathLike[str], example_inputs: Any) -> int:
    """Write an ordinary network to a new file; its name's ending says how.

    - ``.pt2``: a program of ``torch.export``, for ``torch.export.load``.
    - ``.onnx``: for onnxruntime and others; needs onnx and onnxscript.
    - ``.safetensors``: the ``state_dict``; a GraphModule's forward and modules are in its metadata,
      as text.

    The first dimension of every input may have another size later, where the network allows that;
    other sizes stay those of the example.

    Args:
        model: in evaluation mode, such as ``compact`` gives.
        path: the new file; written in one step that either happens or does not.
        example_inputs: a tensor, or a tuple of the forward's arguments; of two samples or more.

    Returns:
        Bytes written.

    Raises:
        ValueError: the ending is another, or the network cannot be written in that form; the
            sentence says why and which form can.
        FileExistsError: there is such a file.
        ImportError: what the form needs is not installed.
        OSError: the disk is full, the folder absent, ...
    """
    check_path(path)
    arguments = tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else None
    content = _WRITERS[Path(path).suffix](model, arguments or (example_inputs,))
    check_path(path)
    write_atomic(path, content)
    return len(content)


def check_path(path: str | os.PathLike[str]) -> None:
    """Whether ``save`` could write there.

    Raises:
        ValueError, FileExistsError, ImportError: as for ``save``.
    """
    suffix = Path(path).suffix
    if suffix not in _WRITERS:
        raise ValueError(f"save: {path} ends in {suffix!r}, wanted one of {', '.join(_WRITERS)}")
    for name in _NEEDS.get(suffix, ()):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"save: {suffix} needs {name}: {install('export')}")
    if Path(path).exists() or Path(path).is_symlink():
        raise FileExistsError(f"save: {path} exists already")


_NEEDS = {".onnx": ("onnx", "onnxscript"), ".safetensors": ("safetensors",)}


def _program(model: nn.Module, arguments: tuple[Any, ...]) -> Any:
    """The ExportedProgram, the first dimension of every tensor dynamic where that can be."""
    for i, x in enumerate(arguments):
        if isinstance(x, Tensor) and x.layout != torch.strided:
            raise ValueError(
                f"save: argument {i} of the network is a {x.layout} matrix, and torch.export has no"
                " products with these; .safetensors always can"
            )
    auto = {0: torch.export.Dim.AUTO}
    sizes = tuple(auto if isinstance(x, Tensor) and x.dim() else None for x in arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(model, arguments, dynamic_shapes=sizes)
    except Exception as error:
        raise _refusal("torch.export", error) from error


def _refusal(what: str, error: Exception) -> ValueError:
    lines = str(error).strip().splitlines() or ["no message"]
    return ValueError(
        f"save: {what} cannot take the network ({type(error).__name__}: {lines[0]});"
        " .safetensors always can"
    )


def _write_program(model: nn.Module, arguments: tuple[Any, ...]) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_program(model, arguments), buffer)
    return buffer.getvalue()


def _write_onnx(model: nn.Module, arguments: tuple[Any, ...]) -> bytes:
    program = _program(model, arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.onnx.export(program, (), dynamo=True, verbose=False)
    except Exception as error:
        raise _refusal("torch.onnx", error) from error
    assert found is not None
    return found.model_proto.SerializeToString()


def _write_tensors(model: nn.Module, arguments: tuple[Any, ...]) -> bytes:
    from safetensors.torch import save as to_bytes

    metadata = {"format": "pt"}
    if isinstance(model, fx.GraphModule):
        called = {str(n.target) for n in model.graph.nodes if n.op == "call_module"}
        modules = {name: str(model.get_submodule(name)) for name in sorted(called)}
        metadata |= {"forward": model.code, "modules": json.dumps(modules)}
    # Copies, as safetensors refuses tensors that share memory.
    tensors = {
        name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, t in model.state_dict().items()
    }
    return to_bytes(tensors, metadata)


_WRITERS: dict[str, Callable[[nn.Module, tuple[Any, ...]], bytes]] = {
    ".pt2": _write_program,
    ".onnx": _write_onnx,
    ".safetensors": _write_tensors,
}
SUFFIXES = tuple(_WRITERS)
