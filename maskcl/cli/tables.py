"""Tables as plain text: the same on a terminal, in a pipe and in a log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maskcl import report
from maskcl.report.compare import COLUMNS, DESCRIBED, MEASURED
from maskcl.report.scores import glossary, score_name
from maskcl.report.text import grid, number, seconds
from maskcl.text import printable


def accuracy_table(result: dict[str, Any]) -> str:
    """The matrix of scores, the metrics that are defined and what they are, and of what."""
    matrix = result["accuracy"]
    rows = [[f"test {score_name(result)}", *(f"task {task}" for task in range(len(matrix)))]]
    for task, row in enumerate(matrix):
        shown = ["" if value is None else f"{value:.4f}" for value in row]
        rows.append([f"after task {task}", *shown])
    defined = {
        name: f"{name} {number(metric['value'], 4)}"
        for name, metric in result["metrics"].items()
        if metric["value"] is not None
    }
    size, time = f"{result['parameters']:,} parameters", seconds(sum(result["seconds"]))
    facts = ", ".join(part for part in (report.facts(result), size, time) if part)
    words = glossary(defined, score_name(result))
    return "\n".join(
        [grid(rows), "", "  ".join(defined.values()), words, facts, printable(result["summary"])]
    )


def comparison(rows: Sequence[dict[str, str]]) -> str:
    """A line for each run; what is the same for all stands once, above."""
    runs = [row for row in rows if not row["run"].startswith("mean ")]
    same = [
        name for name in DESCRIBED[1:] if len(runs) > 1 and len({row[name] for row in rows}) == 1
    ]
    # A column that only other methods have is left out.
    columns = [name for name in COLUMNS if name not in same and any(row[name] for row in rows)]
    table = grid([columns, *([row[name] for name in columns] for row in rows)])
    shared = ", ".join(f"{name} {rows[0][name]}" for name in same if rows[0][name])
    words = glossary((name for name in columns if name in MEASURED), rows[0]["metric"])
    parts = [f"all runs: {printable(shared)}"] if shared else []
    return "\n\n".join([*parts, table, words])
