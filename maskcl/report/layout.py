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
        needs: keys of the result without which there is none.
        show: the figure as text.
        column: name of the column in a comparison; None keeps it out of there.
    """

    label: str
    value: Callable[[Content], float | None]
    show: Callable[[float | None], str]
    column: str | None = None
    needs: tuple[str, ...] = ()

    def is_known(self, result: Content) -> bool:
        """Whether the result has what it is made from."""
        return has(result, self.needs)

    def of(self, result: Content) -> float | None:
        """The figure of a result."""
        return self.value(result) if self.is_known(result) else None

    def text(self, result: Content) -> str:
        """The same as text."""
        return self.show(self.of(result))


@dataclass(frozen=True)
class Card:
    """A value in large letters over what it is."""

    value: str
    label: str


def has(result: Content, keys: tuple[str, ...]) -> bool:
    """Whether a result has something at all of these keys: runs on their way lack some."""
    return all(_something(result.get(key)) for key in keys)


def _something(value: Any) -> bool:
    # Of lists by task and epoch one with an epoch.
    return any(map(_something, value)) if isinstance(value, list) else value not in (None, {})


@dataclass(frozen=True)
class Picture:
    """A figure of a run.

    Attributes:
        name: of its file, without .svg.
        title, caption: over it.
        draw: of a result.
        needs: keys of the result without which it is left out.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Content], Figure]
    needs: tuple[str, ...] = ()

    def is_drawable(self, result: Content) -> bool:
        """Whether the result has what it shows."""
        return has(result, self.needs)


@dataclass(frozen=True)
class Table:
    """A table of a run: rows of text, the first one the headings; ``needs`` as a Picture's."""

    title: str
    caption: str
    rows: Callable[[Content], list[list[str]]]
    needs: tuple[str, ...] = ()

    def is_drawable(self, result: Content) -> bool:
        """Whether the result has what it shows."""
        return has(result, self.needs)


@dataclass(frozen=True)
class Layout:
    """All that a method adds.

    Attributes:
        title: the method's name in the heading.
        measures: a card each.
        cards: more cards, after those.
        beside: stands next to the matrix of scores.
        pictures: the others, under the training curves.
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
