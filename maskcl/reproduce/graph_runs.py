"""The runs of `maskcl.reproduce.graphs`: kept in a file as they finish, shown as Markdown."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maskcl.files import write_atomic
from maskcl.report.text import seconds
from maskcl.reproduce.graphs import METHODS, PROBLEMS, Cell, Figures, refused
from maskcl.reproduce.kept_runs import read_runs, write_runs
from maskcl.scenarios import summary

TABLE = "results.md"
FORMAT = "maskcl-reproduce-graphs"

# A cell and a seed -> what was measured, and the scenario's `describe`.
Train = Callable[[Cell, int], tuple[Figures, dict[str, Any]]]


@dataclasses.dataclass
class Kept:
    """What is finished.

    Attributes:
        runs: by cell's key and seed.
        scenarios: by problem and setting, as "node task": `Scenario.describe` of seed 0.
        options: by cell's key, those of ``maskcl train``, the seed apart.
        facts: of the machine and the day of the latest run.
    """

    options: dict[str, dict[str, Any]]
    runs: dict[str, dict[int, Figures]] = dataclasses.field(default_factory=dict)
    scenarios: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def run(
    cells: Sequence[Cell],
    seeds: int,
    train: Train,
    *,
    directory: Path | None,
    options: dict[str, dict[str, Any]],
    facts: dict[str, Any],
    command: str,
    say: Callable[[str], None] = print,
) -> str:
    """Train what the directory does not hold yet, seed after seed; returns the table.

    Args:
        cells: legal ones.
        seeds: how many, from 0.
        train: what trains one.
        directory: of results.json and results.md, made with the first run; None: nowhere.
        options: by cell's key, all that its figures depend on besides the seed; plain as JSON.
        facts: of machine and day.
        command: what was asked for, for a person.
        say: gets a line for each run.

    Raises:
        ReproduceError: the directory holds something else.
    """
    kept = Kept(options) if directory is None else read(directory, options)
    for seed in range(seeds):
        for cell in cells:
            of_cell = kept.runs.setdefault(cell.key, {})
            if seed in of_cell:
                continue
            of_cell[seed], described = train(cell, seed)
            kept.scenarios.setdefault(f"{cell.problem} {cell.setting}", described)
            kept.facts = facts
            if directory is not None:
                write(kept, directory)
            found = of_cell[seed]
            say(
                f"seed {seed}, {cell.key}: {100 * found.average:.2f}, chance"
                f" {100 * found.chance:.2f}  ({seconds(found.seconds)})"
            )
    shown = markdown(kept, cells, seeds, command)
    if directory is not None:
        write_atomic(directory / TABLE, shown.encode())
    return shown


def read(directory: Path, options: dict[str, dict[str, Any]]) -> Kept:
    """What a directory holds, to go on with under these options; nothing where it is new.

    Raises:
        ReproduceError: it is something else, of other options, or cannot be read.
    """
    content, runs = read_runs(directory, options, Figures, ("scenarios", "environment"))
    beside = content.get("scenarios", {}), content.get("environment", {})
    return Kept(content["options"], runs, *beside)


def write(kept: Kept, directory: Path) -> None:
    """All runs so far, as a whole file."""
    beside = {"scenarios": kept.scenarios, "environment": kept.facts}
    write_runs(directory, FORMAT, kept.options, kept.runs, **beside)


def markdown(kept: Kept, cells: Sequence[Cell], seeds: int, command: str) -> str:
    """The page: how it was made, the table, the scenarios, what cannot be."""
    facts = kept.facts
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "torch_geometric", "maskcl"))
    some = f"seeds 0 to {seeds - 1}" if seeds > 1 else "seed 0"
    time = sum(kept.runs[cell.key][seed].seconds for cell in cells for seed in range(seeds))
    return "\n".join(
        [
            "# Every method on every graph problem in every setting",
            "",
            f"Made by `{command}`, which needs no data, on {facts['date']}: {versions},"
            f" {facts['threads']} of {facts['cpus']} threads of"
            f" {facts['cpu'] or facts['machine']}, {seconds(time)} of processor time. Each figure"
            f" is what `maskcl train METHOD --scenario NAME --setting SETTING` gives, {some}.",
            "",
            "Score: the final network's on the test examples of all tasks, mean over tasks, in"
            " percent; ± is the standard deviation over the seeds (n - 1). Accuracy, for link"
            " prediction AUROC. Chance: what guessing scores. AF: mean over the earlier tasks of"
            " the score right after the task less the final one; positive is forgetting. CPU s:"
            " processor seconds of a run, data and tests included. In the class setting, where"
            " nothing tells the task, a network that knows the last of T tasks alone scores at"
            " most 100 / T.",
            "",
            *_table(kept, cells, seeds),
            "",
            "## Scenarios",
            "",
            *_scenarios(kept, cells),
            "",
            "## What cannot be",
            "",
            *(f"- {_listed(found)}: {reason}." for reason, found in refused().items()),
            "",
        ]
    )


def _table(kept: Kept, cells: Sequence[Cell], seeds: int) -> list[str]:
    rows = [
        "| problem | setting | method | score | chance | AF | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in cells:
        runs = [kept.runs[cell.key][seed] for seed in range(seeds)]
        score = _figure([run.average for run in runs])
        chance = statistics.fmean(run.chance for run in runs)
        lost = _figure([run.forgetting for run in runs])
        time = statistics.fmean(run.seconds for run in runs)
        title = PROBLEMS[cell.problem].title
        rows.append(
            f"| {title} | {cell.setting} | {cell.method} | {score} | {100 * chance:.1f} |"
            f" {lost} | {time:.1f} |"
        )
    return rows


def _figure(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values) + 0.0:.2f}{spread}"


def _scenarios(kept: Kept, cells: Sequence[Cell]) -> list[str]:
    """What each scenario is, and how each setting cuts it."""
    lines = []
    for problem in dict.fromkeys(cell.problem for cell in cells):
        settings = dict.fromkeys(cell.setting for cell in cells if cell.problem == problem)
        described = [kept.scenarios[f"{problem} {setting}"] for setting in settings]
        source, detail = described[0]["source"], described[0]["detail"]
        same = "".join(
            f"; {name.replace('_', ' ')}: {detail[name]}"
            for name in ("features", "split", "left_out")
            if name in detail
        )
        lines.append(f"- `{PROBLEMS[problem].scenario}`, {PROBLEMS[problem].title}: {source}{same}")
        lines += [f"  - {summary(one)}; {one['detail']['order']}" for one in described]
    return lines


def _listed(cells: Sequence[Cell]) -> str:
    """Cells in words: methods, problems and settings where they are all combinations of these."""
    methods = [name for name in METHODS if any(cell.method == name for cell in cells)]
    problems = [name for name in PROBLEMS if any(cell.problem == name for cell in cells)]
    settings = list(dict.fromkeys(cell.setting for cell in cells))
    if len(cells) < len(methods) * len(problems) * len(settings):
        return "; ".join(cell.key for cell in cells)
    titles = [PROBLEMS[name].title for name in problems]
    return ", ".join(
        [
            "every method" if len(methods) == len(METHODS) else " and ".join(methods),
            "every problem" if len(problems) == len(PROBLEMS) else " and ".join(titles),
            f"{' and '.join(settings)} setting",
        ]
    )
