"""Every method on every graph problem in every setting, on scenarios that need no file.

A cell of the table is what ``maskcl train`` gives a person, with its defaults.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskcl import metrics
from maskcl.methods import EWC, HAT, MAS, Piggyback
from maskcl.problems import Graphs, Link, Node
from maskcl.reproduce.runs import ReproduceError
from maskcl.settings import SETTINGS

if TYPE_CHECKING:
    from maskcl.scenarios import Scenario
    from maskcl.training.result import Result


@dataclass(frozen=True)
class Kind:
    """A problem, for a person, as the command line knows it, and as methods are asked about it."""

    title: str
    scenario: str
    problem: Any


PROBLEMS = {
    "node": Kind("node classification", "nodes-digits", Node()),
    "link": Kind("link classification", "links-digits", Link()),
    "prediction": Kind("link prediction", "missing-links-digits", Link(prediction=True)),
    "graph": Kind("graph classification", "graphs-digits", Graphs()),
}

# Messages mix the samples of a batch of nodes or links, which leaves the gradient of the batch.
_BATCH = {"node": "batch", "link": "batch", "prediction": "batch", "graph": "sample"}

METHODS: dict[str, Callable[[str], Any]] = {
    "hat": lambda problem: HAT(),
    "piggyback": lambda problem: Piggyback(),
    "mas": lambda problem: MAS(reduction=_BATCH[problem]),
    "ewc": lambda problem: EWC(reduction=_BATCH[problem]),
}


@dataclass(frozen=True)
class Cell:
    """A combination, by the names of method, problem and setting."""

    method: str
    problem: str
    setting: str

    @property
    def key(self) -> str:
        """Its name in a file of results."""
        return f"{self.method} {self.problem} {self.setting}"

    @property
    def reasons(self) -> list[str]:
        """Why it cannot be; empty where it can."""
        method, problem = METHODS[self.method](self.problem), PROBLEMS[self.problem].problem
        return method.not_supported_reasons(problem, SETTINGS[self.setting])

    def options(self, seed: int) -> dict[str, Any]:
        """What ``maskcl train`` is given."""
        scenario = PROBLEMS[self.problem].scenario
        return {"scenario": scenario, "setting": self.setting, "seed": seed}


CELLS = [
    Cell(method, problem, setting)
    for problem in PROBLEMS
    for setting in SETTINGS
    for method in METHODS
]


@dataclass(frozen=True)
class Figures:
    """What one run came to.

    Attributes:
        scores: of each task after the last, in [0, 1].
        chance: what guessing gives on average.
        forgetting: AF (``maskcl.metrics``).
        seconds: of the processor, for data, training and evaluation; other work on the machine
            does not count.
    """

    scores: list[float]
    chance: float
    forgetting: float
    seconds: float

    @property
    def average(self) -> float:
        """Mean over the tasks."""
        return statistics.fmean(self.scores)

    @property
    def advantage(self) -> float:
        """Over chance."""
        return self.average - self.chance


def figures(result: Result, scenario: Scenario, seconds: float) -> Figures:
    """The figures of a finished run, which took that long."""
    chance = scenario.chance
    # At the end, a growing head chooses among the classes of all tasks, whatever the task.
    last = chance[-1:] if scenario.setting.head == "growing" else chance
    return Figures(
        scores=result.matrix[-1].tolist(),
        chance=statistics.fmean(last),
        forgetting=metrics.average_forgetting(result.matrix).value,
        seconds=seconds,
    )


def select(words: str | None) -> list[Cell]:
    """The legal cells that words such as "hat,mas,node" leave: any of each kind that is named.

    Raises:
        ReproduceError: a word is unknown, or no legal cell is left.
    """
    asked = [word.strip() for word in words.split(",")] if words else []
    kinds = (METHODS, PROBLEMS, SETTINGS)
    for word in asked:
        if not any(word in kind for kind in kinds):
            known = ", ".join(name for kind in kinds for name in kind)
            raise ReproduceError(f"only: {word!r} is unknown, wanted some of {known}")
    wanted = [[word for word in asked if word in kind] or list(kind) for kind in kinds]
    chosen = [
        cell
        for cell in CELLS
        if all(n in k for n, k in zip((cell.method, cell.problem, cell.setting), wanted))
    ]
    legal = [cell for cell in chosen if not cell.reasons]
    if not legal:
        raise ReproduceError(f"only: {words}: {'; '.join(dict.fromkeys(chosen[0].reasons))}")
    return legal


def refused() -> dict[str, list[Cell]]:
    """By sentence, the cells that cannot be; a cell stands with each of its reasons."""
    found: dict[str, list[Cell]] = {}
    for cell in CELLS:
        for reason in cell.reasons:
            found.setdefault(reason, []).append(cell)
    return found
