"""report.html: one file with everything in it."""

from __future__ import annotations

import base64
from html import escape
from typing import Any

from maskcl.report.figures import matrix_of
from maskcl.scenarios.base import summary

_FIGURES = {
    "accuracy": (
        "Accuracy matrix",
        "Row: after training that task. Column: evaluated on that task, on its test set. A column "
        "that keeps its number downwards has forgotten nothing. Empty cells were not measured.",
    ),
    "accuracy_over_time": (
        "Accuracy over time",
        "Each task from its own training on, and the mean over the tasks trained so far.",
    ),
    "capacity": (
        "Capacity used and protected",
        "Left: share of each layer's units that finished tasks use. Right: share of each weight's "
        "elements that finished tasks protect; the rest is free for later tasks.",
    ),
    "overlap": (
        "Mask overlap",
        "Share of the column's task's units that the row's task uses too.",
    ),
    "masks": (
        "Masks by layer",
        "Coloured: the task uses the unit. Units are sorted by the tasks that use them, so a "
        "column keeps its place within a layer only.",
    ),
}

_METRICS = {
    "ACC": "mean accuracy of the final model over all tasks (AP)",
    "AIA": "mean over time of the mean accuracy on the tasks so far",
    "BWT": "backward transfer: final minus just-trained accuracy; negative is forgetting",
    "FWT": "forward transfer: accuracy before training minus the untrained network's",
    "F": "forgetting: best earlier minus final accuracy",
    "AF": "average forgetting: just-trained minus final accuracy (-BWT)",
    "INT": "intransigence: joint training's minus just-trained accuracy",
    "rho": "forgetting ratio: 0 is joint training, -1 is chance (HAT)",
}

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
.card{padding:14px 16px}
.card b{display:block;font-size:25px;line-height:1.2;font-variant-numeric:tabular-nums}
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


def page(result: dict[str, Any], figures: dict[str, bytes]) -> str:
    """The whole page as text; ``figures`` are PNG bytes by name, as `figures.draw_all` gives."""
    cut = result["scenario"]
    parts = {name: _figure(name, png) for name, png in figures.items()}
    title = f"{result['method'].upper()} on {cut['name']}"
    config = result["configuration"]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)} · maskcl</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>"
        f"<p>{escape(summary(cut))}.<br>Model {escape(str(config['model']))}, "
        f"{result['parameters']:,} parameters, {config['epochs']} epochs a task, "
        f"{escape(str(config['optimizer']))}, seed {config['seed']}.</p>"
        f"{_cards(result)}"
        f'<div class="pair">{parts["accuracy"]}{parts["overlap"]}</div>'
        f"{parts['accuracy_over_time']}{parts['capacity']}{parts['masks']}"
        f"{_metrics(result)}{_accuracy_table(result)}"
        f"{_details('Configuration', config)}{_details('Environment', result['environment'])}"
        f"{_details('Scenario', cut)}"
        "</main></body></html>\n"
    )


def _cards(result: dict[str, Any]) -> str:
    values = [
        ("mean accuracy", number(result["metrics"]["ACC"]["value"], 4)),
        ("backward transfer", number(result["metrics"]["BWT"]["value"], 4)),
        ("units used", percent(mean_share(result["capacity"]))),
        ("weights protected", percent(result["protected_share"])),
        ("a task's mask", f"{result['mask_bytes']:,} B"),
        ("training time", seconds(sum(result["seconds"]))),
    ]
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in values
    )
    return f'<div class="cards">{cards}</div>'


def _figure(name: str, png: bytes) -> str:
    title, caption = _FIGURES[name]
    data = base64.b64encode(png).decode()
    return (
        f"<section><h2>{title}</h2><p>{caption}</p>"
        f'<img alt="{title}" src="data:image/png;base64,{data}"></section>'
    )


def _metrics(result: dict[str, Any]) -> str:
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="n">{number(metric["value"], 4)}</td>'
        f'<td>{escape(_METRICS.get(name, ""))}'
        + (f'<br><span class="muted">undefined: {escape(metric["reason"])}</span>'
           if metric["reason"] else "")
        + "</td></tr>"
        for name, metric in result["metrics"].items()
    )  # fmt: skip
    return f"<section><h2>Metrics</h2><table>{rows}</table></section>"


def _accuracy_table(result: dict[str, Any]) -> str:
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
        "<section><h2>Accuracy, all figures</h2><table>"
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


def mean_share(history: list[dict[str, float]]) -> float | None:
    """Mean over the layers of the last entry, or None where nothing was recorded."""
    if not history or not history[-1]:
        return None
    return sum(history[-1].values()) / len(history[-1])


def number(value: float | None, digits: int) -> str:
    """A figure for a person; n/a where there is none. -0.0 reads 0."""
    if value is None or value != value:
        return "n/a"
    return f"{value + 0.0:.{digits}f}"


def percent(value: float | None) -> str:
    """A share in [0, 1] as a percentage."""
    return "n/a" if value is None else f"{100 * value:.1f} %"


def seconds(value: float) -> str:
    """A duration for a person."""
    if value < 100:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
