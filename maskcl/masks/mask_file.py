"""The file format of a task's masks: one safetensors file of packed bits.

``words.<layer>`` is int32 [ceil(n / 32)], for ternary levels [2, ceil(n / 32)]: bit i % 32 of word
i // 32 belongs to weight i of the row-major weight; the second plane says which are -1.
``own.<name>`` is what else the task has to itself: its head and norms; ``inference.<name>``, where
the network infers tasks, the statistics of this one. The metadata holds levels, task, shapes,
facts, a SHA-256 of the network under the masks, and one of the file itself, so that no altered
byte passes (`maskcl.tensor_file`). Nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskcl import ops
from maskcl.reading import ReadError, parse_json
from maskcl.tensor_file import has_digest, read_tensors, write_tensors
from maskcl.text import printable
from maskcl.validation import ContentError, check

FORMAT = "maskcl-masks"
VERSION = 1
PLANES = {"binary": 1, "topk": 1, "ternary": 2, "ternary_symmetric": 2}

_WHAT = "file of masks"
_FORM = {
    "format": str, "version": str, "levels": str, "task": str, "shapes": str, "base_sha256": str,
    "facts": str,
}  # fmt: skip


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
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "levels": content.levels,
        "task": str(content.task),
        "shapes": json.dumps(content.shapes),
        "base_sha256": content.base,
        "facts": json.dumps(content.facts, allow_nan=False),
    }
    named = {f"words.{name}": words for name, words in content.words.items()}
    named |= {f"own.{name}": tensor for name, tensor in content.own.items()}
    named |= {f"inference.{name}": tensor for name, tensor in content.statistics.items()}
    return write_tensors(path, named, metadata)


def read_masks(path: str | os.PathLike[str]) -> MaskFile:
    """Read and check a file of masks; no network is needed.

    Raises:
        MaskFileError: there is no such file, or it is truncated, altered or something else.
    """
    name = printable(os.fspath(path))
    try:
        metadata, tensors = read_tensors(path, _WHAT)
        _check_format(name, metadata)
        check(metadata, _FORM, name)
        shapes = parse_json(metadata["shapes"], f"{name}: shapes")
        check(shapes, {str: [int]}, name, "shapes")
        facts = parse_json(metadata["facts"], f"{name}: facts")
        check(facts, {str: Any}, name, "facts")
        task = parse_json(metadata["task"], f"{name}: task")
        check(task, int, name, "task")
    except (ReadError, ContentError) as error:
        raise MaskFileError(str(error)) from None
    found = MaskFile(
        metadata["levels"],
        task,
        {layer: tuple(shape) for layer, shape in shapes.items()},
        metadata["base_sha256"],
        _part(tensors, "words."),
        _part(tensors, "own."),
        facts,
        _part(tensors, "inference."),
    )
    _check_words(name, found)
    return found


def _check_format(name: str, metadata: dict[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise MaskFileError(f"{name} is a safetensors file but no {_WHAT}")
    if (version := metadata.get("version")) != str(VERSION):
        found = printable(version)
        raise MaskFileError(f"{name} has format version {found}, this maskcl reads {VERSION}")
    if not has_digest(metadata):
        raise MaskFileError(f"{name} is damaged: its SHA-256 is missing")


def _check_words(path: Any, found: MaskFile) -> None:
    """Raise MaskFileError unless levels, shapes and words agree, down to the last bit."""
    if found.levels not in PLANES:
        raise MaskFileError(
            f"{path}: levels is {found.levels!r}, wanted one of {', '.join(PLANES)}"
        )
    if found.task < 0:
        raise MaskFileError(f"{path} is damaged: task {found.task}")
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
