"""A plain backbone trained in the ordinary way, and the folder that it is kept in.

The folder holds ``base.safetensors``, the network's ``state_dict``, and ``config.json``: what it is
and what it was trained on. Nothing in it is unpickled.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from maskcl import models
from maskcl.files import new_folder, write_json
from maskcl.methods import derive_seed
from maskcl.problems import Vision
from maskcl.randomness import seeded
from maskcl.reading import MissingError, ReadError, read_json
from maskcl.scenarios import Pretraining
from maskcl.scenarios.base import length
from maskcl.tensor_file import read_tensors, write_tensors
from maskcl.text import printable
from maskcl.validation import ContentError, check

FORMAT = "maskcl-base"
VERSION = 1
WEIGHTS = "base.safetensors"
CONFIG = "config.json"

_FORM = {
    "model": str, "input_shape": [int], "outputs": int, "source": str, "sha256": str,
    "hidden?": ([int], None), "dropout?": (float, None), "trained_on?": str,
    "accuracy?": (float, None), "images?": (str, None), "seed?": int,
}  # fmt: skip


class BaseError(ValueError):
    """A folder that holds no usable base; the message is one sentence."""


@dataclass(frozen=True)
class Base:
    """A backbone from a folder.

    Attributes:
        model: in evaluation mode, on the CPU.
        facts: the content of config.json.
    """

    model: nn.Module
    facts: dict[str, Any]


def train_backbone(
    model: nn.Module,
    data: Pretraining,
    optimizer_fn: Callable[[list[nn.Parameter]], Optimizer],
    *,
    epochs: int,
    batch_size: int,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> float:
    """Train a plain classifier in place.

    Args:
        model: any module from x to logits; at the end in evaluation mode, on ``device``.
        data: what it learns and what it is measured on.
        optimizer_fn: parameters -> optimizer.
        epochs: passes over the data.
        batch_size: examples a step.
        seed: of order and dropout.
        device: of torch.
        on_epoch: called after each with its index, mean loss and the training accuracy.

    Returns:
        The share of held-out examples classified right, in [0, 1].

    Raises:
        RuntimeError: the loss is not finite.
    """
    problem, where = Vision(), torch.device(device)
    model.to(where)
    with seeded(where, derive_seed("pretrain", seed)):
        optimizer = optimizer_fn(list(model.parameters()))
        for epoch in range(epochs):
            model.train()
            totals = torch.zeros(3, dtype=torch.float64, device=where)
            shuffle = torch.Generator().manual_seed(derive_seed("pretrain", seed, epoch))
            order = torch.randperm(length(data.train), generator=shuffle)
            for x, y in problem.train_batches(data.train, order, batch_size):
                logits, target = model(x.to(where)), y.to(where)
                loss = problem.loss(logits, target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                right = (problem.predictions(logits.detach()) == target).sum()
                count = torch.full_like(right, len(target))
                totals += torch.stack([loss.detach() * count, right, count])
            loss_sum, right_sum, seen = totals.tolist()  # the epoch's only wait for the device
            if not math.isfinite(loss_sum):
                raise RuntimeError(
                    f"train_backbone: the loss is {loss_sum / seen} in epoch {epoch + 1}; try a "
                    "smaller learning rate"
                )
            if on_epoch is not None:
                on_epoch(epoch, loss_sum / seen, right_sum / seen)
        return accuracy(model, data.held_out, where)


@torch.no_grad()
def accuracy(model: nn.Module, dataset: Dataset, device: torch.device) -> float:
    """Share of labelled examples that a classifier gets right; leaves it in evaluation mode."""
    problem, count, right = Vision(), length(dataset), 0
    model.eval()
    for x, y in problem.train_batches(dataset, torch.arange(count), 512):
        right += int((problem.predict(model, x.to(device)).cpu() == y).sum())
    return right / count


def write_base(
    directory: str | os.PathLike[str], model: nn.Module, facts: dict[str, Any]
) -> dict[str, Any]:
    """Make a base's folder, as a whole or not at all.

    Args:
        directory: must not exist.
        model: one of `models.build`.
        facts: JSON object; ``model``, ``hidden``, ``dropout``, ``input_shape`` and ``outputs`` are
            the arguments that built the model, ``source`` what it was trained on.

    Returns:
        The content of config.json: the facts with format, version and the weights' hash.

    Raises:
        OSError: the folder exists, the disk is full, ...
    """
    tensors = model.state_dict()
    own = {"format": FORMAT, "version": VERSION, "sha256": state_hash(tensors)}
    content = {**own, **facts}
    with new_folder(directory) as folder:
        write_tensors(folder / WEIGHTS, tensors, {"format": FORMAT, "version": str(VERSION)})
        write_json(folder / CONFIG, content)
    return content


def read_base(directory: str | os.PathLike[str]) -> Base:
    """The backbone in a folder, built anew and with its weights.

    Raises:
        BaseError: there is none, a file is damaged, or the two do not belong together.
    """
    folder = Path(directory)
    facts = _read_facts(folder)
    try:
        _, tensors = read_tensors(folder / WEIGHTS, "base of maskcl")
    except ReadError as error:
        raise BaseError(str(error)) from None
    found = state_hash(tensors)
    if found != facts["sha256"]:
        raise BaseError(
            f"{folder / WEIGHTS} has SHA-256 {found}, its {CONFIG} says {facts['sha256']}"
        )
    model = empty_model(facts, str(folder / CONFIG))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = [*str(error).splitlines(), ""][1].strip()  # of a line for each tensor
        raise BaseError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {first}") from None
    return Base(model.eval(), facts)


def empty_model(facts: dict[str, Any], where: str) -> nn.Module:
    """The module that a base's facts describe, its weights still to be loaded.

    Raises:
        BaseError: the facts describe none; ``where`` is named.
    """
    hidden = facts.get("hidden")
    try:
        with torch.random.fork_rng(devices=[]):
            return models.build(
                facts["model"],
                facts["input_shape"],
                facts["outputs"],
                hidden=None if hidden is None else tuple(hidden),
                dropout=facts.get("dropout"),
            )
    except (ValueError, TypeError, KeyError) as error:
        raise BaseError(f"{where} describes no network: {error}") from None


def state_hash(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of tensors by name: names, dtypes, shapes, bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        facts = read_json(path)
    except MissingError as error:
        raise BaseError(f"{folder} holds no base: {error}") from None
    except ReadError as error:
        raise BaseError(str(error)) from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise BaseError(f"{folder} holds no base: {path} is something else")
    if facts.get("version") != VERSION:
        version = printable(facts.get("version"))
        raise BaseError(f"{path} has version {version}, this maskcl reads {VERSION}")
    try:
        check(facts, _FORM, str(path))
    except ContentError as error:
        raise BaseError(str(error)) from None
    return dict(facts)
