"""Tables that are made, not written, in docs/benchmarks.md: `python -m benchmarks.speed_page`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.commits import ROOT
from benchmarks.pages import part, replace_part
from benchmarks.step_pieces import pieces

PAGE = ROOT / "docs/benchmarks.md"
STEPS = ROOT / "benchmarks/results/steps.csv"
OPS = ROOT / "benchmarks/results/cpu.csv"
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
COLUMNS = [
    ("HAT", "maskcl"),
    ("HAT", "careful eager"),
    ("HAT", "hat-cl"),
    ("HAT", "CLArena"),
    ("Piggyback", "maskcl"),
    ("Piggyback", "careful eager"),
    ("MAS", "maskcl"),
    ("MAS", "careful eager"),
]
NAMES = {
    "conv": "HAT's conv net, 3x32x32",
    "resnet18": "ResNet-18, 3x32x32",
    "gcn": "GCN 3 x 256, graph of Cora's size",
}
Row = dict[str, str]


def read(path: Any) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def tables() -> dict[str, str]:
    """The page's parts by their names."""
    rows = read(STEPS)
    found = {f"steps: {name}": text for name, text in step_tables(rows).items()}
    found["where ours loses: steps"] = lost_steps(rows)
    operations = read(OPS)
    found["ops"] = op_table(operations)
    found["where ours loses: ops"] = lost_ops(operations)
    return found


def of_setting(row: Row) -> tuple[str, ...]:
    return tuple(
        row[k] for k in ("network", "batch", "optimizer", "threads", "compiled", "schedule")
    )


def step_tables(rows: list[Row]) -> dict[str, str]:
    """A table for each piece that has rows."""
    found = {}
    for name, settings in pieces().items():
        keys = dict.fromkeys(
            (s.network, str(s.batch), s.optimizer, *map(str, (s.threads, s.compiled, s.schedule)))
            for s in settings
        )
        lines = [line(key, [row for row in rows if of_setting(row) == key]) for key in keys]
        known = [cells for cells in lines if cells]
        if not known:
            found[name] = "Not measured yet."
            continue
        head = ["network", "batch", "optimizer", "threads", "unmasked, us"]
        head += [f"{method}, {whose}" for method, whose in COLUMNS]
        shown = [i for i in range(len(head)) if i < 5 or any(cells[i] for cells in known)]
        table = [[cells[i] for i in shown] for cells in [head, *known]]
        found[name] = f"{provenance(r for r in rows if of_setting(r) in keys)}\n\n{grid(table)}"
    return found


def line(key: tuple[str, ...], rows: list[Row]) -> list[str]:
    """A setting's cells: ratios to the unmasked step, * where faster than ours."""
    if not rows:
        return []
    network, batch, optimizer, threads, *_ = key
    times = [float(row["us"]) for row in rows if not row["method"]]
    cells = [NAMES.get(network, network), batch, OPTIMIZERS[optimizer], threads]
    cells.append(f"{min(times):,.0f}")
    by_name = {(row["method"], row["whose"]): row for row in rows}
    for name in COLUMNS:
        row = by_name.get(name)
        if row is None or not row["us"]:
            cells.append("" if row is None else "not here")
            continue
        cells.append(f"{float(row['of_unmasked']):.2f}{' faster' if row['note'] else ''}")
    return cells


def lost_steps(rows: list[Row]) -> str:
    """A line for each step of another's that is faster than ours, and of ours above 1."""
    lines = [
        f"- {words(row)}: {row['method']} {row['whose']} is {row['note']}"
        for row in rows
        if row["note"].startswith("faster")
    ]
    slower = [row for row in rows if row["whose"] == "maskcl" and float(row["of_unmasked"]) > 1]
    count = sum(row["whose"] == "maskcl" for row in rows)
    said = f"{len(slower)} of {count} steps of ours take longer than the unmasked step."
    return "\n".join([said, "", *(lines or ["- no row of the tables above"])])


def words(row: Row) -> str:
    threads = "1 thread" if row["threads"] == "1" else f"{row['threads']} threads"
    compiled = ", compiled" if row["compiled"] == "True" else ""
    compiled += ", a rate a step" if row["schedule"] == "True" else ""
    name = NAMES.get(row["network"], row["network"])
    return f"{name}, batch {row['batch']}, {OPTIMIZERS[row['optimizer']]}, {threads}{compiled}"


def provenance(rows: Iterable[Row]) -> str:
    """Command, machine, commit and date; several where rows are of several."""
    keys = ("command", "device", "torch", "commit", "date")
    kinds = dict.fromkeys(tuple(row[key] for key in keys) for row in rows)
    said = [f"`{c}`, {device}, torch {t}, commit {k}, {date}" for c, device, t, k, date in kinds]
    return "; ".join(said) + ("" if len(said) == 1 else ": rows of several runs, not yet of one")


def grid(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    head, *rest = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join([head, f"| {' | '.join(['---'] * len(rows[0]))} |", *rest])


def op_table(rows: list[Row]) -> str:
    """Every group of cpu.csv in a line."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    lines = [["", "maskcl, ms", "others, ms"]]
    for group, found in groups.items():
        ours = next((row for row in found if row["name"] == "maskcl"), None)
        others = [f"{cell(r['name'])} {float(r['median_ms']):.3g}" for r in found if r is not ours]
        mine = "" if ours is None else f"{float(ours['median_ms']):.3g}"
        lines.append([cell(group), mine, ", ".join(others)])
    keys = ("device", "threads", "torch", "commit", "date")
    kinds = dict.fromkeys(tuple(row.get(key) or "no date" for key in keys) for row in rows)
    said = [
        f"{device}, {threads} threads, torch {t}, commit {k}, {date}"
        for device, threads, t, k, date in kinds
    ]
    several = "" if len(said) == 1 else ": rows of several runs, not yet of one"
    return f"`python -m benchmarks --save`, {'; '.join(said)}{several}\n\n{grid(lines)}"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def lost_ops(rows: list[Row]) -> str:
    """A line for each group in which eager or compiled torch is faster than ours."""
    lines = []
    for row in rows:
        is_torchs = "eager" in row["name"] or "torch." in row["name"]
        if is_torchs and row["ratio"] and float(row["ratio"]) < 1:
            lines.append(f"- {row['group']}: {row['name']} takes {float(row['ratio']):.2f} of ours")
    return "\n".join(lines or ["- no row of the table above"])


def differences() -> list[str]:
    """The parts that the page has otherwise than the tables of results."""
    return [name for name, text in tables().items() if part(name, PAGE) != text.strip()]


def write() -> None:
    """Make all parts anew."""
    for name, text in tables().items():
        replace_part(name, text, PAGE)


if __name__ == "__main__":
    write()
