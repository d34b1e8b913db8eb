"""What a method adds to a report: figures in words and numbers, pictures, tables.

A method is one `Layout`; the page, the pictures and the comparison ask nothing else about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The content of a result.json.
Content: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """One figure of a run, for the cards and for the columns of a comparison.

    Attributes:
        label: on the card and in the terminal's last line.
        value: result -> the figure, None where there is none.
        show: the figure as text.
        column: name of the column in a comparison; None keeps it out of there.
    """

    label: str
    value: Callable[[Content], float | None]
    show: Callable[[float | None], str]
    column: str | None = None


@dataclass(frozen=True)
class Card:
    """A value in large letters over what it is."""

    value: str
    label: str


@dataclass(frozen=True)
class Picture:
    """A figure of a run: ``name`` is the file's (without .png)."""

    name: str
    title: str
    caption: str
    draw: Callable[[Content], Figure]


@dataclass(frozen=True)
class Table:
    """A table of a run: rows of text, the first one the headings."""

    title: str
    caption: str
    rows: Callable[[Content], list[list[str]]]


@dataclass(frozen=True)
class Layout:
    """All that a method adds.

    Attributes:
        title: the method's name in the heading.
        measures: a card each.
        cards: more cards, after those.
        beside: stands next to the accuracy matrix.
        pictures: the others, under the accuracy over time.
        tables: under the pictures.
        origin: result -> a sentence about what training started from.
        details: keys of the result whose facts are listed at the end, with their headings.
    """

    title: str
    measures: tuple[Measure, ...] = ()
    cards: tuple[Callable[[Content], Card], ...] = ()
    beside: Picture | None = None
    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    origin: Callable[[Content], str] | None = None
    details: tuple[tuple[str, str], ...] = ()
