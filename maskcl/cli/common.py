"""What commands that train have in common: their options, their optimizer, their network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from maskcl import models, scenarios
from maskcl.cli.options import CommandError, Options, option
from maskcl.methods import derive_seed
from maskcl.training.pretrain import state_hash

# Used where no --batch-size is given: 64 is HAT's paper's; a task of 290 digits needs more steps.
BATCH_SIZES = {"digits": 16, "mnist": 64}
GRAPH_BATCH_SIZES = {"node": 256, "link": 256, "graph": 16}

_OPTIMIZERS = ("sgd", "adam", "adamw")


def table(values: Mapping[str, float]) -> str:
    """Defaults that depend on another option, for ``--help``."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What every training takes; None means the scenario's, the model's or the optimizer's own."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("out", "data", "device", "workers")

    scenario: str = option(f"What to learn: {', '.join(scenarios.NAMES)}.", choices=scenarios.NAMES)
    out: str = option("New folder for all that is written.")
    data: str | None = option(
        "Folder with MNIST's idx files or a graph's raw files (never written to).", None
    )
    batch_size: int | None = option(
        "Examples a step.",
        None,
        shown=f"{table(BATCH_SIZES)}; of graphs {table(GRAPH_BATCH_SIZES)}",
        at_least=1,
    )
    optimizer: str = option(f"{', '.join(_OPTIMIZERS)}.", "adam", choices=_OPTIMIZERS)
    momentum: float = option("Of sgd.", 0.0, at_least=0, below=1)
    weight_decay: float = option("Not on what decides about masks.", 0.0, at_least=0)
    seed: int = option("Of the data split, weights and order.", 0, at_least=0, below=2**32)
    workers: int = option("Processes that read images from files ahead of training.", 0, at_least=0)
    device: str = option("auto, cpu, cuda.", "auto", choices=("auto", "cpu", "cuda"))

    def __post_init__(self) -> None:
        images = BATCH_SIZES.get(self.scenario.split("-")[-1])
        problem = str(scenarios.problem_of(self.scenario))
        self._complete("batch_size", GRAPH_BATCH_SIZES.get(problem, images))
        super().__post_init__()
        if self.momentum and self.optimizer != "sgd":
            raise CommandError(f"momentum belongs to sgd, {self.optimizer} has its own")

    def _complete(self, name: str, value: Any) -> None:
        """Where an option is None, put what that stands for."""
        if getattr(self, name) is None and value is not None:
            object.__setattr__(self, name, value)


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Inside, weights are drawn from the seed alone; outside nothing changes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("model", seed))
        yield


def build_model(name: str, shape: Sequence[int], outputs: int, **own: Any) -> nn.Module:
    """`models.build` with a refusal as a `CommandError`; call it inside `seeded_weights`."""
    try:
        return models.build(name, shape, outputs, **own)
    except ValueError as error:
        raise CommandError(str(error)) from None


def optimizer_factory(options: RunOptions, rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    """Parameters or groups of them -> optimizer; what a group sets itself comes first."""
    momentum, decay = options.momentum, options.weight_decay

    def make(groups: Any) -> torch.optim.Optimizer:
        if options.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=decay)
        kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=rate, weight_decay=decay)

    return make


def fingerprint(net: nn.Module) -> str:
    """SHA-256 of all parameters and buffers by name: equal for bit-identical networks."""
    return state_hash(net.state_dict())
