"""The report of a Piggyback run: weights off, bits that differ between tasks, mask files."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np

from maskcl.report.drawing import layer_name, shorten
from maskcl.report.heat_maps import layer_map, square, square_map
from maskcl.report.layout import Card, Content, Layout, Measure, Picture, Table
from maskcl.report.mask_metrics import total_share
from maskcl.report.text import byte_count, number, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def off_by_layer(result: Content) -> Figure:
    """Heat map of the share of weights off: a row a layer, the last one all of them together."""
    sizes: dict[str, int] = result["masked_weights"]
    names = list(sizes)
    history = result["off"]
    shares = [[after[name] for after in history] for name in names]
    together = [total_share(after, sizes) for after in history]
    values = 100 * np.array([*shares, together], dtype=np.float64)
    labels = [f"{shorten(layer_name(name), 30)}  ({sizes[name]:,})" for name in names]
    labels.append(f"all layers  ({sum(sizes.values()):,})")
    high = float(np.nanmax(values, initial=0.0))
    figure, axes = layer_map(
        values, labels, low=0, high=high, label="percent of weights off", digits=1
    )
    axes.set_xlabel("task")
    return figure


def differing(result: Content) -> Figure:
    """Heat map [T, T] of the share of weights whose masks differ between two tasks."""
    shares = 100 * np.array(result["differing"], dtype=np.float64)
    figure, axes = square(len(shares))
    high = float(np.nanmax(shares, initial=0.0))
    square_map(
        axes, shares, low=0, high=high, label="percent of weights", digits=1,
        words="masks of tasks {row} and {column} differ, percent",
    )  # fmt: skip
    axes.set_xlabel("task")
    axes.set_ylabel("task")
    return figure


def mask_files(result: Content) -> list[list[str]]:
    """Heading, a row for each task's file, their sum."""
    weights = sum(result["masked_weights"].values())
    rows = [
        ["task", "file", "bytes", "masks", "head, norms", "bits a weight", "at 8 bits",
         "at 32 bits"],
    ]  # fmt: skip
    files = result["mask_files"]
    entries = [(str(f["task"]), str(f["file"]), [f]) for f in files]
    if len(files) > 1:
        entries.append(("all", "", files))
    for task, name, part in entries:
        whole, words, own = (
            sum(file[key] for file in part) for key in ("bytes", "words_bytes", "own_bytes")
        )
        count = weights * len(part)
        bits = number(8 * (whole - own) / count, 3) if count else "n/a"
        sizes = [f"{size:,}" for size in (whole, words, own)]
        rows.append([task, name, *sizes, bits, f"{count:,}", f"{4 * count:,}"])
    return rows


def weights_off(result: Content) -> float | None:
    """Mean over the tasks of the share of all masked weights that the task's mask turns off."""
    shares = [total_share(after, result["masked_weights"]) for after in result["off"]]
    return statistics.mean(shares) if shares else None


def file_bytes(result: Content) -> float | None:
    """Mean size of a task's file."""
    sizes = [file["bytes"] for file in result["mask_files"]]
    return statistics.mean(sizes) if sizes else None


def base_card(result: Content) -> Card:
    """How well the base knew its own images, or what it is where it was not trained."""
    base = result.get("base", {})
    if base.get("accuracy") is None:
        return Card(str(base.get("source") or "as given"), "base")
    return Card(number(base["accuracy"], 4), f"held-out accuracy of the base ({base['source']})")


def origin(result: Content) -> str:
    """The base in a sentence."""
    base = result.get("base", {})
    if "trained_on" not in base:
        return f"The base's SHA-256 begins with {str(base.get('sha256'))[:12]}" if base else ""
    scored = base["accuracy"] is not None
    reached = f", held-out accuracy {number(base['accuracy'], 4)}" if scored else ""
    return (
        f"Base trained on {base['trained_on']}{reached}; "
        f"its SHA-256 begins with {str(base['sha256'])[:12]}"
    )


LAYOUT = Layout(
    title="Piggyback",
    measures=(
        Measure("weights off", weights_off, percent, column="off", needs=("masked_weights",)),
        Measure("a task's file", file_bytes, byte_count, column="file", needs=("mask_files",)),
    ),
    cards=(base_card,),
    origin=origin,
    beside=Picture(
        "differing",
        "Masks that differ",
        "Percent of all masked weights whose mask is not the same for the two tasks. Binary masks "
        "that turn off shares p and q independently of each other differ in p + q - 2pq.",
        differing,
        needs=("differing",),
    ),
    pictures=(
        Picture(
            "off",
            "Weights off by layer and task",
            "Percent of a layer's weights that the task's mask turns off. In brackets the number "
            "of weights; the last row counts every weight once, whatever its layer.",
            off_by_layer,
            needs=("off", "masked_weights"),
        ),
    ),
    tables=(
        Table(
            "Mask files",
            "Bytes of the files as they lie on the disk, and of the masks and of head and norms in "
            "them. Bits a weight: the file less head and norms, so with its names, shapes and "
            "hashes. Last, the bytes that the masks alone would take at 8 bits a weight, the "
            "original code's format, and at 32, BeGin's.",
            mask_files,
            needs=("mask_files",),
        ),
    ),
    details=(("base", "Base"),),
)
