"""``maskcl masks``: a task's masks from a run to a file and back, and a look inside a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcl import ops
from maskcl.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_network,
    network_state,
    save_checkpoint,
)
from maskcl.cli import piggyback
from maskcl.cli.folders import check_out, check_task, forgotten_in, read_config_of
from maskcl.cli.options import CommandError
from maskcl.cli.saved_network import cut_of, network_as_made, of_run
from maskcl.lock import locked
from maskcl.masks import MaskFile, MaskFileError, export_masks, import_masks, read_masks
from maskcl.report.text import grid
from maskcl.text import printable
from maskcl.training.trainer import CHECKPOINT

if TYPE_CHECKING:
    from torch import Tensor

    from maskcl.nn import PiggybackNetwork


def export(run: Path, task: int, out: Path) -> str:
    """Write a task's file; returns what to say.

    Raises:
        CommandError: no such run or task, or the file exists; nothing is written then.
    """
    checkpoint, net = open_run(run)
    check_task(run, task, net.num_tasks)
    if not bool(net.finished[task]):
        raise CommandError(f"task {task} of {run} is not finished")
    check_out(out)
    made_from = read_config_of(run)[2]
    with of_run(run):
        cut, index = cut_of(made_from, checkpoint.config["scenario"], task)
        facts = piggyback.mask_facts(cut, index, made_from)
    size = export_masks(net, task, out, facts=facts)
    return f"{out}: {size:,} bytes, task {task} of {run}"


def import_(file: Path, run: Path, task: int | None, *, replace: bool) -> str:
    """Put a file's masks into a finished run's checkpoint; returns what to say.

    Raises:
        CommandError: the file does not fit, or the run is not finished; nothing is written then.
    """
    if not run.is_dir():
        raise CommandError(f"{run} holds no run: it is not a folder")
    with locked(run):
        target = _put_in(file, run, task, replace)
    return (
        f"{run / CHECKPOINT}: task {target} has the masks of {file}; result.json and report are "
        "still of the training"
    )


def _put_in(file: Path, run: Path, task: int | None, replace: bool) -> int:
    """The task that has the file's masks now."""
    checkpoint, net = open_run(run)
    if gone := forgotten_in(run):
        raise CommandError(f"task {gone[0]} of {run} is forgotten: the run is over")
    if checkpoint.position["task"] != checkpoint.config["scenario"]["num_tasks"]:
        raise CommandError(
            f"the run in {run} is not finished: `maskcl train piggyback --out {run} --resume`"
        )
    if task is not None:
        check_task(run, task, net.num_tasks)
    try:
        found = import_masks(net, file, task, replace=replace)
    except (MaskFileError, OSError) as error:
        reason = str(error).replace("replace was not asked for", "--replace is not given")
        raise CommandError(reason) from None
    target = found.task if task is None else task
    others = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("network.")}
    tensors, checkpoint.lasting = network_state(net)
    checkpoint.tensors = {**others, **tensors}
    save_checkpoint(run / CHECKPOINT, checkpoint)
    return target


def inspect(file: Path) -> str:
    """What a file holds, as text.

    Raises:
        CommandError: it is no file of masks, or damaged.
    """
    try:
        found = read_masks(file)
    except (MaskFileError, OSError) as error:
        raise CommandError(str(error)) from None
    rows = [["layer", "shape", "weights", "on", "bytes"]]
    rows += [_row(found, name) for name in found.shapes]
    lines = [
        f"task {found.task}, {printable(found.levels)} masks",
        *(
            f"{printable(name).replace('_', ' ')}: {_plain(value)}"
            for name, value in found.facts.items()
        ),
        f"base SHA-256: {printable(found.base)}",
        "",
        grid(rows),
        "",
        f"masks {found.words_bytes:,} bytes, head and norms {found.own_bytes:,} bytes, "
        f"file {file.stat().st_size:,} bytes",
    ]
    return "\n".join(lines)


def open_run(run: Path) -> tuple[Checkpoint, PiggybackNetwork]:
    """A Piggyback run's checkpoint, and its network as the checkpoint has it; needs no base.

    Raises:
        CommandError: it is no such run, it has no checkpoint, or that is damaged.
    """
    method, options, made_from = read_config_of(run)
    if method != "piggyback":
        raise CommandError(f"{run} holds a run of {method}: only piggyback's masks are files")
    with of_run(run):
        checkpoint = load_checkpoint(run / CHECKPOINT)
        net: Any = network_as_made(
            piggyback.COMMAND, options, made_from, checkpoint.config["scenario"]
        )
        if checkpoint.position["epoch"] > 0:  # the scores of the task in training are there too
            position = checkpoint.position
            net.begin_task(position.get("first_task", 0) + position["task"])
        load_network(net, checkpoint.tensors, run / CHECKPOINT)
    return checkpoint, net


def _row(found: MaskFile, name: str) -> list[str]:
    shape, words = found.shapes[name], found.words[name]
    weights = math.prod(shape)
    return [
        name,
        "x".join(map(str, shape)),
        f"{weights:,}",
        _share_on(words, weights),
        f"{words.nbytes:,}",
    ]


def _share_on(words: Tensor, weights: int) -> str:
    """Share of weights on; of ternary masks also how many of all are negative."""
    counts = ops.popcount(words.reshape(-1, words.shape[-1])).tolist()
    shares = [100 * count / max(weights, 1) for count in counts]
    text = f"{shares[0]:.1f} %"
    return text if len(shares) == 1 else f"{text}, {shares[1]:.1f} % as -1"


def _plain(value: Any) -> str:
    return printable(" ".join(map(str, value)) if isinstance(value, list) else value)
