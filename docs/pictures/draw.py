"""Draws the pictures of docs/concepts: ``python docs/pictures/draw.py`` (a second).

Each is an SVG on a light panel of its own, so that it reads the same on a light and on a dark page.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

INK, MUTED, LINE, PANEL = "#1e293b", "#5b6879", "#cbd5e1", "#f8fafc"
BLUE, ORANGE, GREEN, WHITE = "#2563eb", "#c2410c", "#047857", "#ffffff"
PALE_BLUE, PALE_ORANGE, PALE_GREEN, BOTH = "#bfdbfe", "#fed7aa", "#a7f3d0", "#ddd6fe"


class Picture:
    """An SVG in the making, ``width`` x ``height``; positions are in its pixels."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" '
            'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="14">',
            f"<title>{title}</title>",
        ]
        self.box(0.5, 0.5, width - 1, height - 1, PANEL, radius=10)

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        fill: str,
        *,
        line: str = LINE,
        radius: int = 0,
    ) -> None:
        """A rectangle."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius}" '
            f'fill="{fill}" stroke="{line}"/>'
        )

    def text(
        self, x: float, y: float, words: str, *, at: str = "start", color: str = INK, size: int = 14
    ) -> None:
        """Words on one line; ``at`` is the end of them that x is at."""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{at}" fill="{color}" '
            f'font-size="{size}">{words}</text>'
        )

    def lines(self, points: list[tuple[float, float]], color: str, *, width: float = 2.5) -> None:
        """Points joined by lines."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width:g}"/>'
        )

    def dot(self, x: float, y: float, color: str, *, radius: float = 5) -> None:
        """A filled circle."""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{color}"/>')

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A line with a tip at its end."""
        self.lines([(x, y), (to_x, to_y)], MUTED, width=1.5)
        angle = math.atan2(to_y - y, to_x - x)
        ends = [
            (to_x - 8 * math.cos(angle + d), to_y - 8 * math.sin(angle + d)) for d in (0.45, -0.45)
        ]
        self.lines([ends[0], (to_x, to_y), ends[1]], MUTED, width=1.5)

    def written(self) -> str:
        """The file's text."""
        return "\n".join([*self._parts, "</svg>", ""])


def gate() -> Picture:
    """m = sigmoid(s e) for three scales, and what an open and a closed gate do."""
    picture = Picture(640, 270, "A gate at three scales")
    left, bottom, width, height = 60, 215, 300, 160
    picture.lines([(left, bottom), (left + width, bottom)], LINE, width=1)
    picture.lines([(left + width / 2, bottom), (left + width / 2, bottom - height)], LINE, width=1)
    for scale, color, y in ((1, GREEN, 105), (4, ORANGE, 80), (100, BLUE, 55)):
        points = []
        for step in range(241):
            e = step / 60 - 2
            mask = 1 / (1 + math.exp(-scale * e))
            points.append((left + (e + 2) / 4 * width, bottom - mask * height))
        picture.lines(points, color)
        picture.text(left + 8, y, f"s = {scale}", color=color)
    picture.text(left - 8, bottom + 4, "0", at="end", color=MUTED)
    picture.text(left - 8, bottom - height + 5, "1", at="end", color=MUTED)
    picture.text(left + width / 2, bottom + 20, "0", at="middle", color=MUTED)
    picture.text(left + width, bottom + 20, "embedding e", at="end", color=MUTED)
    picture.text(left - 8, 34, "mask m = sigmoid(s e)", color=INK)
    for row, (unit, e, m) in enumerate(
        (("unit 0", "1.2", "1"), ("unit 1", "-0.4", "0"), ("unit 2", "0.3", "1"))
    ):
        y = 62 + 58 * row
        fill = PALE_BLUE if m == "1" else WHITE
        picture.box(400, y, 70, 36, fill, radius=6)
        picture.text(435, y + 23, unit, at="middle")
        picture.arrow(474, y + 18, 508, y + 18)
        picture.text(522, y + 23, f"x {m}", color=BLUE if m == "1" else MUTED)
        picture.text(620, y + 23, f"e = {e}", at="end", color=MUTED)
    picture.text(400, 34, "at test: open where e &gt; 0")
    picture.text(400, 250, "a closed unit gives exactly 0", color=MUTED)
    return picture


