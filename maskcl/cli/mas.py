"""``maskcl train mas`` and ``maskcl train ewc``: options and network."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, ClassVar

from maskcl.cli.common import DEEP_RATES, seeded_weights, table
from maskcl.cli.method import MethodCommand, TrainOptions
from maskcl.cli.network import plain_model, with_heads
from maskcl.cli.options import option
from maskcl.methods import EWC, MAS

if TYPE_CHECKING:
    from torch import nn

    from maskcl.nn import ImportanceNetwork
    from maskcl.scenarios import Scenario

_mas = functools.partial(option, panel="MAS")
_ewc = functools.partial(option, panel="EWC")
_MAS, _EWC = MAS(), EWC()

# Chosen on the digits' scenarios in the task setting: of images over seeds 0 to 4, of nodes, links
# and graphs on seed 0. Seeds 1 to 4 of graphs, then run with them, have an ACC of .79 to .85 (MAS)
# and .88 to .94 (EWC). The methods' own default strengths are the papers'.
MAS_RATES = {"sgd": 0.05, "adam": 0.002, "adamw": 0.002}
EWC_RATES = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001}
# Of graph problems, whose encoders learn slowly from the few features of a pixel.
GRAPH_RATES = {"sgd": 0.05, "adam": 0.005, "adamw": 0.005}
MAS_STRENGTHS = {"vision": 0.03, "node": 0.03, "link": 0.03, "graph": 10}
# Of nodes and links the gradient is a batch's mean, whose square is far smaller.
EWC_STRENGTHS = {"vision": 1e4, "node": 1e6, "link": 1e6, "graph": 1e3}
# SGD takes steps as large as the penalty is steep, and diverges where Adam does not.
EWC_SGD_STRENGTHS: dict[str, float] = {"vision": 500, "node": 3000, "link": 5, "graph": 100}
MAS_SGD_STRENGTHS = {**MAS_STRENGTHS, "graph": 0.3}

_STRENGTH = "Of the penalty; it belongs to the importance's definition."
_REDUCTION = "Of gradients: sample (mean of sizes), batch (size of means)."
_REDUCTION_SHOWN = "sample; of nodes and links batch"
_DECAY = "Factor of earlier tasks' importances."
_HEADS = "Hold a shared or growing output layer too."
_HEADS_SHOWN = "in the domain and time settings"


_MAS_STRENGTHS_SHOWN = f"{table(MAS_STRENGTHS)}; with sgd {table(MAS_SGD_STRENGTHS)}"
_EWC_STRENGTHS_SHOWN = f"{table(EWC_STRENGTHS)}; with sgd {table(EWC_SGD_STRENGTHS)}"


def _rates(rates: dict[str, float]) -> str:
    deep = (
        ""
        if rates == DEEP_RATES
        else f"; where conv or resnet18 is the default {table(DEEP_RATES)}"
    )
    return f"{table(rates)}{deep}; of graph problems {table(GRAPH_RATES)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticOptions(TrainOptions):
    """What both methods take."""

    # By optimizer, and by problem.
    NEEDS_TASK = False
    RATES: ClassVar[dict[str, float]]
    STRENGTHS: ClassVar[dict[str, float]]
    SGD_STRENGTHS: ClassVar[dict[str, float]]

    def __post_init__(self) -> None:
        rates = DEEP_RATES if self.is_deep else self.RATES
        rates = GRAPH_RATES if self.problem == "graph" else rates
        self._complete("lr", rates.get(self.optimizer))
        strengths = self.SGD_STRENGTHS if self.optimizer == "sgd" else self.STRENGTHS
        self._complete("strength", strengths.get(str(self.problem)))
        # One head that answers for all tasks alike is a part of what they need.
        self._complete("heads", self._setting in ("domain", "time"))
        self._complete("reduction", "batch" if self.problem in ("node", "link") else "sample")
        super().__post_init__()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MASOptions(QuadraticOptions):
    """Memory aware synapses (Aljundi et al. 2018): what matters to outputs is held by a penalty."""

    NAME = "mas"
    METHOD = MAS
    RATES = MAS_RATES
    STRENGTHS = MAS_STRENGTHS
    SGD_STRENGTHS = MAS_SGD_STRENGTHS

    lr: float | None = option("Learning rate.", None, shown=_rates(MAS_RATES), above=0)
    strength: float | None = _mas(_STRENGTH, None, shown=_MAS_STRENGTHS_SHOWN)
    reduction: str | None = _mas(_REDUCTION, None, shown=_REDUCTION_SHOWN)
    norm: str = _mas("Of the outputs' squares: sum, mean.", _MAS.norm)
    decay: float = _mas(_DECAY, _MAS.decay)
    heads: bool | None = _mas(_HEADS, None, shown=_HEADS_SHOWN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EWCOptions(QuadraticOptions):
    """Elastic weight consolidation (Kirkpatrick et al. 2017): what the Fisher information holds."""

    NAME = "ewc"
    METHOD = EWC
    RATES = EWC_RATES
    STRENGTHS = EWC_STRENGTHS
    SGD_STRENGTHS = EWC_SGD_STRENGTHS

    lr: float | None = option("Learning rate.", None, shown=_rates(EWC_RATES), above=0)
    strength: float | None = _ewc(_STRENGTH, None, shown=_EWC_STRENGTHS_SHOWN)
    reduction: str | None = _ewc(_REDUCTION, None, shown=_REDUCTION_SHOWN)
    labels: str = _ewc("Whose probability: data, predicted, sampled.", _EWC.labels)
    decay: float = _ewc(_DECAY, _EWC.decay)
    anchors: str = _ewc("Where tasks pull to: each (its own), last.", _EWC.anchors)
    heads: bool | None = _ewc(_HEADS, None, shown=_HEADS_SHOWN)


def prepare(options: TrainOptions, scenario: Scenario) -> tuple[ImportanceNetwork, dict[str, Any]]:
    """The model with the scenario's heads: one a task, a growing one, or its own.

    Raises:
        CommandError: the model does not fit the scenario's inputs.
    """
    with seeded_weights(options.seed):
        net = with_heads(plain_model(options, scenario), scenario)
    return net, {}


def _plain(options: QuadraticOptions, scenario: Scenario, made_from: dict[str, Any]) -> nn.Module:
    return plain_model(options, scenario)


MAS_COMMAND = MethodCommand(MASOptions, prepare, _plain)
EWC_COMMAND = MethodCommand(EWCOptions, prepare, _plain)
