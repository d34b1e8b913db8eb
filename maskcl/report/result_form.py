"""What result.json has to hold for a report: by key the kind, and lengths that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from maskcl.text import printable
from maskcl.validation import ContentError, check

FORMAT = "maskcl-result"
VERSION = 1

_SCORE = (float, None)
_METRIC = {"value": _SCORE, "reason": (str, None)}

# A ? marks what older runs lack, or runs without it.
_ANY_METHOD = {
    "method": str,
    "scenario": {
        "name": str, "setting": str, "seed": (int, None), "source": str, "num_tasks": int,
        "classes": [[int]], "outputs": [int], "train_sizes": [int], "test_sizes": [int],
        "input_shape": [int], "problem?": str, "metric?": str, "targets?": str,
        "prediction?": Any, "detail?": {str: Any},
    },
    "summary?": str,
    "configuration": {
        "model": (str, None), "epochs": int, "optimizer": str, "seed": int, "strength?": float,
    },
    "parameters": int,
    "metric?": str,
    "accuracy": [[_SCORE]],
    "untrained?": [_SCORE],
    "chance?": ([float], None),
    "references?": ({"together": [[_SCORE]], "scratch": [_SCORE]}, None),
    "metrics": {str: _METRIC},
    "seconds": [float],
    "losses?": [[float]],
    "training_accuracies?": [[float]],
    "free_by_epoch?": [[float]],
    "validation_scores?": [[float]],
    "best_epochs?": [(int, None)],
    "inference?": (
        {
            "told": [[_SCORE]], "identified": [[_SCORE]], "alone": [[_SCORE]],
            "confusion": [[float]],
        },
        None,
    ),
    "forgotten?": [int],
    "weights_sha256?": str,
    "environment": {str: Any},
}  # fmt: skip

_OF_METHOD: dict[str, dict[str, Any]] = {
    "hat": {
        "capacity": [{str: float}],
        "protected": [{str: float}],
        "protected_share": float,
        "mask_bytes": float,
        "masks": {"units": int, "layers": {str: [int]}, "tasks": [str]},
        "free?": {"units": [int], "weights": [int]},
    },
    "piggyback": {
        "base": {"source?": str, "trained_on?": str, "accuracy?": _SCORE, "sha256": str},
        "masked_weights": {str: int},
        "off": [{str: float}],
        "differing": [[float]],
        "mask_files?": [
            {"task": int, "file": str, "bytes": int, "words_bytes": int, "own_bytes": int}
        ],
    },
}
_HELD = {"regularised": {str: int}, "importance": [{str: _SCORE}], "drift": [{str: _SCORE}]}
_OF_METHOD |= {"mas": _HELD, "ewc": _HELD}


_SQUARES = {
    "references": ["together"],
    "inference": ["told", "identified", "alone", "confusion"],
}


def check_result(result: Any, where: str) -> None:
    """Raise ContentError unless this is a result that a report can be made of.

    Args:
        result: the content of a result.json.
        where: the file, for errors.
    """
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ContentError(f"{where} is not a result of maskcl")
    version = result.get("version", VERSION)  # the first runs said none
    if version != VERSION or isinstance(version, bool):
        raise ContentError(f"{where} has version {printable(version)}, this maskcl reads {VERSION}")
    check(result, _ANY_METHOD, where)
    check(result, _OF_METHOD.get(result["method"], {}), where)
    for name in ("ACC", "BWT"):
        check(result["metrics"], {name: _METRIC}, where, "metrics")
    tasks = result["scenario"]["num_tasks"]
    if tasks < 1:
        raise ContentError(f"{where}: scenario.num_tasks is {tasks}, wanted at least 1")
    for name, found in _by_task(result):
        if len(found) != tasks:
            raise ContentError(f"{where}: {name} has {len(found)} entries for {tasks} tasks")


def _by_task(result: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Name and content of all that has an entry for each task."""
    cut = result["scenario"]
    for name in ("classes", "outputs", "train_sizes", "test_sizes"):
        yield f"scenario.{name}", cut[name]
    squares = {"accuracy": result["accuracy"]}
    for part, names in _SQUARES.items():
        if held := result.get(part):
            squares |= {f"{part}.{name}": held[name] for name in names}
    if held := result.get("references"):
        yield "references.scratch", held["scratch"]
    for name, rows in squares.items():
        yield name, rows
        yield from ((f"{name}[{index}]", row) for index, row in enumerate(rows))
    names = ["seconds", "untrained", "losses", "training_accuracies"]
    names += ["free_by_epoch", "validation_scores", "best_epochs"]
    for name in names:
        if name in result:
            yield name, result[name]
