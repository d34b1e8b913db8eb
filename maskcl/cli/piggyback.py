"""``maskcl train piggyback``: its options, its network, its part of result.json."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import maskcl
from maskcl import scenarios
from maskcl.cli.common import fingerprint, seeded_weights, table
from maskcl.cli.method import MethodCommand, Trained, TrainOptions
from maskcl.cli.network import base_model, plain_model
from maskcl.cli.options import CommandError, option
from maskcl.masks import export_masks
from maskcl.methods import Piggyback
from maskcl.training.pretrain import BaseError, read_base

if TYPE_CHECKING:
    from torch import nn

    from maskcl.nn import PiggybackNetwork
    from maskcl.scenarios import Scenario

RANDOM = "random"

_piggyback = functools.partial(option, panel="Piggyback")
_DEFAULT = Piggyback()

SCORE_RATES = {"sgd": 1.0, "adam": 1e-3, "adamw": 1e-3}
HEAD_RATES = {"sgd": 0.05, "adam": 5e-3, "adamw": 5e-3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PiggybackOptions(TrainOptions):
    """One frozen network, a mask of its weights for each task (Mallya et al. 2018)."""

    NAME = "piggyback"
    METHOD = Piggyback
    # A base may have moved: what counts is its content.
    MAY_CHANGE = (*TrainOptions.MAY_CHANGE, "base")

    base: str | None = option(
        "Folder that maskcl pretrain made, or random.", None, shown="for graphs random"
    )
    lr: float | None = option("Learning rate of scores.", None, shown=table(SCORE_RATES), above=0)
    head_lr: float | None = option(
        "Learning rate of heads and norms.", None, shown=table(HEAD_RATES), above=0
    )
    norms: str | None = _piggyback(
        "frozen, or task: norms of its own for each task, which it trains.",
        None,
        shown="frozen; with a random base task",
        choices=("frozen", "task"),
    )
    levels: str = _piggyback("Of masks: binary, ternary, ternary_symmetric, topk.", _DEFAULT.levels)
    threshold: float = _piggyback("A score above it keeps its weight.", _DEFAULT.threshold)
    inclusive: bool = _piggyback("A score at the threshold does too.", _DEFAULT.inclusive)
    density: float | None = _piggyback("Share of weights that topk keeps.", _DEFAULT.density)
    init: float = _piggyback("Where scores start.", _DEFAULT.init)
    score_dtype: str = _piggyback(
        "Of scores: float32, or bfloat16, rounded at random.", _DEFAULT.score_dtype
    )
    spread: str = _piggyback("constant (all at init), uniform (in +-init).", _DEFAULT.spread)

    def __post_init__(self) -> None:
        graphs = self.problem not in ("vision", None)
        if graphs:
            self._complete("base", RANDOM)
        if graphs and self.base != RANDOM:
            raise CommandError(
                f"--base: {self.scenario} is a {self.problem} problem, whose only base is random"
            )
        if self.base is None:
            raise CommandError(
                "--base is missing: a folder made by `maskcl pretrain --scenario "
                f"{self.scenario} --out BASE`, or random"
            )
        for name in ("model", "hidden", "dropout"):
            if self.base != RANDOM and getattr(self, name) is not None:
                raise CommandError(
                    f"{name} belongs to --base random, a pretrained base has its own"
                )
        # The norms of a random base have seen no data.
        self._complete("norms", "task" if self.base == RANDOM else "frozen")
        self._complete("lr", SCORE_RATES.get(self.optimizer))
        self._complete("head_lr", HEAD_RATES.get(self.optimizer))
        super().__post_init__()

    @property
    def reference_rate(self) -> float:
        """That of heads and norms: scores move on a scale of their own."""
        assert self.head_lr is not None
        return self.head_lr

    def _complete_model(self) -> None:
        if self.base == RANDOM:
            super()._complete_model()


def prepare(
    options: PiggybackOptions, scenario: Scenario
) -> tuple[PiggybackNetwork, dict[str, Any]]:
    """The base converted for the scenario's tasks, and what the base is.

    Raises:
        CommandError: there is no such base, or it does not fit the scenario.
    """
    with seeded_weights(options.seed):
        if options.base == RANDOM:
            model, made_from = _random_base(options, scenario)
        else:
            model, made_from = _pretrained_base(options, scenario)
        net = maskcl.nn.to_piggyback(
            model,
            scenario.num_tasks,
            classes=scenario.head_sizes,
            levels=options.levels,
            norms=options.norms or "frozen",
        )
    return net, made_from


def _random_base(options: PiggybackOptions, scenario: Scenario) -> tuple[nn.Module, dict[str, Any]]:
    model = plain_model(options, scenario)
    return model, {
        "problem": scenario.problem,
        "model": options.model,
        "hidden": options.hidden,
        "dropout": options.dropout,
        "batch_norm": options.batch_norm,
        "input_shape": list(scenario.input_shape),
        "outputs": scenario.outputs[0],
        "source": RANDOM,
        "trained_on": "nothing: random weights",
        "accuracy": None,
        "seed": options.seed,
        "sha256": fingerprint(model),
    }


def _pretrained_base(
    options: PiggybackOptions, scenario: Scenario
) -> tuple[nn.Module, dict[str, Any]]:
    try:
        base = read_base(str(options.base))
    except BaseError as error:
        raise CommandError(f"--base: {error}; `maskcl pretrain` makes one") from None
    facts = base.facts
    if tuple(facts["input_shape"]) != scenario.input_shape:
        raise CommandError(
            f"--base: {options.base} takes inputs of shape {tuple(facts['input_shape'])}, "
            f"{scenario.name} has {scenario.input_shape}"
        )
    # Which of the digits are test images depends on the seed: another seed's base has seen some.
    of_digits = scenarios.images_of(options.scenario) == facts.get("images") == "digits"
    if of_digits and facts["source"] == "rotated" and facts.get("seed") != options.seed:
        raise CommandError(
            f"--base: {options.base} was pretrained with seed {facts.get('seed')} and has seen "
            f"test images of seed {options.seed}: pretrain one with --seed {options.seed}"
        )
    return base.model, {name: value for name, value in facts.items() if name not in _NOT_OF_RUN}


_NOT_OF_RUN = ("format", "version", "environment")


def finish(run: Trained) -> dict[str, Any]:
    """What result.json says of the base, and of the file that it writes for each task's masks."""
    net: PiggybackNetwork = run.net
    base = run.made_from
    kept = ("source", "trained_on", "accuracy", "model", "hidden", "epochs", "seed")
    own = range(net.num_tasks - run.scenario.num_tasks, net.num_tasks)  # those trained in this run
    files = [_write_masks(run, task) for task in own]
    return {
        "base": {**{name: base.get(name) for name in kept}, "sha256": net.base_hash()},
        "mask_files": files,
        "configuration": {
            **run.options.to_json(),
            "model": base["model"],
            "hidden": base["hidden"],
        },
    }


