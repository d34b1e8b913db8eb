"""``maskcl train hat``: its options, its network, its part of result.json."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch

import maskcl
from maskcl import report
from maskcl.cli.common import DEEP_RATES, seeded_weights, table
from maskcl.cli.method import MethodCommand, Trained, TrainOptions
from maskcl.cli.network import example_of, plain_model
from maskcl.cli.options import CommandError, option
from maskcl.methods import HAT
from maskcl.training.mask_metrics import mask_bytes

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


def finish(run: Trained) -> dict[str, Any]:
    """HAT's part of result.json."""
    net: HATNetwork = run.net
    masks = torch.stack([net.hard_mask(task) for task in range(net.num_tasks)]).cpu().numpy()
    spans = {name: (span.start, span.stop) for name, span in net.units.items()}
    return {
        "capacity": run.result.capacity,
        "protected": run.result.protected,
        "protected_share": protected_share(net, run.result.protected[-1]),
        "free": free_counts(net),
        "mask_bytes": mask_bytes(masks),
        "masks": report.encode_masks(masks, spans),
    }


def protected_share(net: HATNetwork, shares: dict[str, float]) -> float:
    """Share of all shared parameters' elements that are protected after the last task."""
    protection = net.protection()
    sizes = {
        name: parameter.numel()
        for name, parameter in zip(protection.names, protection.parameters, strict=True)
    }
    return sum(shares[name] * sizes[name] for name in shares) / sum(sizes.values())


def free_counts(net: HATNetwork) -> dict[str, list[int]]:
    """Units and weights: how many are free, and how many there are."""
    found = net.capacity()
    return {
        "units": [sum(found.free_units.values()), sum(found.units.values())],
        "weights": [sum(found.free_weights.values()), sum(found.weights.values())],
    }


def _plain(options: HATOptions, scenario: Scenario, made_from: dict[str, Any]) -> nn.Module:
    return plain_model(options, scenario)


COMMAND = MethodCommand(HATOptions, prepare, _plain, finish)
