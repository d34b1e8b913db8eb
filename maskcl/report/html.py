"""Pieces of a page. Every text in it may come from a file: all are escaped here."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, TypeAlias

from maskcl.report.layout import Card, Picture
from maskcl.report.theme import STYLE
from maskcl.text import printable

Row: TypeAlias = list[str]

_MISSING = ("", "n/a")


def escape(value: object) -> str:
    """Text that can stand anywhere in a page."""
    return html.escape(printable(value))


def document(title: str, body: str, *, reload: int = 0) -> str:
    """A page with its style; ``reload``: seconds until a browser reads it again, 0: never."""
    again = f'<meta http-equiv="refresh" content="{reload}">' if reload else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">{again}'
        f"<title>{escape(title)} · maskcl</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def section(title: str, caption: str, body: str) -> str:
    """A box with a heading; ``body`` is HTML."""
    said = f"<p>{escape(caption)}</p>" if caption else ""
    return f"<section><h2>{escape(title)}</h2>{said}{body}</section>"


def cards(shown: Sequence[Card]) -> str:
    """Values in large letters."""
    parts = "".join(
        f'<div class="card"><b>{escape(card.value)}</b><span>{escape(card.label)}</span></div>'
        for card in shown
    )
    return f'<div class="cards">{parts}</div>'


def scrolling(body: str, label: str) -> str:
    """What may be wider than the page scrolls in a box of its own, by keys too."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{body}</div>'
    )


def picture_section(picture: Picture, svg: str) -> str:
    """A picture with its heading and caption; ``svg`` is an element of `svg.svg`."""
    return section(picture.title, picture.caption, scrolling(svg, picture.title))


def table_section(title: str, caption: str, rows: Sequence[Row]) -> str:
    """A table with its heading and caption."""
    return section(title, caption, table(rows, label=title))


def table(rows: Sequence[Row], *, label: str = "table", numeric: bool = False) -> str:
    """Rows of text, the first one the headings, each row's first cell its own.

    Args:
        rows: all of one length.
        label: for those who do not see it.
        numeric: all columns but the first stand to the right, as those of numbers alone always do.
    """
    head, *body = rows
    kinds = [
        ' class="n"' if (numeric and column) or all(is_number(row[column]) for row in body) else ""
        for column in range(len(head))
    ]
    top = "".join(f'<th scope="col"{k}>{escape(cell)}</th>' for k, cell in zip(kinds, head))
    lines = "".join(f"<tr>{_cells(row, kinds)}</tr>" for row in body)
    return scrolling(f"<table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table>", label)


def _cells(row: Row, kinds: Sequence[str]) -> str:
    first = f'<th scope="row"{kinds[0]}>{escape(row[0])}</th>'
    rest = zip(kinds[1:], row[1:])
    return first + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in rest)


def is_number(cell: str) -> bool:
    """Whether a cell stands to the right: a figure, with its spread or unit, or none."""
    if cell in _MISSING or cell.startswith("... "):
        return True
    words = cell.replace(",", "").replace("±", " ").removesuffix(" %").split()
    try:
        return bool([float(word) for word in words])
    except ValueError:
        return False


def definitions(rows: Sequence[tuple[str, str, str]]) -> str:
    """Name, value and meaning of each; the meaning is HTML and breaks where the page is narrow."""
    parts = "".join(
        f"<dt>{escape(name)} {escape(value)}</dt><dd>{meaning}</dd>"
        for name, value, meaning in rows
    )
    return f"<dl>{parts}</dl>"


def details(title: str, values: dict[str, Any]) -> str:
    """Names and values behind a heading that opens; nothing where there are none."""
    if not values:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td><code>{escape(_plain(value))}</code></td></tr>'
        for key, value in values.items()
    )
    return (
        f"<section><details><summary>{escape(title)}</summary><table>{rows}</table></details>"
        "</section>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, list):
        if len(value) > 100:
            return f"{_plain(value[:50])}, ... {len(value) - 50} more"
        return ", ".join(_plain(part) for part in value)
    return str(value)
