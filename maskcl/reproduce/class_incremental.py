"""Class-incremental learning without replay: tasks inferred, beside what the field's methods reach.

A cell of the table is what ``maskcl train METHOD --setting class`` gives a person, with the
options named in it.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskcl.training.result import Result

# Seeds 0 to 4 chose the defaults, on validation data.
FIRST_SEED = 100

_MNIST = {"epochs": 3, "hidden": (400, 400)}
SCENARIOS: dict[str, dict[str, Any]] = {
    "split-digits": {},
    "split-mnist": _MNIST,
    "nodes-digits": {},
}


@dataclasses.dataclass(frozen=True)
class Cell:
    """A row of the table.

    Attributes:
        scenario: its name.
        title: for a person.
        method: of ``maskcl train``.
        infer: shared, masked or none.
        own: further options.
    """

    scenario: str
    title: str
    method: str
    infer: str
    own: tuple[tuple[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """Its name in a file of results."""
        return f"{self.scenario} {self.title}"

    def options(self, seed: int, data: str | None) -> dict[str, Any]:
        """What ``maskcl train`` is given."""
        beside = {"data": data} if "mnist" in self.scenario else {}
        shared = {"scenario": self.scenario, "setting": "class", "infer": self.infer, "seed": seed}
        return {**shared, **SCENARIOS[self.scenario], **dict(self.own), **beside}


_ROWS = [
    ("HAT, shared", "hat", "shared", ()),
    ("HAT, masked", "hat", "masked", ()),
    ("Piggyback on random weights, shared", "piggyback", "shared", (("base", "random"),)),
    ("Piggyback on random weights, masked", "piggyback", "masked", (("base", "random"),)),
    ("MAS, shared", "mas", "shared", ()),
    ("MAS", "mas", "none", ()),
    ("EWC", "ewc", "none", ()),
    ("fine-tuning", "mas", "none", (("strength", 0.0),)),
]
CELLS = [
    Cell(scenario, title, method, infer, own)
    for scenario in SCENARIOS
    for title, method, infer, own in _ROWS
]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one run came to, means over tasks after the last, in [0, 1].

    Attributes:
        score: nobody tells the task.
        identified: the task inferred right; None where none is inferred.
        told: each sample under its own task's mask; None likewise.
        alone: linear discriminant analysis of the inputs, no network; None likewise.
        seconds: of the processor.
    """

    score: float
    identified: float | None
    told: float | None
    alone: float | None
    seconds: float

    @classmethod
    def of(cls, result: Result, seconds: float) -> Figures:
        """Of a finished run."""
        found = result.inference
        score = float(result.matrix[-1].mean())
        if found is None:
            return cls(score, None, None, None, seconds)
        identified, told, alone = (
            float(m[-1].mean()) for m in (found.identified, found.told, found.alone)
        )
        return cls(score, identified, told, alone, seconds)


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of a paper, on other data and with another backbone."""

    method: str
    score: float
    source: str
    backbone: str
    replay: str


_PRETRAINED = "DeiT-S/16, pretrained on 611 classes of ImageNet"
# From public reading notes of the papers, two of which agree; not from the papers themselves.
PUBLISHED = [
    Published("CLOM", 65.2, "arXiv 2203.09450, table 1", "ResNet-18", "20 a class, to calibrate"),
    Published("CLOM without calibration", 63.3, "the same", "ResNet-18", "none"),
    Published("HAT + ViM", 72.8, "arXiv 2309.15048, table 4", _PRETRAINED, "none for the score"),
    Published("ROW", 74.7, "arXiv 2309.15048, table 1", _PRETRAINED, "2,000"),
    Published("TPL", 76.5, "arXiv 2309.15048, table 1", _PRETRAINED, "2,000"),
]


def markdown(
    runs: dict[str, dict[int, Figures]], cells: Sequence[Cell], seeds: Sequence[int], made: str
) -> str:
    """The page: a table for each scenario, and the published rows."""
    lines = [
        "# Class-incremental learning, the task inferred",
        "",
        made,
        "",
        "Percent, mean over tasks after the last; ± is the standard deviation over seeds (n - 1)."
        " Score: nobody tells the task of a test sample. Identified: the task is inferred right."
        " Told: each sample under its own task's mask. LDA: linear discriminant analysis of random"
        " features of the same inputs, with no network at all. CPU s: processor seconds of a run.",
    ]
    for scenario in dict.fromkeys(cell.scenario for cell in cells):
        lines += ["", f"## {scenario}", "", "| | score | identified | told | LDA | CPU s |"]
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for cell in cells:
            if cell.scenario == scenario:
                found = [runs[cell.key][seed] for seed in seeds]
                lines.append(f"| {cell.title} | {' | '.join(_columns(found))} |")
    lines += [
        "",
        "## Published, on CIFAR-100 in ten tasks",
        "",
        "Other data, other backbones, most with replay: not to be compared with the rows above."
        " Quoted from public notes on the papers that agree with each other, not from the papers.",
        "",
        "| | score | source | backbone | stored samples |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {row.method} | {row.score} | {row.source} | {row.backbone} | {row.replay} |"
        for row in PUBLISHED
    ]
    return "\n".join([*lines, ""])


def _columns(found: Sequence[Figures]) -> list[str]:
    names = ("score", "identified", "told", "alone")
    shown = [_percent([getattr(run, name) for run in found]) for name in names]
    return [*shown, f"{statistics.fmean(run.seconds for run in found):.0f}"]


def _percent(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {statistics.stdev(known):.2f}" if len(known) > 1 else ""
    return f"{statistics.fmean(known):.2f}{spread}"
