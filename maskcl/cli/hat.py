"""``maskcl train hat``: its options and its network."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import maskcl
from maskcl.cli.common import DEEP_RATES, seeded_weights, table
from maskcl.cli.method import MethodCommand, TrainOptions
from maskcl.cli.network import example_of, plain_model
from maskcl.cli.options import CommandError, option
from maskcl.methods import HAT

if TYPE_CHECKING:
    from torch import nn

    from maskcl.nn import HATNetwork
    from maskcl.scenarios import Scenario

_hat = functools.partial(option, panel="HAT")
_HAT = HAT()

# Adam's are larger than usual: within a task of a few hundred steps the embeddings must cross zero
# for a gate to close. SGD's is the paper's.
LEARNING_RATES = {"sgd": 0.05, "adam": 0.005, "adamw": 0.005}


@dataclasses.dataclass(frozen=True, kw_only=True)
class HATOptions(TrainOptions):
    """Hard attention to the task (Serra et al. 2018)."""

    NAME = "hat"
    METHOD = HAT

    lr: float | None = option(
        "Learning rate.",
        None,
        shown=f"{table(LEARNING_RATES)}; where conv or resnet18 is the default {table(DEEP_RATES)}",
        above=0,
    )
    s_max: float = _hat("Largest scale of the gates.", _HAT.s_max)
    sparsity: float = _hat("Weight c of the sparsity term.", _HAT.sparsity)
    schedule: str = _hat("linear, cosine, exponential, constant.", _HAT.schedule)
    init: str = _hat("Of embeddings: normal, uniform, dense.", _HAT.init)
    protection: str = _hat("exact, min (the paper's).", _HAT.protection)
    rule: str = _hat("hat, const, adahat, random.", _HAT.rule)
    rule_value: float | None = _hat("Number of const and adahat.", _HAT.rule_value)
    compensation: str = _hat("exact, recipe, none.", _HAT.compensation)
    embedding_clamp: float = _hat("Largest |embedding|.", _HAT.embedding_clamp)
    cosh_clamp: float = _hat("Largest |s e| compensated.", _HAT.cosh_clamp)
    clip: float | None = _hat("Largest norm of the gradient.", _HAT.clip, shown="none")

    def __post_init__(self) -> None:
        rates = DEEP_RATES if self.is_deep else LEARNING_RATES
        self._complete("lr", rates.get(self.optimizer))
        with_value = self.rule in ("const", "adahat")
        if self.rule_value is not None and not with_value:
            raise CommandError(
                f"rule-value belongs to the rules const and adahat, rule is {self.rule}: give"
                " --rule too, or leave --rule-value out"
            )
        if self.rule_value is None and with_value:
            raise CommandError(f"rule {self.rule} needs a number: --rule-value is missing")
        super().__post_init__()


def prepare(options: HATOptions, scenario: Scenario) -> tuple[HATNetwork, dict[str, Any]]:
    """The model converted for the scenario's tasks; nothing else decides about it.

    Raises:
        CommandError: the model does not fit the scenario's inputs.
    """
    with seeded_weights(options.seed):
        net = maskcl.nn.to_hat(
            plain_model(options, scenario),
            scenario.num_tasks,
            example_of(options, scenario),
            classes=None if scenario.setting.head == "shared" else scenario.head_sizes,
            init=options.init,
        )
    return net, {}


def _plain(options: HATOptions, scenario: Scenario, made_from: dict[str, Any]) -> nn.Module:
    return plain_model(options, scenario)


COMMAND = MethodCommand(HATOptions, prepare, _plain)