def _write_masks(run: Trained, task: int) -> dict[str, Any]:
    net: PiggybackNetwork = run.net
    name = f"masks/task-{task}.safetensors"
    path = Path(run.directory, name)
    path.parent.mkdir(exist_ok=True)
    index = task - net.num_tasks + run.scenario.num_tasks
    facts = mask_facts(run.scenario.describe(), index, run.made_from)
    size = export_masks(net, task, path, facts=facts)
    return {
        "task": task,
        "file": name,
        "bytes": size,
        "words_bytes": sum(words.nbytes for words in net.words(task).values()),
        "own_bytes": sum(tensor.nbytes for tensor in net.own_state(task).values()),
    }


def mask_facts(cut: dict[str, Any], task: int, made_from: dict[str, Any]) -> dict[str, Any]:
    """What a task's file says besides its masks; ``cut`` is `Scenario.describe`'s."""
    return {
        "scenario": cut["name"],
        "setting": cut["setting"],
        "seed": cut["seed"],
        "classes": cut["classes"][task],
        "trained_on": made_from["trained_on"],
    }


def _plain(options: PiggybackOptions, scenario: Scenario, made_from: dict[str, Any]) -> nn.Module:
    """Of the base's architecture, its weights random."""
    if options.base == RANDOM:
        return plain_model(options, scenario)
    return base_model({**made_from, "outputs": scenario.outputs[0]}, str(options.base))


COMMAND = MethodCommand(PiggybackOptions, prepare, _plain, finish)
