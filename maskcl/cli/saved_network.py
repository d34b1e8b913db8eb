"""The network of a run on disk, built from what its files say: neither data nor a base is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import maskcl
from maskcl import settings
from maskcl.checkpoint import CheckpointError
from maskcl.cli.common import seeded_weights
from maskcl.cli.folders import parts_of
from maskcl.cli.method import MethodCommand
from maskcl.cli.network import base_model
from maskcl.cli.options import CommandError, combine
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.scenarios.base import head_sizes
from maskcl.text import sentence_of
from maskcl.training.pretrain import BaseError
from maskcl.training.trainer import CHECKPOINT
from maskcl.validation import ContentError, check

if TYPE_CHECKING:
    from maskcl.scenarios import Scenario

CONTINUES = "continues"
"""In ``made_from``: the run that this one went on from, its config.json and its scenario."""


_CUT = {
    "name": str, "problem": str, "setting": str, "num_tasks": int, "outputs": [int],
    "classes": [[int]], "input_shape": [int], "train_sizes": [int], "test_sizes": [int],
}  # fmt: skip
_BEFORE = {
    "num_tasks": int,
    "scenario": _CUT,
    "config": {"scenario": str, "made_from?": {str: Any}},
}


@dataclass(frozen=True)
class Described:
    """What a checkpoint says of its run's scenario: enough to build the network, without data."""

    name: str
    problem: str
    setting: settings.Setting
    num_tasks: int
    outputs: list[int]
    head_sizes: list[int]
    input_shape: tuple[int, ...]

    @classmethod
    def of(cls, facts: dict[str, Any], where: str = CHECKPOINT) -> Described:
        """From `Scenario.describe`.

        Raises:
            CommandError: they describe none; ``where`` is named.
        """
        try:
            check(facts, _CUT, where, "scenario")
        except ContentError as error:
            raise CommandError(str(error)) from None
        count = facts["num_tasks"]
        if count < 1 or not len(facts["outputs"]) == len(facts["classes"]) == count:
            raise CommandError(f"{where}: the scenario's parts are not of {count} tasks")
        return cls(
            facts["name"],
            facts["problem"],
            settings.get_setting(facts["setting"]),
            facts["num_tasks"],
            facts["outputs"],
            head_sizes(facts["setting"], facts["outputs"], facts["classes"]),
            tuple(facts["input_shape"]),
        )


def network_as_made(
    command: MethodCommand, options: dict[str, Any], made_from: dict[str, Any], cut: dict[str, Any]
) -> Any:
    """A run's network before its weights are loaded.

    Args:
        command: the run's method.
        options: of the run's config.json.
        made_from: likewise.
        cut: its scenario, by `Scenario.describe`.

    Raises:
        CommandError, ValueError: they describe no network.
    """
    described = Described.of(cut)
    known: Any = combine(command.options, {}, {}, options)
    if (before := made_from.get(CONTINUES)) is not None:
        check(before, _BEFORE, "config.json", CONTINUES)
        _, earlier, earlier_from = parts_of(before["config"])
        net = network_as_made(command, earlier, earlier_from, before["scenario"])
        add_tasks(net, described, known.seed)
        return net
    if command.options.NAME == "piggyback":
        return maskcl.nn.to_piggyback(
            base_model(made_from, "config.json"),
            described.num_tasks,
            classes=described.head_sizes,
            levels=known.levels,
            norms=known.norms or "frozen",
        )
    return command.prepare(known, cast("Scenario", described))[0]


@contextlib.contextmanager
def of_run(folder: Path) -> Iterator[None]:
    """Inside, a run's network is made from its files: where these contradict, a sentence says so.

    Raises:
        CommandError: they do.
    """
    try:
        yield
    except CommandError:
        raise
    except (CheckpointError, BaseError, ContentError) as error:
        raise CommandError(str(error)) from None
    except (
        ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError,
    ) as error:  # fmt: skip
        said = f"{type(error).__name__}: {sentence_of(error)}"
        raise CommandError(f"{folder / CHECKPOINT} does not fit {folder}: {said}") from None


def add_tasks(net: Any, cut: Described | Scenario, seed: int) -> None:
    """Room for a scenario's tasks, with heads of their own where the network has such."""
    has_heads = any(isinstance(module, TaskHeads) for module in net.modules())
    with seeded_weights(seed):
        net.add_tasks(cut.num_tasks, cut.head_sizes if has_heads else None)


def cut_of(made_from: dict[str, Any], cut: dict[str, Any], task: int) -> tuple[dict[str, Any], int]:
    """The scenario that a task of the network belongs to, and its number there.

    Args:
        made_from: of the run's config.json.
        cut: the run's scenario, by `Scenario.describe`.
        task: of the network.
    """
    before = made_from.get(CONTINUES)
    if before is None or task >= before["num_tasks"]:
        return cut, task - (0 if before is None else before["num_tasks"])
    return cut_of(before["config"].get("made_from", {}), before["scenario"], task)
