"""``maskcl train finetune``, ``joint`` and ``independent``: plain training, to compare with."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from maskcl.cli.common import table
from maskcl.cli.mas import prepare
from maskcl.cli.method import MethodCommand, Trained, TrainOptions
from maskcl.cli.network import plain_model
from maskcl.cli.options import CommandError, flag_name, option
from maskcl.methods import Finetune, Independent, Joint
from maskcl.settings import SETTINGS

if TYPE_CHECKING:
    from torch import nn

    from maskcl.scenarios import Scenario

RATES = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001}
# Of graph problems, whose encoders learn slowly from the few features of a pixel.
GRAPH_RATES = {"sgd": 0.05, "adam": 0.005, "adamw": 0.005}
_RATES_SHOWN = f"{table(RATES)}; of graph problems {table(GRAPH_RATES)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneOptions(TrainOptions):
    """One plain network, one task after the other, nothing protected: what forgetting costs."""

    NAME = "finetune"
    METHOD = Finetune
    NEEDS_TASK = False

    lr: float | None = option("Learning rate.", None, shown=_RATES_SHOWN, above=0)

    def __post_init__(self) -> None:
        rates = GRAPH_RATES if self.problem not in ("vision", None) else RATES
        self._complete("lr", rates.get(self.optimizer))
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointOptions(FinetuneOptions):
    """A plain network for each task, trained on all tasks so far together: the upper bound."""

    NAME = "joint"
    METHOD = Joint
    GOES_ON = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse(self, "infer", "references", "validation", "patience", "accumulate")


@dataclasses.dataclass(frozen=True, kw_only=True)
class IndependentOptions(FinetuneOptions):
    """A plain network for each task, trained on it alone: nothing forgotten, nothing shared."""

    NAME = "independent"
    METHOD = Independent
    GOES_ON = False

    def __post_init__(self) -> None:
        super().__post_init__()
        setting = SETTINGS.get(str(self._setting))
        if setting is not None and not setting.task_id_at_test:
            raise CommandError(
                f"independent has a network for each task, and the {setting.name} setting does not"
                " tell the task at test"
            )
        _refuse(self, "infer", "references")


def _refuse(options: FinetuneOptions, *names: str) -> None:
    """Raise CommandError where one of these options is given: the method has no use for it."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    for name in names:
        if name not in fields:
            continue
        value = getattr(options, name)
        if value not in (fields[name].default, "none"):
            raise CommandError(f"{flag_name(name)} does not go with {options.NAME}")


def finish(run: Trained) -> dict[str, Any]:
    """Nothing of its own but, where each task has a network, the size of all of them."""
    if run.options.NAME != "independent":
        return {}
    net = run.net
    sizes = {name: p.numel() for name, p in net.model.named_parameters()}
    shared = sum(sizes[name] for name in net.names())
    return {"parameters": sum(sizes.values()) + (run.scenario.num_tasks - 1) * shared}


def _plain(options: FinetuneOptions, scenario: Scenario, made_from: dict[str, Any]) -> nn.Module:
    return plain_model(options, scenario)


COMMANDS = tuple(
    MethodCommand(options, prepare, _plain, finish)
    for options in (FinetuneOptions, JointOptions, IndependentOptions)
)
