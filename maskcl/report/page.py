"""report.html: one file with everything in it, of a finished run or of one that goes on."""

from __future__ import annotations

import numpy as np

from maskcl.report.figures import matrix_of, mean_curve, pictures_of
from maskcl.report.html import (
    Row,
    cards,
    definitions,
    details,
    document,
    escape,
    picture_section,
    section,
    table,
    table_section,
)
from maskcl.report.inference import VIEWS
from maskcl.report.layout import Card, Content, Layout
from maskcl.report.methods import layout_of
from maskcl.report.scores import REFERENCES, metric_rows, score_name
from maskcl.report.text import number, seconds
from maskcl.scenarios.describing import summary

# Beyond this many tasks tables show the first and last ones; result.json has all.
MOST_ROWS = 50


def page(result: Content, figures: dict[str, str], *, note: str = "", reload: int = 0) -> str:
    """The whole page as text.

    Args:
        result: what result.json holds, or will.
        figures: ``<svg>`` elements by name, as `figures.draw_all` gives them.
        note: a sentence at the top: of a run that goes on, where it stands.
        reload: seconds after which a browser reads the page again; 0: never.
    """
    cut, config, own = result["scenario"], result["configuration"], layout_of(result)
    title = f"{own.title} on {cut['name']}"
    drawn = [p for p in pictures_of(result) if p.name in figures]
    tables = [t for t in (VIEWS, *own.tables, REFERENCES) if t.is_drawable(result)]
    body = [
        _head(title, result, own, note),
        cards(_cards(own, result)),
        '<div class="pair">',
        *(picture_section(p, figures[p.name]) for p in drawn),
        "</div>",
        _metrics(result),
        *(table_section(t.title, t.caption, _cut(t.rows(result))) for t in tables),
        _accuracy_table(result),
        *(details(heading, result[key]) for key, heading in own.details if key in result),
        details("Configuration", config),
        details("Environment", result.get("environment", {})),
        details("Scenario", cut),
    ]
    return document(title, "".join(body), reload=reload)


def _head(title: str, result: Content, own: Layout, note: str) -> str:
    config = result["configuration"]
    facts = [
        f"Model {config['model']}" if "model" in config else "",
        f"{result['parameters']:,} parameters" if "parameters" in result else "",
        f"{config['epochs']} epochs a task",
        str(config.get("optimizer", "")),
        f"seed {config['seed']}",
    ]
    origin = own.origin(result) if own.origin is not None else ""
    lines = [f"{summary(result['scenario'])}.", f"{', '.join(filter(None, facts))}."]
    lines += [f"{origin}."] if origin else []
    lines += [_forgotten(result)] if result.get("forgotten") else []
    said = f'<section class="note" role="status">{escape(note)}</section>' if note else ""
    return f"<h1>{escape(title)}</h1>{said}<p>{'<br>'.join(map(escape, lines))}</p>"


def _forgotten(result: Content) -> str:
    gone = result["forgotten"]
    names = ", ".join(map(str, gone))
    which = f"task {names} is" if len(gone) == 1 else f"tasks {names} are"
    return (
        f"Since the training {which} forgotten: the network no longer has what the scores below"
        " say of it."
    )


def _cards(own: Layout, result: Content) -> list[Card]:
    found, name = result["metrics"], score_name(result)
    mean, moved = found["ACC"]["value"], found["BWT"]["value"]
    label = f"mean {name} (ACC)"
    if (note := _mean_so_far(result)) is not None:
        mean, label = note, f"mean {name} so far"
    return [
        Card(number(mean, 4), label),
        Card(number(moved, 4), "backward transfer (BWT)"),
        *(Card(m.text(result), m.label) for m in own.measures if m.is_known(result)),
        *(card(result) for card in own.cards if "environment" in result),
        Card(seconds(sum(result["seconds"])), "training time"),
    ]


def _mean_so_far(result: Content) -> float | None:
    """Of a run on its way, the mean on the tasks that it has finished; None for a finished run."""
    curve = mean_curve(matrix_of(result))
    known = np.flatnonzero(~np.isnan(curve))
    return float(curve[known[-1]]) if known.size and known[-1] + 1 < len(curve) else None


def _metrics(result: Content) -> str:
    rows = []
    for name, value, definition, reason in metric_rows(result):
        undefined = f'<br><span class="muted">undefined: {escape(reason)}</span>' if reason else ""
        rows.append((name, number(value, 4), f"{escape(definition)}{undefined}"))
    caption = f"Of scores that are {score_name(result)}. T tasks, numbered from 0."
    return section("Metrics", caption, definitions(rows))


def _cut(rows: list[list[str]]) -> list[list[str]]:
    """Heading, first and last rows of a long table."""
    hidden = len(rows) - 1 - MOST_ROWS
    if hidden <= 0:
        return rows
    half = MOST_ROWS // 2
    gap = [f"... {hidden} more", *[""] * (len(rows[0]) - 1)]
    return [*rows[: half + 1], gap, *rows[-half:]]


def _accuracy_table(result: Content) -> str:
    """All scores; of very many tasks the last row, and the file that has the others."""
    matrix, cut = matrix_of(result), result["scenario"]
    name = f"Test {score_name(result)}, all figures"
    classes = [_classes(part) for part in cut["classes"]]
    if len(matrix) > MOST_ROWS:
        known = np.flatnonzero(~np.isnan(matrix).all(1))
        last = int(known[-1]) if known.size else 0
        head = ["task", "just trained", f"after task {last}", "classes", "time"]
        rows = [
            [str(j), number(matrix[j, j], 4), number(matrix[last, j], 4), classes[j],
             seconds(result["seconds"][j])]
            for j in range(len(matrix))
        ]  # fmt: skip
        caption = "Each task's first and last score; result.json has the whole matrix."
        return section(name, caption, table(_cut([head, *rows])))
    head = ["", *(f"on task {j}" for j in range(len(matrix))), "time"]
    body: list[Row] = [
        [f"after task {i}", *(_score(v) for v in row), seconds(result["seconds"][i])]
        for i, row in enumerate(matrix)
    ]
    return section(name, "", table([head, *body, ["classes", *classes, ""]], numeric=True))


def _score(value: float) -> str:
    return "" if np.isnan(value) else number(float(value), 4)


def _classes(labels: list[int]) -> str:
    return f"{labels[0]}-{labels[-1]}" if len(labels) > 2 else " ".join(map(str, labels))
