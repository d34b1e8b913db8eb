"""What a run's scores are called, how its metrics are defined, what its references reached."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from maskcl.report.layout import Content, Table
from maskcl.report.text import number

# In the order of the page: BeGin's four, then the others. T tasks, numbered from 0.
DEFINITIONS = {
    "ACC": "average performance (AP): mean of the final scores over all T tasks",
    "AF": "average forgetting: mean over the first T - 1 tasks of just-trained minus final score; "
    "positive is forgetting; it is -BWT",
    "INT": "intransigence: mean over all T tasks j of the score of joint training on tasks 0 to j "
    "minus the just-trained one; positive is what was not learned",
    "FWT": "forward transfer: mean over the last T - 1 tasks of the score just before a task is "
    "trained minus the untrained network's; positive is a head start",
    "FTS": "transfer against training from scratch: mean over the last T - 1 tasks of just-trained "
    "score minus that of a plain network trained on the task alone; positive is a gain",
    "BWT": "backward transfer: mean over the first T - 1 tasks of final minus just-trained score; "
    "negative is forgetting",
    "F": "forgetting: mean over the first T - 1 tasks of best earlier minus final score; positive "
    "is forgetting",
    "AIA": "average incremental: mean over time of the mean score on the tasks so far",
    "rho": "forgetting ratio (HAT): mean over all T tasks; 0 is joint training, -1 is chance",
}

# Of metrics that a person knows by another name.
_NAMES = {
    "auroc": "AUROC",
    "map": "mAP",
    "f1": "F1",
    "r2": "R2",
    "explained_variance": "explained variance",
    "pearson": "Pearson correlation",
}


# The same in few words, for lines under a table; {score} is what scores are.
SHORT = {
    "ACC": "mean final {score}",
    "AIA": "mean over time of the mean {score} so far",
    "BWT": "final minus just-trained {score}, negative is forgetting",
    "F": "best earlier minus final {score}",
    "AF": "just-trained minus final {score}",
    "INT": "joint training's minus just-trained {score}",
    "FWT": "{score} before training minus the untrained network's",
    "FTS": "just-trained {score} minus that of the task alone",
    "rho": "0 is joint training, -1 is chance",
}


def glossary(names: Iterable[str], score: str) -> str:
    """What these metrics are, in a line each; nothing for names that are none."""
    return "\n".join(f"{n}: {SHORT[n].format(score=score)}" for n in names if n in SHORT)


def metric_of(result: Content) -> str:
    """What the scores of a result are: accuracy where it says nothing."""
    return str(result["scenario"].get("metric", "accuracy"))


def score_name(result: Content) -> str:
    """The same for a person: accuracy, AUROC, Hits@50."""
    metric = metric_of(result)
    return _NAMES.get(metric, metric.replace("hits", "Hits"))


def chance_of(result: Content) -> list[float] | None:
    """Score of a random guess at each task, [T]; None where the result does not say."""
    found = result.get("chance")
    if found and all(isinstance(v, (int, float)) for v in found):
        return list(found)
    if metric_of(result) != "accuracy":
        return None
    # Runs on their way, and of before there were graphs: of as many classes. One output is a sign.
    return [1 / max(outputs, 2) for outputs in result["scenario"]["outputs"]]


def score_limits(result: Content, matrix: NDArray[np.float64]) -> tuple[float, float]:
    """Where axes and shades of scores begin and end: at chance, or else 0, and at 1.

    Lower and higher where the scores are.
    """
    known = matrix[np.isfinite(matrix)]
    low, high = float(known.min(initial=np.inf)), float(known.max(initial=-np.inf))
    return min([*(chance_of(result) or [0.0]), low]), max(1.0, high)


def metric_rows(result: Content) -> list[tuple[str, float | None, str, str | None]]:
    """Name, value, definition and reason of each metric that the result holds."""
    held = result["metrics"]
    order = [name for name in DEFINITIONS if name in held]
    order += [name for name in held if name not in DEFINITIONS]
    return [
        (name, held[name]["value"], DEFINITIONS.get(name, ""), held[name]["reason"])
        for name in order
    ]


def compared(result: Content) -> list[list[str]]:
    """Heading, and for each task its just-trained score beside the references'."""
    found, matrix = result["references"], result["accuracy"]
    rows = [["task", "just trained", "trained together so far", "all together", "alone"]]
    for task in range(len(matrix)):
        scores = (
            matrix[task][task],
            found["together"][task][task],
            found["together"][-1][task],
            found["scratch"][task],
        )
        rows.append([str(task), *(number(score, 4) for score in scores)])
    return rows


REFERENCES = Table(
    "References",
    "Plain networks of the same architecture, with the run's epochs, batches and optimizer and "
    "fresh weights: trained on tasks 0 to the row's together, on all tasks together, and on the "
    "row's task alone.",
    compared,
    needs=("references",),
)