TASKS = {0: (1, 1, 0, 0, 1, 0), 1: (0, 1, 1, 0, 0, 0)}  # which of six units each uses


def bits() -> Picture:
    """Units by tasks, the words they make, and what is free."""
    picture = Picture(640, 250, "Each unit's tasks as the bits of a word")
    for unit in range(6):
        picture.text(225 + 62 * unit, 40, f"unit {unit}", at="middle")
    for task, units in TASKS.items():
        y = 55 + 46 * task
        picture.text(30, y + 24, f"task {task}: bit {task}")
        for unit, used in enumerate(units):
            fill = (PALE_BLUE, PALE_ORANGE)[task] if used else WHITE
            picture.box(200 + 62 * unit, y, 50, 36, fill, radius=4)
            picture.text(
                225 + 62 * unit, y + 23, str(used), at="middle", color=INK if used else MUTED
            )
    picture.text(30, 178, "word (int64)")
    for unit in range(6):
        word = sum(TASKS[task][unit] << task for task in TASKS)
        picture.text(225 + 62 * unit, 178, str(word), at="middle", size=16)
        if word == 0:
            picture.text(225 + 62 * unit, 202, "free", at="middle", color=GREEN)
    picture.text(
        30,
        232,
        "64 tasks fit in a word: 8 bytes a unit, a second word from task 64 on",
        color=MUTED,
    )
    return picture


def protection() -> Picture:
    """One weight matrix: what two tasks need, under the exact rule and the paper's."""
    picture = Picture(640, 330, "Which weights are protected")
    into = {0: (1, 1, 0, 0, 1, 0), 1: (0, 1, 1, 0, 0, 0)}
    out = {0: (1, 0, 1, 0, 0), 1: (0, 0, 1, 1, 0)}
    for place, name in enumerate(
        ("exact: one task uses both ends", "min: some task uses each end")
    ):
        left, top, side = 60 + 300 * place, 78, 32
        picture.text(left - 30, 30, name)
        for i in range(6):
            word = sum(into[t][i] << t for t in into)
            picture.text(
                left + side * (i + 0.5), 66, ("-", "0", "1", "01")[word], at="middle", color=MUTED
            )
        for o in range(5):
            rows = sum(out[t][o] << t for t in out)
            picture.text(
                left - 8,
                top + side * (o + 0.65),
                ("-", "0", "1", "01")[rows],
                at="end",
                color=MUTED,
            )
            for i in range(6):
                word = sum(into[t][i] << t for t in into)
                fill = (WHITE, PALE_BLUE, PALE_ORANGE, BOTH)[rows & word]
                if place and not rows & word and rows and word:
                    fill = LINE
                picture.box(left + side * i, top + side * o, side, side, fill)
    y = 262
    for x, fill, words in (
        (60, PALE_BLUE, "task 0"),
        (150, PALE_ORANGE, "task 1"),
        (240, BOTH, "both"),
        (330, LINE, "neither, and protected"),
        (520, WHITE, "free"),
    ):
        picture.box(x, y, 16, 16, fill)
        picture.text(x + 22, y + 13, words)
    picture.text(
        60,
        306,
        "columns: units that come in, with the tasks that use them; rows: units that go out",
        color=MUTED,
    )
    return picture


