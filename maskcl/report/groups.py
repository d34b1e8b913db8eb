"""Several runs: which differ in the seed alone, which is given twice, what settings differ."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maskcl.report.files import ReportError, read_result
from maskcl.report.layout import Content
from maskcl.report.scores import metric_of
from maskcl.text import printable

# What may differ between runs of one mean; a base may be pretrained with the run's own seed.
_FREE = ("seed", "out", "data", "config", "resume", "device", "base", "references", "workers")
_FREE_IN_BASE = ("seed", "accuracy", "sha256")
_MOST_NAMED = 3


@dataclass(frozen=True)
class Run:
    """A run as it was asked for.

    Attributes:
        name: the folder as given.
        result: the content of its result.json.
        same_as: the name of an earlier run that this one repeats; "" for none.
    """

    name: str
    result: Content
    same_as: str = ""

    @property
    def seed(self) -> int:
        """Of the split, the weights and the order."""
        return int(self.result["configuration"]["seed"])

    @property
    def matrix(self) -> NDArray[np.float64]:
        """[T, T], NaN where it was not measured."""
        return np.array(self.result["accuracy"], dtype=np.float64)


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone, each seed once.

    Attributes:
        label: its method, and what tells it from other groups of this method.
        runs: at least one.
    """

    label: str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Content:
        """A result of the group, for what all its runs have in common."""
        return self.runs[0].result

    @property
    def matrices(self) -> NDArray[np.float64]:
        """[runs, T, T]."""
        return np.stack([run.matrix for run in self.runs])

    @property
    def finals(self) -> dict[int, NDArray[np.float64]]:
        """Seed -> [T], each task's score after the last one."""
        return {run.seed: run.matrix[-1] for run in self.runs}


def read_runs(directories: Iterable[str | os.PathLike[str]]) -> list[Run]:
    """The runs of some folders, those that are given twice marked.

    Raises:
        ReportError: a folder holds no readable result, or scores of one run are another metric
            than those of another: no mean or order of them says anything.
    """
    runs: list[Run] = []
    places: dict[Path, str] = {}
    seeds: dict[tuple[str, int], str] = {}
    for directory in directories:
        name, result = os.fspath(directory), read_result(directory)
        run = Run(name, result)
        place, seed = Path(name).resolve(), (key_of(result), run.seed)
        same = places.get(place) or seeds.get(seed) or ""
        places.setdefault(place, name)
        seeds.setdefault(seed, name)
        runs.append(Run(name, result, same))
    _check_metrics(runs)
    return runs


def repeats(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run that is another one again."""
    said = []
    for run in runs:
        if not run.same_as:
            continue
        if Path(run.name).resolve() == Path(run.same_as).resolve():
            said.append(f"{run.name} is given twice: it counts once")
        else:
            said.append(
                f"{run.name} has the settings and the seed of {run.same_as}: it counts once"
            )
    return said


def grouped(runs: Sequence[Run]) -> list[Group]:
    """The runs' groups in their order, named so that no two names are the same."""
    members: dict[str, list[Run]] = {}
    for run in runs:
        if not run.same_as:
            members.setdefault(key_of(run.result), []).append(run)
    groups = [Group(str(m[0].result["method"]), tuple(m)) for m in members.values()]
    return [Group(_label(group, groups), group.runs) for group in groups]


def settings_of(group: Group) -> dict[str, Any]:
    """What a group's runs were asked for, the seed left out."""
    config = group.first["configuration"]
    found = {name: value for name, value in config.items() if name not in _FREE}
    return {"method": group.first["method"], "parameters": group.first.get("parameters"), **found}


def differing(groups: Sequence[Group]) -> tuple[list[str], list[str]]:
    """Settings by name: those that are not the same in all groups, and those that are.

    Those that all groups have come first.
    """
    found = [settings_of(group) for group in groups]
    names = list(dict.fromkeys(name for settings in found for name in settings))
    names.sort(key=lambda name: not all(name in settings for settings in found))
    differ = [
        name for name in names
        if len({json.dumps(s.get(name), sort_keys=True) for s in found}) > 1
    ]  # fmt: skip
    return differ, [name for name in names if name not in differ]


def key_of(result: Content) -> str:
    """The same for runs that differ in the seed alone."""
    config = {k: v for k, v in result["configuration"].items() if k not in _FREE}
    base = {k: v for k, v in result.get("base", {}).items() if k not in _FREE_IN_BASE}
    cut = result["scenario"]
    parts = [result["method"], config, cut["setting"], cut["classes"], metric_of(result), base]
    return json.dumps([cut["name"], *parts], sort_keys=True)


def _label(group: Group, groups: Sequence[Group]) -> str:
    scenarios = [other.first["scenario"]["name"] for other in groups]
    own = group.first["scenario"]["name"]
    where = f" on {own}" if len(set(scenarios)) > 1 else ""
    like = [g for g, s in zip(groups, scenarios) if s == own and g.label == group.label]
    if len(like) == 1:
        return group.label + where
    differ, settings = differing(like)[0], settings_of(group)
    words = [f"{name.replace('_', ' ')} {_plain(settings.get(name))}" for name in differ]
    if 0 < len(words) <= _MOST_NAMED:
        return f"{group.label}{where}, {', '.join(words)}"
    name = group.runs[0].name
    return f"{group.label}{where}, {printable(Path(name).name or name)}"


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _check_metrics(runs: Sequence[Run]) -> None:
    first: dict[str, str] = {}
    for run in runs:
        first.setdefault(metric_of(run.result), run.name)
    if len(first) > 1:
        shown = ", ".join(f"{metric} in {name}" for metric, name in first.items())
        raise ReportError(f"runs of different metrics do not compare: {shown}")
