"""What the report says of the baselines: which network a row of the matrix is of."""

from __future__ import annotations

from maskcl.report.importance import LEARNED
from maskcl.report.layout import Layout

_ORIGINS = {
    "finetune": (
        "Finetuning",
        "A baseline: one network learns the tasks one after the other, and nothing is protected",
    ),
    "joint": (
        "Joint training",
        "A baseline: after each task stands a network of its own, trained from the same weights on"
        " all tasks up to it together",
    ),
    "independent": (
        "Independent networks",
        "A baseline: each task has a network of its own, trained from the same weights on it alone;"
        " the parameters are of all of them",
    ),
}


def _layout(title: str, origin: str) -> Layout:
    return Layout(title=title, origin=lambda result: origin, beside=LEARNED)


LAYOUTS = {name: _layout(*words) for name, words in _ORIGINS.items()}
