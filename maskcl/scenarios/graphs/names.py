"""Graph scenarios by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from maskcl.scenarios.base import Scenario, ScenarioError
from maskcl.scenarios.datasets import find_setting
from maskcl.scenarios.graphs import citations, digits, links, tables
from maskcl.scenarios.graphs.cut import Request


@dataclass(frozen=True)
class Named:
    """What a name stands for.

    Attributes:
        problem: "node", "link" or "graph".
        tasks: the number of tasks in each setting that it has; the first one is its own.
        embedded: makes it from what scikit-learn brings; None where files are read.
        read: makes it from a folder and a variant; None where it is embedded.
        variants: what the files are of, the first one unless another is asked for.
        prediction: link prediction.
    """

    problem: str
    tasks: Mapping[str, int]
    embedded: Callable[[Request], Scenario] | None = None
    read: Callable[[Request, Path | None, str], Scenario] | None = None
    variants: tuple[str, ...] = ()
    prediction: bool = False

    @property
    def default_setting(self) -> str:
        """The setting where none is asked for."""
        return next(iter(self.tasks))


_DIGITS = {"task": 5, "class": 5, "domain": 3, "time": 5}

GRAPHS: dict[str, Named] = {
    "nodes-digits": Named("node", _DIGITS, digits.nodes),
    "links-digits": Named("link", _DIGITS, digits.links),
    "missing-links-digits": Named(
        "link", {"domain": 3, "time": 5}, digits.missing_links, prediction=True
    ),
    "graphs-digits": Named("graph", _DIGITS, digits.graphs),
    "planetoid": Named(
        "node",
        {"task": 3, "class": 3},
        read=citations.planetoid,
        variants=("cora", "citeseer"),
    ),
    "coauthor-cs": Named(
        "node", {"task": 5, "class": 5}, read=citations.coauthor, variants=("cs",)
    ),
    "bitcoin-otc": Named(
        "link", {"task": 3, "class": 3, "time": 7}, read=tables.bitcoin, variants=("otc",)
    ),
    "enzymes": Named(
        "graph",
        {"task": 3, "class": 3, "domain": 3},
        read=tables.molecules,
        variants=("enzymes",),
    ),
    "mutag": Named("graph", {"domain": 3}, read=tables.molecules, variants=("mutag",)),
}


def load_graph(request: Request, data: Path | None, variant: str | None) -> Scenario:
    """The scenario named ``request.name``, with its own number of tasks where none is asked.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    named = GRAPHS[request.name]
    if named.prediction:
        links.refuse_classes(request)
    setting = find_setting(request.setting, named.tasks, request.name)
    if request.groups is None and request.tasks is None:
        request = dataclasses.replace(request, tasks=named.tasks[setting.name])
    if named.embedded is not None:
        if data is not None:
            raise ScenarioError(f"{request.name} comes with scikit-learn and reads no --data")
        if variant is not None:
            raise ScenarioError(f"{request.name} has no variants")
        return named.embedded(request)
    assert named.read is not None
    chosen = named.variants[0] if variant is None else variant
    if chosen not in named.variants:
        known = ", ".join(named.variants)
        raise ScenarioError(f"{request.name}: unknown variant {chosen!r}: known are {known}")
    if len(named.variants) > 1:
        request = dataclasses.replace(request, name=f"{request.name}-{chosen}")
    return named.read(request, data, chosen)
