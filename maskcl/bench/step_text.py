"""Times of steps as a table for a person and as plain data."""

from __future__ import annotations

import dataclasses
from typing import Any

from maskcl.bench.step_times import Setting, StepTimes

__all__ = ["setting_words", "step_data", "step_text"]

_NAMES = {"sgd": "SGD with momentum", "adam": "Adam", "adamw": "AdamW"}


def setting_words(setting: Setting) -> str:
    """A setting in words."""
    threads = "1 thread" if setting.threads == 1 else f"{setting.threads} threads"
    compiled = ", forward and loss compiled" if setting.compiled else ""
    optimizer = _NAMES[setting.optimizer] + (", a rate a step" if setting.schedule else "")
    return f"{setting.network}, batch {setting.batch}, {optimizer}, {threads}{compiled}"


def step_text(found: StepTimes) -> str:
    """A block of lines: a step's median and quartiles in microseconds, and its ratio."""
    columns = ("us", "p25", "p75", "x unmasked")
    lines = [setting_words(found.setting), f"  {'':28}" + "".join(f"{c:>12}" for c in columns)]
    for (method, whose), spread in found.times.items():
        name = f"{method}, {whose}" if method else whose
        cells = "".join(f"{value:12.1f}" for value in (spread.median, spread.low, spread.high))
        lines.append(f"  {name:28}{cells}{found.ratio(method, whose):12.2f}")
    lines += [f"  {method}, {whose}: {why}" for (method, whose), why in found.absent.items()]
    return "\n".join([*lines, *(f"  {sentence}" for sentence in found.losses())])


def step_data(found: StepTimes) -> dict[str, Any]:
    """The same for JSON."""
    rows = [
        {
            "method": method or None,
            "whose": whose,
            "us": spread.median,
            "us_p25": spread.low,
            "us_p75": spread.high,
            "of_unmasked": found.ratio(method, whose),
        }
        for (method, whose), spread in found.times.items()
    ]
    absent = [{"method": m, "whose": w, "why": why} for (m, w), why in found.absent.items()]
    setting = dataclasses.asdict(found.setting)
    return {"setting": setting, "rows": rows, "absent": absent, "losses": found.losses()}
