"""report.html: one file with everything in it."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from maskcl.report.drawing import DPI
from maskcl.report.figures import ACCURACY, OVER_TIME, matrix_of
from maskcl.report.inference import CONFUSION, VIEWS
from maskcl.report.layout import Card, Content, Layout, Picture, Table
from maskcl.report.methods import layout_of
from maskcl.report.scores import REFERENCES, metric_rows, score_name
from maskcl.report.text import number, seconds
from maskcl.scenarios.describing import summary

_STYLE = """
:root{--ink:#1e293b;--muted:#64748b;--line:#e2e8f0;--blue:#2563eb}
*{box-sizing:border-box}
body{margin:0;background:#f8fafc;color:var(--ink);
 font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:27px;margin:0 0 4px;letter-spacing:-.01em}
h2{font-size:18px;margin:0 0 4px}
p{margin:0 0 12px;color:var(--muted)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:22px 0}
.card,section{background:#fff;border:1px solid var(--line);border-radius:10px}
.card{padding:14px 12px;overflow-wrap:anywhere}
.card b{display:block;font-size:20px;line-height:1.3;font-variant-numeric:tabular-nums}
.card span{color:var(--muted);font-size:13px}
section{padding:20px 22px;margin:16px 0;overflow-x:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(430px,1fr));gap:16px}
.pair section{margin:0}
img{display:block;max-width:100%;height:auto;margin:6px auto 0}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);
 vertical-align:top}
th{font-weight:600}
td.n,th.n{text-align:right;white-space:nowrap}
.muted{color:var(--muted)}
details summary{cursor:pointer;font-weight:600;font-size:18px}
code{font-family:ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;font-size:13px}
"""


def page(result: Content, figures: dict[str, bytes]) -> str:
    """The whole page as text; ``figures`` are PNG bytes by name, as `figures.draw_all` gives."""
    cut, config, own = result["scenario"], result["configuration"], layout_of(result)
    title = f"{own.title} on {cut['name']}"
    beside = _picture(own.beside, figures) if own.beside is not None else ""
    body = [
        f'<div class="pair">{_picture(ACCURACY, figures)}{beside}</div>',
        _picture(OVER_TIME, figures),
        *([_table(VIEWS, result), _picture(CONFUSION, figures)] if result.get("inference") else []),
        *(_picture(picture, figures) for picture in own.pictures),
        *(_table(table, result) for table in own.tables),
        _metrics(result),
        *([_table(REFERENCES, result)] if result.get("references") else []),
        _accuracy_table(result),
        *(_details(heading, result[key]) for key, heading in own.details),
        _details("Configuration", config),
        _details("Environment", result["environment"]),
        _details("Scenario", cut),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · maskcl</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>"
        f"<p>{escape(summary(cut))}.<br>Model {escape(str(config['model']))}, "
        f"{result['parameters']:,} parameters, {config['epochs']} epochs a task, "
        f"{escape(str(config['optimizer']))}, seed {config['seed']}."
        f"{_origin(own, result)}{_forgotten(result)}</p>"
        f"{_cards(own, result)}{''.join(body)}</main></body></html>\n"
    )


def _origin(own: Layout, result: Content) -> str:
    return f"<br>{escape(own.origin(result))}." if own.origin is not None else ""


def _forgotten(result: Content) -> str:
    gone = result.get("forgotten", [])
    if not gone:
        return ""
    names = ", ".join(str(task + 1) for task in gone)
    which = f"task {names} is" if len(gone) == 1 else f"tasks {names} are"
    return (
        f"<br>Since the training {which} forgotten: the network no longer has what the scores below"
        " say of it."
    )


def _cards(own: Layout, result: Content) -> str:
    cards = [
        Card(number(result["metrics"]["ACC"]["value"], 4), f"mean {score_name(result)}"),
        Card(number(result["metrics"]["BWT"]["value"], 4), "backward transfer"),
        *(Card(measure.show(measure.value(result)), measure.label) for measure in own.measures),
        *(card(result) for card in own.cards),
        Card(seconds(sum(result["seconds"])), "training time"),
    ]
    shown = "".join(
        f'<div class="card"><b>{escape(card.value)}</b><span>{escape(card.label)}</span></div>'
        for card in cards
    )
    return f'<div class="cards">{shown}</div>'


def _picture(picture: Picture, figures: dict[str, bytes]) -> str:
    png = figures[picture.name]
    data = base64.b64encode(png).decode()
    # From the file's header. One scale for all, or a small picture's letters would be the largest.
    width = round(int.from_bytes(png[16:20], "big") * 100 / DPI)
    return (
        f"<section><h2>{picture.title}</h2><p>{picture.caption}</p>"
        f'<img alt="{picture.title}" width="{width}" src="data:image/png;base64,{data}"></section>'
    )


def _table(table: Table, result: Content) -> str:
    head, *rows = table.rows(result)
    # Numbers to the right, under their headings.
    kinds = [
        "" if any(_is_text(row[column]) for row in rows) else ' class="n"'
        for column in range(len(head))
    ]
    lines = [("th", head), *(("td", row) for row in rows)]
    body = "".join(
        "<tr>"
        + "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells))
        + "</tr>"
        for tag, cells in lines
    )
    return f"<section><h2>{table.title}</h2><p>{table.caption}</p><table>{body}</table></section>"


def _is_text(cell: str) -> bool:
    if cell == "n/a":
        return False
    try:
        float(cell.replace(",", "").removesuffix(" %"))
    except ValueError:
        return True
    return False


def _metrics(result: Content) -> str:
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="n">{number(value, 4)}</td>'
        f"<td>{escape(definition)}"
        + (f'<br><span class="muted">undefined: {escape(reason)}</span>' if reason else "")
        + "</td></tr>"
        for name, value, definition, reason in metric_rows(result)
    )
    caption = f"Of scores that are {score_name(result)}. T tasks, numbered from 0."
    return f"<section><h2>Metrics</h2><p>{escape(caption)}</p><table>{rows}</table></section>"


def _accuracy_table(result: Content) -> str:
    matrix = matrix_of(result)
    cut = result["scenario"]
    head = "".join(f'<th class="n">on task {j + 1}</th>' for j in range(len(matrix)))
    rows = ""
    for i, row in enumerate(matrix):
        cells = "".join(f'<td class="n">{number(value, 4)}</td>' for value in row)
        rows += (
            f"<tr><th>after task {i + 1}</th>{cells}"
            f'<td class="n">{seconds(result["seconds"][i])}</td></tr>'
        )
    classes = "".join(
        f'<td class="n muted">{escape(_classes(part))}</td>' for part in cut["classes"]
    )
    return (
        f"<section><h2>Test {escape(score_name(result))}, all figures</h2><table>"
        f'<tr><th></th>{head}<th class="n">time</th></tr>{rows}'
        f'<tr><th class="muted">classes</th>{classes}<td></td></tr></table></section>'
    )


def _details(title: str, values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{escape(str(key))}</th><td><code>{escape(_plain(value))}</code></td></tr>"
        for key, value in values.items()
    )
    return f"<section><details><summary>{title}</summary><table>{rows}</table></details></section>"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(part) for part in value)
    return str(value)


def _classes(labels: list[int]) -> str:
    return f"{labels[0]}-{labels[-1]}" if len(labels) > 2 else " ".join(map(str, labels))
