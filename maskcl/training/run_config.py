"""What a run's result depends on, as a JSON object that its checkpoint keeps."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from maskcl.training.plan import Plan

if TYPE_CHECKING:
    from maskcl.scenarios.base import Scenario


def describe(plan: Plan, scenario: Scenario, evaluate: str | int) -> dict[str, Any]:
    """All but optimizer and scheduler, which are made when a task begins.

    What is as it always was is left out, so that older runs are gone on with.
    """
    method: Any = plan.method
    inference = plan.net.inference
    precision = type(plan.fabric.strategy.precision).__name__
    found = {
        "method": {"name": type(method).__name__, **_values(method)},
        "problem": plan.problem.describe(),
        "setting": scenario.setting.name,
        "scenario": scenario.describe(),
        "epochs": plan.epochs,
        "batch_size": plan.samples.batch_size,
        "seed": plan.samples.seed,
        "precision": f"{precision}, scaled" if plan.scaler.is_enabled() else precision,
        "processes": plan.fabric.world_size,
    }
    if inference is not None:
        found["inference"] = inference.arguments()
    if plan.validation is not None:
        found["validation"] = dataclasses.asdict(plan.validation)
    if evaluate != "all":
        found["evaluate"] = evaluate
    if plan.accumulate != 1:
        found["accumulate"] = plan.accumulate
    return found


def _values(method: Any) -> dict[str, Any]:
    """A method's hyper-parameters; of those that came later only what is not their default."""
    values = dataclasses.asdict(method)
    for field in dataclasses.fields(method):
        if field.metadata.get("later") and values[field.name] == field.default:
            del values[field.name]
    return values
