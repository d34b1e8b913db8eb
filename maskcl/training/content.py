"""What result.json says of a run, and so its report: of a finished one, or of one that goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from maskcl import metrics
from maskcl.nn import HATNetwork, ImportanceNetwork, PiggybackNetwork
from maskcl.scenarios.describing import summary
from maskcl.settings import SETTINGS
from maskcl.training.environment import environment
from maskcl.training.method_content import hat_content, importance_content, piggyback_content

if TYPE_CHECKING:
    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.training.inference_scores import InferenceScores
    from maskcl.training.references import References
    from maskcl.training.result import Result


def run_content(
    config: dict[str, Any],
    result: Result,
    *,
    chance: list[float] | None = None,
    references: References | None = None,
) -> dict[str, Any]:
    """What is known of any run from its configuration and its scores, at its end or on its way.

    Args:
        config: `Trainer.config`, as a checkpoint holds it.
        result: what was measured, so far.
        chance: [T], score of a random guess at each task; None where nobody says.
        references: what plain networks reach.
    """
    cut = config["scenario"]
    if chance is not None and SETTINGS[cut["setting"]].head == "growing":
        chance = chance[-1:] * len(chance)  # at the end it chooses among the classes of all tasks
    matrix = np.asarray(result.matrix)
    found = metrics.all_metrics(
        matrix,
        untrained=result.untrained,
        chance=chance,
        joint=None if references is None else references.joint,
        joint_last=None if references is None else references.joint_last,
        scratch=None if references is None else references.scratch,
    )
    return {
        "format": "maskcl-result",
        "version": 1,
        "method": str(config["method"]["name"]).lower(),
        "scenario": cut,
        "summary": summary(cut),
        "configuration": configuration(config),
        "metric": cut["metric"],
        "accuracy_axes": f"accuracy[i][j]: test {cut['metric']} on task j after task i, from 0",
        "accuracy": nulls(matrix),
        "untrained": nulls(np.asarray(result.untrained)),
        "chance": chance,
        "references": None if references is None else _references(references),
        "metrics": {name: metric.to_json() for name, metric in found.items()},
        "seconds": list(result.seconds),
        "losses": result.losses,
        "training_accuracies": result.accuracies,
        "free_by_epoch": result.free,
        "validation_scores": result.validation,
        "best_epochs": result.best_epochs,
        **_measures(result),
    }


def result_content(
    trainer: Any, result: Result, references: References | None = None
) -> dict[str, Any]:
    """What every finished run's result.json holds.

    Args:
        trainer: a Trainer whose ``fit`` has returned; its network is described as it is now.
        result: what ``fit`` returned.
        references: what plain networks reach.
    """
    net = trainer.net
    content = run_content(
        trainer.config, result, chance=trainer.scenario.chance, references=references
    )
    if result.inference is not None:
        content["inference"] = _inferred(net, result.inference)
    content["configuration"] = {"model": type(net.model).__name__, **content["configuration"]}
    return {
        **content,
        "parameters": sum(p.numel() for p in net.parameters()),
        "problem": trainer.problem.describe(),
        **_of_method(net, trainer.method, result),
        "environment": environment(trainer.fabric.device),
    }


def configuration(config: dict[str, Any]) -> dict[str, Any]:
    """A Trainer's arguments and its method's, by name, for a person."""
    optimizer = config["optimizer"]
    rates = [group["lr"] for group in optimizer["groups"] if "lr" in group]
    plain = {k: v for k, v in config.items() if not isinstance(v, dict)}
    own = {k: v for k, v in config["method"].items() if k != "name"}
    return {
        **plain,
        **own,
        "optimizer": str(optimizer["name"]).lower(),
        **({"lr": rates[0] if len(set(rates)) == 1 else rates} if rates else {}),
    }


def nulls(values: np.ndarray) -> Any:
    """Nested lists with None for NaN, which JSON does not know."""
    mixed = values.astype(object)
    mixed[np.isnan(values)] = None
    return mixed.tolist()


def _measures(result: Result) -> dict[str, Any]:
    """The method's measures after each task, by name."""
    names = dict.fromkeys(name for after in result.measures for name in after)
    return {name: result.measured(name) for name in names}


def _of_method(net: TaskNetwork, method: Any, result: Result) -> dict[str, Any]:
    if isinstance(net, HATNetwork):
        known = result.protected
        return hat_content(net, known[-1] if known else net.protection().fraction())
    if isinstance(net, PiggybackNetwork):
        return piggyback_content(net)
    if isinstance(net, ImportanceNetwork) and hasattr(method, "heads"):
        return importance_content(net, heads=method.heads)
    return {}


def _inferred(net: TaskNetwork, scores: InferenceScores) -> dict[str, Any]:
    """Both views of a run whose tasks are inferred at test."""
    assert net.inference is not None
    return {
        **net.inference.arguments(),
        "axes": "[i][j]: on task j after task i; confusion[i][j]: samples of i taken for j",
        "told": nulls(scores.told),
        "identified": nulls(scores.identified),
        "alone": nulls(scores.alone),
        "confusion": scores.confusion.tolist(),
    }


def _references(found: References) -> dict[str, Any]:
    return {
        "axes": "together[i][j]: on task j after tasks 0 to i together; scratch[j]: after j alone",
        "together": nulls(found.together),
        "scratch": nulls(found.scratch),
    }
