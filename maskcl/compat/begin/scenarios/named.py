"""Data by BeGin's names and maskcl's."""

from __future__ import annotations

import os

from maskcl import scenarios
from maskcl.scenarios import Scenario
from maskcl.scenarios.graphs.cut import Request

# BeGin's name: maskcl's scenario and its variant.
DATASETS: dict[str, tuple[str, str | None]] = {
    "cora": ("planetoid", "cora"),
    "citeseer": ("planetoid", "citeseer"),
    "bitcoin": ("bitcoin-otc", None),
}


def named(
    owner: str, problem: str, request: Request, folder: str | os.PathLike[str] | None
) -> Scenario:
    """The scenario that a request names.

    Args:
        owner: of messages.
        problem: "node", "link", "link prediction" or "graph": what it has to be about.
        request: what is asked.
        folder: with the files, where there are such.

    Raises:
        ScenarioError, ValueError: there is none, or it is about something else.
    """
    name, variant = DATASETS.get(request.name, (request.name, None))
    found = scenarios.load(
        name,
        data=folder if scenarios.reads_data(name) else None,
        seed=request.seed,
        tasks=request.tasks,
        setting=request.setting,
        shuffle=request.shuffle,
        groups=request.groups,
        metric=request.metric,
        variant=variant,
    )
    about = "link prediction" if found.prediction else found.problem
    if about != problem:
        raise ValueError(
            f"{owner}: dataset_name is {request.name!r}, of {about} problems; wanted one of"
            f" {problem} problems"
        )
    return found
