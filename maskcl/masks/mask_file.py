"""The file format of a task's masks: one safetensors file of packed bits.

``words.<layer>`` is int32 [ceil(n / 32)], for ternary levels [2, ceil(n / 32)]: bit i % 32 of word
i // 32 belongs to weight i of the row-major weight; the second plane says which are -1.
``own.<name>`` is what else the task has to itself: its head and norms; ``inference.<name>``, where
the network infers tasks, the statistics of this one. The metadata holds levels,
task, shapes, facts, a SHA-256 of the network under the masks, and one of the file itself with zeros
in that one's place, so that no altered byte passes. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskcl import ops
from maskcl.files import replacing

FORMAT = "maskcl-masks"
VERSION = 1
PLANES = {"binary": 1, "topk": 1, "ternary": 2, "ternary_symmetric": 2}

_DIGEST = "content_sha256"
_NO_DIGEST = "0" * 64


class MaskFileError(ValueError):
    """The file holds no masks for this network; one sentence says why."""


@dataclass(frozen=True)
class MaskFile:
    """What a file of masks holds.

    Attributes:
        levels: ``binary``, ``ternary``, ``ternary_symmetric`` or ``topk``.
        task: the task's index in the network that the masks were exported from.
        shapes: layer -> shape of its weight.
        base: SHA-256 of the network under the masks, ``PiggybackNetwork.base_hash()``.
        words: layer -> int32 [ceil(n / 32)], ternary [2, ceil(n / 32)].
        own: head and norms, by their name without the task's index.
        facts: whatever the exporter added.
        statistics: what tells the task's samples, ``TaskInference.of_task``; {} for nothing.
    """

    levels: str
    task: int
    shapes: dict[str, tuple[int, ...]]
    base: str
    words: dict[str, Tensor] = field(repr=False)
    own: dict[str, Tensor] = field(repr=False)
    facts: dict[str, Any] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def words_bytes(self) -> int:
        """Bytes of the masks alone."""
        return sum(w.numel() * w.element_size() for w in self.words.values())

    @property
    def own_bytes(self) -> int:
        """Bytes of head and norms."""
        return sum(t.numel() * t.element_size() for t in self.own.values())

    def off(self) -> dict[str, float]:
        """By layer, the share of weights that the mask removes."""
        shares = {}
        for name, words in self.words.items():
            count = math.prod(self.shapes[name])
            on = int(ops.popcount(words if words.dim() == 1 else words[0]))
            shares[name] = 1 - on / count if count else 0.0
        return shares


def write_masks(path: str | os.PathLike[str], content: MaskFile) -> int:
    """Write a file of masks, as a whole or not at all; returns its size in bytes.

    Raises:
        OSError: it cannot be written; what was there is intact then.
        TypeError, ValueError: the facts are no JSON object.
    """
    from safetensors.torch import save

    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "levels": content.levels,
        "task": str(content.task),
        "shapes": json.dumps(content.shapes),
        "base_sha256": content.base,
        _DIGEST: _NO_DIGEST,
        "facts": json.dumps(content.facts, allow_nan=False),
    }
    named = {f"words.{name}": words for name, words in content.words.items()}
    named |= {f"own.{name}": tensor for name, tensor in content.own.items()}
    named |= {f"inference.{name}": tensor for name, tensor in content.statistics.items()}
    # Copies, as safetensors refuses tensors that share memory.
    tensors = {
        name: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, t in named.items()
    }
    data = save(tensors, metadata)
    at = _digest_place(data, _NO_DIGEST)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.seek(at)
        file.write(_digest(data, at).encode())
    return len(data)


def read_masks(path: str | os.PathLike[str]) -> MaskFile:
    """Read and check a file of masks; no network is needed.

    Raises:
        MaskFileError: there is no such file, or it is truncated, altered or something else.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise MaskFileError(f"{path} does not exist") from None
    except OSError as error:
        raise MaskFileError(f"{path} cannot be read ({error.strerror})") from None
    metadata = _metadata(path, data)
    try:
        tensors = load(data)
        shapes = {n: tuple(map(int, s)) for n, s in json.loads(metadata["shapes"]).items()}
        found = MaskFile(
            metadata["levels"],
            int(metadata["task"]),
            shapes,
            metadata["base_sha256"],
            _part(tensors, "words."),
            _part(tensors, "own."),
            json.loads(metadata["facts"]),
            _part(tensors, "inference."),
        )
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise MaskFileError(f"{path} is damaged or no file of masks ({error})") from None
    _check_words(path, found)
    return found


def _metadata(path: Any, data: bytes) -> dict[str, str]:
    """The metadata of a file whose every byte is as it was written."""
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        if metadata["format"] != FORMAT:
            raise MaskFileError(f"{path} is a safetensors file but no file of masks")
        if metadata["version"] != str(VERSION):
            raise MaskFileError(
                f"{path} has format version {metadata['version']}, this maskcl reads {VERSION}"
            )
        at = _digest_place(data, metadata[_DIGEST])
    except MaskFileError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise MaskFileError(f"{path} is damaged or no file of masks") from None
    if _digest(data, at) != metadata[_DIGEST]:
        raise MaskFileError(
            f"{path} is damaged: its content is not what its SHA-256 says (truncated or altered)"
        )
    return metadata


def _digest_place(data: bytes, digest: str) -> int:
    """Where in the file the digits of its own digest are; inside other strings quotes are escaped.

    Raises:
        ValueError: nowhere.
    """
    marker = f'"{_DIGEST}":"'.encode()
    end = 8 + int.from_bytes(data[:8], "little")
    at = data.index(marker + digest.encode() + b'"', 8, end) + len(marker)
    if len(digest) != len(_NO_DIGEST):
        raise ValueError("not a SHA-256")
    return at


def _digest(data: bytes, at: int) -> str:
    """SHA-256 of the file with zeros for the digits of the digest itself."""
    view = memoryview(data)
    digest = hashlib.sha256(view[:at])
    digest.update(_NO_DIGEST.encode())
    digest.update(view[at + len(_NO_DIGEST) :])
    return digest.hexdigest()


def _check_words(path: Any, found: MaskFile) -> None:
    """Raise MaskFileError unless levels, shapes and words agree, down to the last bit."""
    if found.levels not in PLANES:
        raise MaskFileError(
            f"{path}: levels is {found.levels!r}, wanted one of {', '.join(PLANES)}"
        )
    if found.task < 0 or not isinstance(found.facts, dict):
        raise MaskFileError(f"{path} is damaged: task {found.task}, facts {found.facts!r}")
    if found.shapes.keys() != found.words.keys():
        odd = sorted(found.shapes.keys() ^ found.words.keys())[0]
        raise MaskFileError(f"{path}: layer {odd} has a shape or words, wanted both")
    for name, words in sorted(found.words.items()):
        count = math.prod(found.shapes[name])
        wanted = [-(-count // 32)]
        if PLANES[found.levels] == 2:
            wanted = [2, *wanted]
        if words.dtype != torch.int32 or list(words.shape) != wanted:
            raise MaskFileError(
                f"{path}: words of layer {name} are {words.dtype} {list(words.shape)}, wanted"
                f" torch.int32 {wanted} for {count} weights"
            )
        if count % 32 and bool((words[..., -1].to(torch.int64) & -(1 << count % 32)).any()):
            raise MaskFileError(
                f"{path}: words of layer {name} have bits set past its {count} weights"
            )
        if words.dim() == 2 and bool((words[1] & ~words[0]).any()):
            raise MaskFileError(f"{path}: words of layer {name} make a weight both 0 and -1")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