def threshold() -> Picture:
    """Base weights, scores, the mask and the task's weights."""
    picture = Picture(640, 240, "A mask from scores")
    weights = ("0.3", "-1.1", "0.8", "0.5", "0.2", "-0.7", "-0.4", "0.9", "1.2")
    scores = (0.012, 0.004, 0.009, -0.002, 0.010, 0.013, 0.001, 0.008, 0.003)
    mask = [s > 0.005 for s in scores]
    grids = (
        ("base W, frozen", weights, [WHITE] * 9),
        ("scores r, learned", [f"{s:.3f}" for s in scores], [WHITE] * 9),
        (
            "mask: r &gt; 0.005",
            [str(int(m)) for m in mask],
            [PALE_BLUE if m else WHITE for m in mask],
        ),
        (
            "the task's weights",
            [w if m else "0" for w, m in zip(weights, mask)],
            [PALE_BLUE if m else WHITE for m in mask],
        ),
    )
    for place, (name, cells, fills) in enumerate(grids):
        left, top, side = 22 + 156 * place, 60, 44
        picture.text(left, 40, name)
        for index, (cell, fill) in enumerate(zip(cells, fills)):
            x, y = left + side * (index % 3), top + side * (index // 3)
            picture.box(x, y, side, side, fill)
            picture.text(x + side / 2, y + 27, cell, at="middle", size=13)
    picture.text(
        22, 222, "kept when the task ends: one bit a weight; the scores are dropped", color=MUTED
    )
    return picture


def importance() -> Picture:
    """A penalty for two weights, and where a new task's optimum leaves them."""
    picture = Picture(640, 280, "A penalty is a parabola around the old value")
    _charged(picture, 40, "important: Omega = 9", 9.0, ORANGE)
    _charged(picture, 340, "unimportant: Omega = 0.4", 0.4, BLUE)
    words = "grey: the new task's loss; coloured: the charge; green: where the weight goes"
    picture.text(40, 264, words, color=MUTED)
    return picture


def _charged(picture: Picture, left: float, name: str, omega: float, color: str) -> None:
    """The charge of a weight that was 0, and the loss of a task that wants it at 1.5."""
    bottom, width, height, most, wanted = 220, 250, 160, 3.2, 1.5

    def spot(w: float, value: float) -> tuple[float, float]:
        return left + (w + 1) / 3 * width, bottom - value / most * height

    picture.text(left, 34, name, color=color)
    picture.lines([(left, bottom), (left + width, bottom)], LINE, width=1)
    grid = [step / 100 - 1 for step in range(301)]
    for middle, weight, shade in ((0.0, omega, color), (wanted, 1.0, MUTED)):
        values = [(w, weight * (w - middle) ** 2) for w in grid]
        picture.lines([spot(w, value) for w, value in values if value <= most], shade)
    best = wanted / (1 + omega)
    picture.dot(*spot(0, 0), INK)
    picture.dot(*spot(best, omega * best**2), GREEN, radius=6)
    picture.text(spot(0, 0)[0], bottom + 20, "W*", at="middle")
    picture.text(spot(wanted, 0)[0], bottom + 20, "new optimum", at="middle", color=MUTED)


def settings() -> Picture:
    """What tasks bring, what is told at test, what an answer chooses among."""
    picture = Picture(640, 290, "The four settings")
    columns = (20, 110, 300, 450)
    for x, words in zip(columns, ("setting", "tasks", "told at test", "chosen among")):
        picture.text(x, 34, words, color=MUTED)
    rows = (
        ("task", ("0 1", "2 3", "4 5"), "the task", "its 2 classes"),
        ("class", ("0 1", "2 3", "4 5"), "nothing", "all 6 seen so far"),
        ("domain", ("0-9", "0-9", "0-9"), "the task (domain)", "the same 10"),
        ("time", ("0-9", "0-9", "0-9"), "nothing", "the same 10"),
    )
    for row, (name, parts, told, among) in enumerate(rows):
        y = 52 + 56 * row
        picture.text(columns[0], y + 26, name, size=16)
        for index, part in enumerate(parts):
            fill = (PALE_BLUE, PALE_ORANGE, PALE_GREEN)[index]
            picture.box(columns[1] + 56 * index, y, 50, 40, fill, radius=6)
            picture.text(columns[1] + 25 + 56 * index, y + 25, part, at="middle")
        picture.text(columns[2], y + 26, told)
        picture.text(columns[3], y + 26, among)
    return picture


PICTURES = {
    "gate": gate, "task-bits": bits, "exact-protection": protection, "threshold-mask": threshold,
    "importance": importance, "settings": settings,
}  # fmt: skip


def main(folder: Path) -> None:
    """Write all of them."""
    for name, draw in PICTURES.items():
        (folder / f"{name}.svg").write_text(draw().written())


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
