"""What `mkdocs build` adds to the pages: the front page, the navigation's files, each op's facts.

Nothing of maskcl is imported: the reference is read from the sources, costs from the tables that
`python -m benchmarks --save` and `python -m benchmarks.instructions --write` leave.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TIMES = ROOT / "benchmarks/results/cpu.csv"
INSTRUCTIONS = ROOT / "benchmarks/instructions.csv"
OP = re.compile(r"^::: maskcl\.ops\.(\w+)\n(?:<!-- timed: (.*) -->\n)?", flags=re.MULTILINE)
SMALL_STEP = "step 8-8-8-2, unmasked"


def on_config(config: Any) -> Any:
    """The navigation with every pattern replaced by the pages that it matches and none names."""
    config.nav = [*_expanded(config.nav, {*_named(config.nav)})]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """README as the front page; on every page links that the site can follow, and ops' facts."""
    if page.file.src_uri == "index.md":
        markdown = (ROOT / "README.md").read_text().replace("](docs/", "](")
        markdown = re.sub(r"\]\(([A-Z]+\.md)\)", r"](../\1)", markdown)
    above = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace(f"]({above}../README.md", f"]({above}index.md")
    # Other files beside docs/ are in the checkout, not on the site.
    markdown = re.sub(rf"\[([^\]]+)\]\({re.escape(above)}\.\./[^)]+\)", r"\1", markdown)
    return OP.sub(lambda m: m[0] + facts(m[1], m[2]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings' roles, which are Sphinx's, as plain names."""
    return re.sub(r":(?:class|func|meth|mod):<code>", "<code>", html)


def _named(nav: Iterable[Any]) -> Iterator[str]:
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        else:
            (below,) = entry.values()
            yield from _named([below] if isinstance(below, str) else below)


def _expanded(nav: Iterable[Any], named: set[str]) -> Iterator[Any]:
    for entry in nav:
        if isinstance(entry, dict):
            ((title, below),) = entry.items()
            pages = below if isinstance(below, str) else [*_expanded(below, named)]
            if pages:
                yield {title: pages}
        elif "*" in entry:
            found = [path for path in DOCS.glob(entry) if path.suffix == ".md"]
            found.sort(key=lambda path: (path.name != "index.md", path))
            pages = [path.relative_to(DOCS).as_posix() for path in found]
            yield from (page for page in pages if page not in named)
            named.update(pages)
        else:
            yield entry


def facts(op: str, groups: str | None) -> str:
    """What an op equals and what it costs, as Markdown.

    Args:
        op: its name.
        groups: how the names of its groups in cpu.csv begin, parted by semicolons; None for none.

    Raises:
        ValueError: a table has no row of it.
    """
    lines = ["**Formula and cost:**", ""]
    lines += [f"- `{call}` equals `{formula}`" for call, formula in equals(op)]
    lines.append(f"- {_call_cost(op)}")
    if groups:
        lines += ["", *_times(op, groups.split("; "))]
    return "\n" + "\n".join(lines) + "\n"


def equals(op: str) -> list[tuple[str, str]]:
    """The rows of docs/ops/index.md that call ``op``."""
    text = (DOCS / "ops/index.md").read_text()
    rows = re.findall(rf"^\| `({op}\(.*?\))` \| `(.*?)` \|$", text, flags=re.MULTILINE)
    return [(call, formula.replace("\\|", "|")) for call, formula in rows]


def _call_cost(op: str) -> str:
    with INSTRUCTIONS.open(newline="") as file:
        versions, _, *rows = csv.reader(file)
    counts = {piece: int(count) for piece, count, _ in rows}
    if op not in counts:
        raise ValueError(f"{INSTRUCTIONS.name} has no row of {op}")
    both = counts.get(f"{op}, forward + backward")
    backward = f", {both:,} with its backward" if both else ""
    step = f"{counts[SMALL_STEP]:,}"
    return (
        f"a call on one element on a CPU: {counts[op]:,} instructions{backward}, where an unmasked"
        f" training step of an MLP 8-8-8-2 has {step} ({versions[0]}; `python -m"
        " benchmarks.instructions`)"
    )


def _times(op: str, groups: list[str]) -> list[str]:
    rows = [row for row in timed_rows() if row["group"].startswith(tuple(groups))]
    for group in groups:
        if not any(row["group"].startswith(group) for row in rows):
            raise ValueError(f"{TIMES.name} has no group that begins with {group!r}, for {op}")
    names = dict.fromkeys(row["group"] for row in rows)
    by_group = {name: [row for row in rows if row["group"] == name] for name in names}
    (first, *_) = rows
    return [
        f"Milliseconds, medians; in brackets over maskcl's. {first['device']}, {first['threads']}"
        f" threads, torch {first['torch']}; `python -m benchmarks`:",
        "",
        "| | maskcl | copy of the least bytes | others | commit |",
        "| --- | --- | --- | --- | --- |",
        *(_row(name, found) for name, found in by_group.items()),
    ]


def timed_rows() -> list[dict[str, str]]:
    """The rows of benchmarks/results/cpu.csv."""
    with TIMES.open(newline="") as file:
        return list(csv.DictReader(file))


def _row(group: str, rows: list[Mapping[str, str]]) -> str:
    cells = {row["name"]: row for row in rows}
    ours, copy = cells.pop("maskcl"), cells.pop("memcpy", None)
    others = ", ".join(f"{name} {_time(row)}" for name, row in cells.items())
    known = f"{float(ours['median_ms']):.3g}", _time(copy) if copy else ""
    return f"| {group} | {known[0]} | {known[1]} | {others} | {ours['commit']} |"


def _time(row: Mapping[str, str]) -> str:
    return f"{float(row['median_ms']):.3g} ({float(row['ratio']):.2f})"
