"""What commands that train have in common: their options, their optimizer, their network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from maskcl import models, scenarios
from maskcl.cli.options import CommandError, Options, option
from maskcl.methods import derive_seed
from maskcl.pretrain import state_hash

if TYPE_CHECKING:
    from maskcl.nn.task_network import TaskNetwork
    from maskcl.result import Result
    from maskcl.scenarios import Scenario

# Used where no --batch-size is given: 64 is HAT's paper's; a task of 290 digits needs more steps.
BATCH_SIZES = {"digits": 16, "mnist": 64}

_OPTIMIZERS = ("sgd", "adam", "adamw")


def table(values: Mapping[str, float]) -> str:
    """Defaults that depend on another option, for ``--help``."""
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What every training takes; None means the scenario's, the model's or the optimizer's own."""

    MAY_CHANGE: ClassVar[tuple[str, ...]] = ("out", "data", "device")

    scenario: str = option(f"What to learn: {', '.join(scenarios.NAMES)}.", choices=scenarios.NAMES)
    out: str = option("New folder for all that is written.")
    data: str | None = option("Folder with MNIST's idx files (never written to).", None)
    batch_size: int | None = option("Examples a step.", None, shown=table(BATCH_SIZES), at_least=1)
    optimizer: str = option(f"{', '.join(_OPTIMIZERS)}.", "adam", choices=_OPTIMIZERS)
    momentum: float = option("Of sgd.", 0.0, at_least=0, below=1)
    weight_decay: float = option("Not on what decides about masks.", 0.0, at_least=0)
    seed: int = option("Of the data split, weights and order.", 0, at_least=0, below=2**32)
    device: str = option("auto, cpu, cuda.", "auto", choices=("auto", "cpu", "cuda"))

    def __post_init__(self) -> None:
        self._complete("batch_size", BATCH_SIZES.get(self.scenario.split("-")[-1]))
        super().__post_init__()
        if self.momentum and self.optimizer != "sgd":
            raise CommandError(f"momentum belongs to sgd, {self.optimizer} has its own")

    def _complete(self, name: str, value: Any) -> None:
        """Where an option is None, put what that stands for."""
        if getattr(self, name) is None and value is not None:
            object.__setattr__(self, name, value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """What ``maskcl train`` takes whatever the method."""

    # The method's name on the command line, and its class.
    NAME: ClassVar[str]
    METHOD: ClassVar[Any]

    tasks: int | None = option("Number of tasks.", None, shown="the scenario's", at_least=1)
    setting: str | None = option(
        "task, domain or class (mas, ewc).",
        None,
        shown="the scenario's",
        choices=("task", "domain", "class"),
    )
    epochs: int = option("For each task.", 10, at_least=1)
    lr: float | None = option("Learning rate.", None, above=0)
    precision: str = option("32, bf16.", "32", choices=("32", "bf16"))

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            self.method()
        except (ValueError, TypeError) as error:
            raise CommandError(str(error).replace(f"{self.METHOD.__name__}: ", "")) from None

    def method(self) -> Any:
        """The method with these hyper-parameters: those of its fields that are options."""
        own = {field.name for field in dataclasses.fields(self)}
        names = [f.name for f in dataclasses.fields(self.METHOD) if f.name in own]
        return self.METHOD(**{name: getattr(self, name) for name in names})


@dataclasses.dataclass(frozen=True)
class MethodCommand:
    """What ``maskcl train METHOD`` does in its own way.

    Attributes:
        options: the table of options; its docstring is the command's help.
        prepare: (options, scenario) -> the network, and facts that config.json keeps of what it
            was made from; a resumed run must find the same ``sha256`` among them. Raises
            CommandError; writes nothing.
        finish: the method's part of result.json; may write files into the folder.
    """

    options: type[TrainOptions]
    prepare: Callable[[Any, Scenario], tuple[TaskNetwork, dict[str, Any]]]
    finish: Callable[[Trained], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run whose last task is finished.

    Attributes:
        options: of the method's kind.
        scenario: what was learned.
        net: of the method's kind.
        result: what was measured.
        made_from: as ``prepare`` gave it.
        directory: the run's folder.
    """

    options: Any
    scenario: Scenario
    net: Any
    result: Result
    made_from: dict[str, Any]
    directory: Path


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
