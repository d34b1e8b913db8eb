"""What a training run is told: names, ranges, and how flags, a file and a saved run combine."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any

from maskcl import models, scenarios
from maskcl.methods.hat import HAT


class CommandError(ValueError):
    """Something the person asked for cannot be; the message is one sentence."""


_HAT = HAT()

# Used where no --lr is given. Adam's are larger than usual: within a task of a few hundred steps
# the embeddings must cross zero for a gate to close. SGD's is the paper's.
LEARNING_RATES = {"sgd": 0.05, "adam": 0.005, "adamw": 0.005}

# Used where no --batch-size is given: 64 is the paper's; a task of 290 digits needs more steps.
BATCH_SIZES = {"digits": 16, "mnist": 64}


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Every value of ``maskcl train``, by the name of its flag with - for _.

    None means the scenario's, the model's or the optimizer's own; of learning rate and batch size
    that number is put in its place.
    """

    scenario: str
    out: str
    data: str | None = None
    tasks: int | None = None
    setting: str | None = None
    model: str = "mlp"
    hidden: tuple[int, ...] | None = None
    dropout: float | None = None
    epochs: int = 10
    batch_size: int | None = None
    optimizer: str = "adam"
    lr: float | None = None
    momentum: float = 0.0
    weight_decay: float = 0.0
    seed: int = 0
    device: str = "auto"
    precision: str = "32"
    s_max: float = _HAT.s_max
    sparsity: float = _HAT.sparsity
    schedule: str = _HAT.schedule
    init: str = _HAT.init
    protection: str = _HAT.protection
    rule: str = _HAT.rule
    rule_value: float | None = _HAT.rule_value
    compensation: str = _HAT.compensation
    embedding_clamp: float = _HAT.embedding_clamp
    cosh_clamp: float = _HAT.cosh_clamp
    clip: float | None = _HAT.clip

    def __post_init__(self) -> None:
        if self.lr is None and self.optimizer in LEARNING_RATES:
            object.__setattr__(self, "lr", LEARNING_RATES[self.optimizer])
        if self.batch_size is None and self.scenario in scenarios.NAMES:
            object.__setattr__(self, "batch_size", BATCH_SIZES[self.scenario.split("-")[1]])
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise CommandError(
                    f"unknown {name.replace('_', '-')} {value!r}: known are {', '.join(choices)}"
                )
        self._check_ranges()
        try:
            self.method()
        except ValueError as error:
            raise CommandError(str(error).replace("HAT: ", "")) from None

    def _check_ranges(self) -> None:
        for name, (low, high, strict) in _RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            low_fits = value > low if strict else value >= low
            if not (math.isfinite(value) and low_fits and value < high):
                above = "above" if strict else "at least"
                below = f" and below {high:g}" if math.isfinite(high) else ""
                raise CommandError(
                    f"{name.replace('_', '-')} must be {above} {low:g}{below}, got {value}"
                )
        if self.momentum and self.optimizer != "sgd":
            raise CommandError(f"momentum belongs to sgd, {self.optimizer} has its own")

    def method(self) -> HAT:
        """The method with these hyper-parameters."""
        names = {field.name for field in dataclasses.fields(HAT)}
        return HAT(**{name: getattr(self, name) for name in names & _NAMES.keys()})

    def to_json(self) -> dict[str, Any]:
        """All values, for result.json and for a later ``--resume``."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


_CHOICES = {
    "scenario": scenarios.NAMES,
    "setting": ("task", "domain", "class"),
    "model": models.NAMES,
    "optimizer": tuple(LEARNING_RATES),
    "device": ("auto", "cpu", "cuda"),
    "precision": ("32", "bf16"),
}

# name: (low, high, whether low itself is refused); high is always refused
_RANGES = {
    "epochs": (1, math.inf, False),
    "tasks": (1, math.inf, False),
    "batch_size": (1, math.inf, False),
    "lr": (0, math.inf, True),
    "momentum": (0, 1, False),
    "weight_decay": (0, math.inf, False),
    "dropout": (0, 1, False),
    "seed": (0, 2**32, False),
}

_NAMES: dict[str, Any] = typing.get_type_hints(TrainOptions)

# May change between the start of a run and its resumption: the result does not depend on them.
_MAY_CHANGE = ("out", "data", "device")


def read_config(path: Path) -> dict[str, Any]:
    """The values of a YAML file, by the flags' names with - or _."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise CommandError(f"--config {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--config {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise CommandError(f"--config {path} is not YAML: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise CommandError(f"--config {path} must hold 'name: value' lines")
    return check_values({str(name): value for name, value in content.items()}, str(path))


def check_values(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The same values with _ in their names and of the right types.

    Raises:
        CommandError: an unknown name or a value of another type; ``where`` is named.
    """
    checked = {}
    for given, value in values.items():
        name = given.replace("-", "_")
        if name not in _NAMES:
            raise CommandError(f"{where}: unknown key {given!r}")
        checked[name] = _convert(name, value, where)
    return checked


def combine(
    flags: dict[str, Any], config: dict[str, Any], saved: dict[str, Any] | None
) -> TrainOptions:
    """One set of options: flags win over the file, the file over a saved run, that over defaults.

    Args:
        flags: those that were given.
        config: the file's values.
        saved: the values of the run to resume, which the others must not contradict.

    Raises:
        CommandError: something is missing, out of range, or differs from the saved run.
    """
    asked = {**config, **flags}
    if saved is not None:
        for name, value in asked.items():
            was = saved.get(name)
            was = tuple(was) if isinstance(was, list) else was
            if name not in _MAY_CHANGE and value != was:
                flag = name.replace("_", "-")
                raise CommandError(
                    f"the run in {flags['out']} has {flag} {was}, which --resume cannot change "
                    f"to {value}"
                )
        asked = {**saved, **asked}
    for name in ("scenario", "out"):
        if name not in asked:
            raise CommandError(f"--{name} is missing")
    asked["hidden"] = tuple(asked["hidden"]) if asked.get("hidden") else None
    return TrainOptions(**asked)


def _convert(name: str, value: Any, where: str) -> Any:
    """A value of the option's type. YAML reads 1e-3 as text and 32 as a number; both are meant."""
    kind = _NAMES[name]
    optional = isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)
    if value is None and optional:
        return None
    wanted = next(t for t in typing.get_args(kind) if t is not type(None)) if optional else kind
    try:
        if name == "hidden":
            return parse_hidden(value)
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        if wanted is int:
            if isinstance(value, float):
                raise ValueError
            return int(value)
        return float(value) if wanted is float else str(value)
    except (ValueError, TypeError):
        meant = {int: "a whole number", float: "a number", str: "text"}
        text = meant.get(wanted, "widths such as 200,200")
        raise CommandError(
            f"{where}: {name.replace('_', '-')} must be {text}, got {value!r}"
        ) from None


def parse_hidden(value: Any) -> tuple[int, ...]:
    """Widths from "200,200", 200 or a list."""
    if isinstance(value, str):
        value = value.split(",")
    parts = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(part, (bool, float)) for part in parts):
        raise TypeError(f"hidden must be whole numbers, got {value!r}")
    widths = tuple(int(part) for part in parts)
    if not widths or min(widths) < 1:
        raise ValueError(f"hidden must be widths of at least 1, got {value!r}")
    return widths
