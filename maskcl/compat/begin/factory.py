"""BeGin's trainer classes, each made of a problem's trainer, a method and a setting."""

from __future__ import annotations

from typing import Any

from maskcl.compat.begin.methods import Unit
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.compat.begin.trainers.keywords import Keyword

_SETTINGS = {"task": "Task", "class": "Class", "domain": "Domain", "time": "Time"}


def trainer(
    module: str, base: type[BaseTrainer], unit: Unit, setting: str, names: type | None = None
) -> type[BaseTrainer]:
    """The class of this method, problem and setting, under the name that BeGin has for it.

    Args:
        module: where it is to live.
        base: such as NCTrainer; its name gives the problem.
        unit: the method.
        setting: "task", "class", "domain" or "time".
        names: what BeGin's trainers of this method have besides the events.
    """
    problem, kind = base.__name__[:2], base.__name__[2:]
    name = f"{problem}{_SETTINGS[setting]}IL{unit.name}{kind}"
    doc = f"{base.__name__} with maskcl's {unit.name} in the {setting} setting.\n"
    if unit.keywords:
        given = ", ".join(f"{key}={value!r}" for key, value in unit.keywords.items())
        doc += f"\nKeywords besides `BaseTrainer`'s, with their defaults: {given}.\n"
    body: dict[str, Any] = {key: Keyword(key) for key in unit.keywords}
    body |= {"__module__": module, "__doc__": doc, "unit": unit, "setting": setting}
    return type(name, (base,) if names is None else (names, base), body)
