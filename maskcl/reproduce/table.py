"""A published table as data: rows, their protocol, and what was measured for them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from maskcl.scenarios import Scenario


@dataclass(frozen=True)
class Row:
    """One method under one setting.

    Attributes:
        setting: name of the setting.
        label: the method, for a person.
        definition: which importance it has, in words; "-" for none.
        method: for the trainer.
        published: (mean, standard deviation) of the table, percent; None where it has no such row.
    """

    setting: str
    label: str
    definition: str
    method: Any
    published: tuple[float, float] | None

    @property
    def key(self) -> str:
        """Its name in a file of results."""
        return f"{self.setting}: {self.label}"


@dataclass(frozen=True)
class Run:
    """What one training came to.

    Attributes:
        accuracies: final test accuracy of each task, percent.
        importance: mean over all regularised elements after the last task.
        seconds: training and evaluation.
    """

    accuracies: list[float]
    importance: float
    seconds: float

    @property
    def average(self) -> float:
        """Mean over the tasks, percent."""
        return statistics.fmean(self.accuracies)


@dataclass(frozen=True)
class Published:
    """A table to be run again.

    Attributes:
        name: of the command.
        title: what it is, for a person.
        protocol: all that its figures depend on besides the rows, as JSON.
        rows: in the order of the table.
        notes: sentences that belong under it.
        load: (folder, setting) -> the scenario.
        train: (scenario, row, seed, device) -> one run.
    """

    name: str
    title: str
    protocol: dict[str, Any]
    rows: Sequence[Row]
    notes: Sequence[str]
    load: Callable[[str, str], Scenario]
    train: Callable[[Scenario, Row, int, str], Run]


def mean_and_spread(runs: Sequence[Run]) -> tuple[float, float]:
    """Mean and standard deviation over runs of their averages, percent; n, not n - 1, in it."""
    averages = [run.average for run in runs]
    return statistics.fmean(averages), statistics.pstdev(averages)
