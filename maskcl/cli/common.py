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
from maskcl.scenarios.graphs.names import GRAPHS
from maskcl.scenarios.image_names import IMAGES, in_words
from maskcl.training.pretrain import state_hash

# Used where no --batch-size is given; of images what their table says. 64 is HAT's paper's; a task
# of 290 digits needs more steps.
_BATCH_SIZES_SHOWN = "64, digits 16"
GRAPH_BATCH_SIZES = {"node": 256, "link": 256, "graph": 16}

_OPTIMIZERS = ("sgd", "adam", "adamw")
# Where the scenario's own model is a conv net, and no --lr is given.
DEEP_RATES = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001}


def table(values: Mapping[str, float]) -> str:
    """Defaults that depend on another option, for ``--help``."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What every training takes; None means the scenario's, the model's or the optimizer's own."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("out", "data", "device")

    scenario: str = option(
        f"What to learn: {in_words()}; of graphs {', '.join(GRAPHS)}.", choices=scenarios.NAMES
    )
    out: str = option("New folder for all that is written.")
    data: str | None = option(
        "Folder with the scenario's raw files; nothing is downloaded or written there.", None
    )
    size: int | None = option(
        "Of images and sequence: pixels of a side.",
        None,
        shown="the first image's, at most 64; 32",
        at_least=1,
        below=4097,
    )
    batch_size: int | None = option(
        "Examples a step, of all processes together.",
        None,
        shown=f"{_BATCH_SIZES_SHOWN}; of graphs {table(GRAPH_BATCH_SIZES)}",
        at_least=1,
    )
    optimizer: str = option(f"{', '.join(_OPTIMIZERS)}.", "adam", choices=_OPTIMIZERS)
    momentum: float = option("Of sgd.", 0.0, at_least=0, below=1)
    weight_decay: float = option("Not on what decides about masks.", 0.0, at_least=0)
    seed: int = option("Of the data split, weights and order.", 0, at_least=0, below=2**32)
    device: str = option("auto, cpu, cuda.", "auto", choices=("auto", "cpu", "cuda"))

    def __post_init__(self) -> None:
        images = IMAGES.get(self.scenario)
        problem = str(scenarios.problem_of(self.scenario))
        own = GRAPH_BATCH_SIZES.get(problem) if images is None else images.batch_size
        self._complete("batch_size", own)
        super().__post_init__()
        if self.momentum and self.optimizer != "sgd":
            raise CommandError(f"momentum belongs to sgd, {self.optimizer} has its own")

    def _complete(self, name: str, value: Any) -> None:
        """Where an option is None, put what that stands for."""
        if getattr(self, name) is None and value is not None:
            object.__setattr__(self, name, value)


def device_of(name: str) -> torch.device:
    """The device that a name stands for; asked for before any data are read.

    Raises:
        CommandError: this machine has none such.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise CommandError("device is 'cuda', and torch finds no CUDA device here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


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
