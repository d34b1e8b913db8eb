"""What a scenario's figures are of, in one line."""

from __future__ import annotations

from typing import Any

# What the examples of a problem are called.
_EXAMPLES = {"vision": "examples", "node": "nodes", "link": "links", "graph": "graphs"}


def summary(description: dict[str, Any]) -> str:
    """One line for a person from ``Scenario.describe()``: printed beside every figure."""
    classes = [_span(part) for part in description["classes"]]
    if len(set(classes)) == 1:
        shown = classes[0] + (" each" if len(classes) > 1 else "")
    else:
        shown = " | ".join(classes if len(classes) <= 12 else [*classes[:10], "...", classes[-1]])
    tasks = "1 task" if len(classes) == 1 else f"{len(classes)} tasks"
    # A description written before there were graphs says no problem.
    problem = description.get("problem", "vision")
    targets = description.get("targets", "classes")
    line = (
        f"{description['name']}, {description['setting']} setting, seed {description['seed']}: "
        f"{tasks}, {_asked(description, shown)}, "
        f"{_range(description['train_sizes'])} training and "
        f"{_range(description['test_sizes'])} test {_EXAMPLES[problem]} a task"
    )
    if problem == "vision":
        return line if targets == "classes" else f"{line}, {description['metric']}"
    edges = description["detail"].get("edges")
    line += f", {problem} problem, {description['metric']}"
    return line if edges is None else f"{line}, edges: {edges}"


def _asked(description: dict[str, Any], classes: str) -> str:
    """What a prediction says: one of some classes, so many values or labels, link or none."""
    if description.get("prediction"):
        return "link or none"
    targets = description.get("targets", "classes")
    if targets == "classes":
        return f"classes {classes}"
    noun = "value" if targets == "values" else "label"
    count = _range(description["outputs"])
    return f"{count} {noun}" if count == "1" else f"{count} {noun}s"


def _span(classes: list[int]) -> str:
    """[0, 1, 2] as 0-2, [3, 7] as 3 7."""
    if len(classes) > 2 and classes == list(range(classes[0], classes[-1] + 1)):
        return f"{classes[0]}-{classes[-1]}"
    return " ".join(str(label) for label in classes)


def _range(sizes: list[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low}" if low == high else f"{low} to {high}"
