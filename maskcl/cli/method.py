"""What ``maskcl train`` takes and does whatever the method."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from maskcl import models, scenarios
from maskcl.cli.common import RunOptions, table
from maskcl.cli.options import CommandError, option
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.settings import SETTINGS

if TYPE_CHECKING:
    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.scenarios import Scenario
    from maskcl.training.result import Result

# Used where no --epochs is given. A step of a node problem is an epoch, unless neighbours are
# sampled: then it has as many epochs as images.
EPOCHS = {"vision": 10, "node": 100, "link": 20, "graph": 20}
MODELS = {"vision": "mlp", "node": "gcn", "link": "gcn", "graph": "gcn"}
GRAPH_WIDTHS = (64, 64)

_model = functools.partial(option, panel="Model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """What ``maskcl train`` takes whatever the method."""

    MAY_CHANGE = (*RunOptions.MAY_CHANGE, "references")

    # The method's name on the command line, and its class.
    NAME: ClassVar[str]
    METHOD: ClassVar[Any]
    # Whether its outputs depend on the task of a sample.
    NEEDS_TASK: ClassVar[bool] = True

    tasks: int | None = option("Number of tasks.", None, shown="the scenario's", at_least=1)
    setting: str | None = option(
        "task, domain, class, time.",
        None,
        shown="the scenario's",
        choices=("task", "domain", "class", "time"),
    )
    infer: str | None = option(
        "How the task is inferred at test: shared, masked, base (piggyback), none.",
        None,
        shown="shared where the setting hides it (hat, piggyback), else none",
        choices=("shared", "masked", "base", "none"),
    )
    variant: str | None = option("Of planetoid: cora, citeseer.", None)
    shuffle: bool = option("Classes (domains of graphs) in an order that the seed draws.", False)
    groups: str | None = option(
        "Classes of each task, as 0,1/2,3.", None, shown="an even cut in ascending order"
    )
    metric: str | None = option("accuracy, auroc, hits@K.", None, shown="the scenario's")
    epochs: int | None = option("For each task.", None, shown=table(EPOCHS), at_least=1)
    lr: float | None = option("Learning rate.", None, above=0)
    precision: str = option("32, bf16.", "32", choices=("32", "bf16"))
    references: bool = option(
        "Train plain networks too: INT (not learned), FTS (gained), rho (forgotten).", False
    )

    model: str | None = _model(
        f"{', '.join(models.NAMES)}; of graphs {', '.join(models.ENCODERS)}.",
        None,
        shown="mlp; of graphs gcn",
        choices=(*models.NAMES, *models.ENCODERS),
    )
    hidden: tuple[int, ...] | None = _model(
        "Widths of the mlp, or of graph convolutions.",
        None,
        shown=f"200,200; of graphs {','.join(map(str, GRAPH_WIDTHS))}",
    )
    dropout: float | None = _model(
        "Of the mlp and of graph models.", None, shown="0", at_least=0, below=1
    )
    batch_norm: bool = _model("BatchNorm after each graph convolution.", False)
    fanouts: tuple[int, ...] | None = _model(
        "Node problems: neighbours sampled for each hop, as 10,10.", None, shown="whole graph"
    )

    def __post_init__(self) -> None:
        problem = self.problem
        self._complete("epochs", EPOCHS.get("vision" if self.fanouts else str(problem)))
        self._complete_model()
        self._complete("infer", "shared" if self._has_to_infer() else "none")
        super().__post_init__()
        if self.infer != "none" and self._setting == "task":
            raise CommandError(
                f"infer is {self.infer}, and the task setting tells the task at test"
            )
        _check_model(self, str(problem))
        try:
            self.method()
        except (ValueError, TypeError) as error:
            raise CommandError(str(error).replace(f"{self.METHOD.__name__}: ", "")) from None

    @property
    def _setting(self) -> str | None:
        return self.setting or scenarios.default_setting(self.scenario)

    def _has_to_infer(self) -> bool:
        """Whether the method can say nothing of a sample whose task nobody tells."""
        setting = self._setting
        hidden = setting in SETTINGS and not SETTINGS[setting].task_id_at_test
        return hidden and self.NEEDS_TASK

    def inference(self) -> TaskInference | None:
        """What infers tasks at test; None where they are told, or matter to no output."""
        return (
            None if self.infer in (None, "none") else TaskInference(str(self.infer), seed=self.seed)
        )

    @property
    def problem(self) -> str | None:
        """Of the scenario: vision, node, link or graph; None where no scenario has the name."""
        return scenarios.problem_of(self.scenario)

    @property
    def reference_rate(self) -> float:
        """Learning rate of the plain networks that ``references`` asks for."""
        assert self.lr is not None  # each method's options put it
        return self.lr

    def method(self) -> Any:
        """The method with these hyper-parameters: those of its fields that are options."""
        own = {field.name for field in dataclasses.fields(self)}
        names = [f.name for f in dataclasses.fields(self.METHOD) if f.name in own]
        return self.METHOD(**{name: getattr(self, name) for name in names})

    def _complete_model(self) -> None:
        self._complete("model", MODELS.get(str(self.problem)))


def _check_model(options: TrainOptions, problem: str) -> None:
    """Raise CommandError unless the model's options go with the problem and with each other."""
    name, scenario = options.model, options.scenario
    if options.fanouts is not None and problem != "node":
        raise CommandError(
            f"fanouts sample the neighbours of nodes, {scenario} is a {problem} problem"
        )
    if options.batch_norm and problem == "vision":
        raise CommandError(f"batch-norm belongs to graph models, {scenario} is a vision problem")
    if name is not None and (name in models.ENCODERS) != (problem != "vision"):
        fitting = models.NAMES if problem == "vision" else tuple(models.ENCODERS)
        raise CommandError(
            f"model {name} does not go with {scenario}, a {problem} problem: wanted one of "
            f"{', '.join(fitting)}"
        )


@dataclasses.dataclass(frozen=True)
class MethodCommand:
    """What ``maskcl train METHOD`` does in its own way.

    Attributes:
        options: the table of options; its docstring is the command's help.
        prepare: (options, scenario) -> the network, and facts that config.json keeps of what it
            was made from; a resumed run must find the same ``sha256`` among them. Raises
            CommandError; writes nothing.
        plain: (options, scenario, those facts) -> a fresh ordinary network of the same
            architecture.
        finish: what result.json says beside `training.content`'s; may write files into the folder.
    """

    options: type[TrainOptions]
    prepare: Callable[[Any, Scenario], tuple[TaskNetwork, dict[str, Any]]]
    plain: Callable[[Any, Scenario, dict[str, Any]], nn.Module]
    finish: Callable[[Trained], dict[str, Any]] = lambda run: {}


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
