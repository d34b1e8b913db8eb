"""What every method's result.json holds: configuration, scores, metrics, references, seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from maskcl import metrics, scenarios
from maskcl.cli.method import TrainOptions

if TYPE_CHECKING:
    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.scenarios import Scenario
    from maskcl.training.inference_scores import InferenceScores
    from maskcl.training.references import References
    from maskcl.training.result import Result


def result_content(
    options: TrainOptions,
    scenario: Scenario,
    net: TaskNetwork,
    result: Result,
    compared: References | None,
) -> dict[str, Any]:
    """What every method's result.json holds."""
    matrix = np.asarray(result.matrix)
    chance = scenario.chance
    if scenario.setting.head == "growing":  # at the end it chooses among the classes of all tasks
        chance = chance[-1:] * scenario.num_tasks
    found = metrics.all_metrics(
        matrix,
        untrained=result.untrained,
        chance=chance,
        joint=None if compared is None else compared.joint,
        joint_last=None if compared is None else compared.joint_last,
        scratch=None if compared is None else compared.scratch,
    )
    inferred = {} if result.inference is None else {"inference": _inferred(net, result.inference)}
    return {
        "format": "maskcl-result",
        "version": 1,
        "method": options.NAME,
        "scenario": scenario.describe(),
        "summary": scenarios.summary(scenario.describe()),
        "configuration": options.to_json(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "metric": scenario.metric,
        "accuracy_axes": (
            f"accuracy[i][j]: test {scenario.metric} on task j after training task i, from 0"
        ),
        "accuracy": _nulls(matrix),
        "untrained": _nulls(np.asarray(result.untrained)),
        "chance": chance,
        "references": None if compared is None else _compared(compared),
        "metrics": {name: metric.to_json() for name, metric in found.items()},
        "seconds": list(result.seconds),
        "losses": result.losses,
        "training_accuracies": result.accuracies,
        "free_by_epoch": result.free,
        "validation_scores": result.validation,
        "best_epochs": result.best_epochs,
        **inferred,
    }


def _inferred(net: TaskNetwork, scores: InferenceScores) -> dict[str, Any]:
    """Both views of a run whose tasks are inferred at test."""
    assert net.inference is not None
    return {
        **net.inference.arguments(),
        "axes": "[i][j]: on task j after task i; confusion[i][j]: samples of i taken for j",
        "told": _nulls(scores.told),
        "identified": _nulls(scores.identified),
        "alone": _nulls(scores.alone),
        "confusion": scores.confusion.tolist(),
    }


def _compared(found: References) -> dict[str, Any]:
    return {
        "axes": "together[i][j]: on task j after tasks 0 to i together; scratch[j]: after j alone",
        "together": _nulls(found.together),
        "scratch": _nulls(found.scratch),
    }


def _nulls(values: np.ndarray) -> Any:
    """Nested lists with None for NaN, which JSON does not know."""
    mixed = values.astype(object)
    mixed[np.isnan(values)] = None
    return mixed.tolist()
