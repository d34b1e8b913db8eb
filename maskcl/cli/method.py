"""What ``maskcl train`` takes and does whatever the method."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from maskcl import models, scenarios
from maskcl.cli.common import RunOptions, table
from maskcl.cli.options import CommandError, option
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.scenarios.image_names import IMAGES
from maskcl.settings import SETTINGS
from maskcl.training.checks import EVALUATE
from maskcl.training.schedules import NAMED, SchedulerFn, named_schedule
from maskcl.training.validation import Validation

if TYPE_CHECKING:
    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.scenarios import Scenario
    from maskcl.training.result import Result

# Used where no --epochs is given; image scenarios have their own. A step of a node problem is an
# epoch, unless neighbours are sampled.
EPOCHS = {"node": 100, "link": 20, "graph": 20}
SAMPLED_EPOCHS = 10
GRAPH_MODEL = "gcn"
GRAPH_WIDTHS = (64, 64)

_model = functools.partial(option, panel="Model")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """What ``maskcl train`` takes whatever the method."""

    MAY_CHANGE = (*RunOptions.MAY_CHANGE, "references", "workers")

    # The method's name on the command line, and its class.
    NAME: ClassVar[str]
    METHOD: ClassVar[Any]
    # Whether its outputs depend on the task of a sample.
    NEEDS_TASK: ClassVar[bool] = True
    # Whether a finished run can go on with more tasks.
    GOES_ON: ClassVar[bool] = True

    tasks: int | None = option("Number of tasks.", None, shown="the scenario's", at_least=1)
    datasets: str | None = option("Of sequence: sets that are a task each, as mnist,usps.", None)
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
    shuffle: bool = option(
        "Classes (or data sets, domains) in an order that the seed draws.", False
    )
    groups: str | None = option(
        "Classes of each task, as 0,1/2,3.", None, shown="an even cut in ascending order"
    )
    metric: str | None = option("accuracy, auroc, hits@K.", None, shown="the scenario's")
    epochs: int | None = option(
        "For each task.",
        None,
        shown=f"10, of colour images 20; of graphs {table(EPOCHS)}",
        at_least=1,
    )
    lr: float | None = option("Learning rate.", None, above=0)
    lr_schedule: str = option(
        f"Of the rate over a task: {', '.join(NAMED)}.", "constant", choices=NAMED
    )
    warmup: float = option(
        "Share of a task's steps over which the rate rises first.", 0.0, at_least=0, below=1
    )
    accumulate: int = option("Batches a step.", 1, at_least=1)
    precision: str = option("32, bf16, 16 (CUDA).", "32", choices=("32", "bf16", "16"))
    validation: float | None = option(
        "Share of each task's training samples held out: a task ends with its best epoch.",
        None,
        shown="none",
        above=0,
        below=1,
    )
    patience: int | None = option(
        "Epochs without a better validation score that end a task.", None, shown="none", at_least=1
    )
    keep_last: bool = option("End a task with its last epoch, whatever validation says.", False)
    evaluate: str = option(
        "Tested after a task: all up to it; last, it alone; N, all after every N.", "all"
    )
    workers: int = option("Processes that read images from files ahead of training.", 0, at_least=0)
    references: bool = option(
        "Train plain networks too: INT (not learned), FTS (gained), rho (forgotten).", False
    )

    model: str | None = _model(
        f"{', '.join(models.NAMES)}; of graphs {', '.join(models.ENCODERS)}.",
        None,
        shown="mlp; conv where colours are in place, resnet18 for tiny-imagenet; of graphs gcn",
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
    sync_batchnorm: bool = _model(
        "BatchNorm's statistics are of all processes' examples (CUDA).", False
    )
    fanouts: tuple[int, ...] | None = _model(
        "Node problems: neighbours sampled for each hop, as 10,10.", None, shown="whole graph"
    )

    def __post_init__(self) -> None:
        problem, images = self.problem, IMAGES.get(self.scenario)
        of_graphs = SAMPLED_EPOCHS if self.fanouts else EPOCHS.get(str(problem))
        self._complete("epochs", of_graphs if images is None else images.epochs)
        self._complete_model()
        self._complete("infer", "shared" if self._has_to_infer() else "none")
        super().__post_init__()
        if self.infer != "none" and self._setting == "task":
            raise CommandError(
                f"infer is {self.infer}, and the task setting tells the task at test"
            )
        _check_model(self, str(problem))
        if self.validation is None and (self.patience is not None or self.keep_last):
            name = "keep-last" if self.patience is None else "patience"
            raise CommandError(f"{name} goes with --validation, the share that is held out")
        if self.evaluate not in EVALUATE and not re.fullmatch("[1-9][0-9]{0,8}", self.evaluate):
            raise CommandError(
                f"evaluate must be all, last or a whole number of at least 1, got {self.evaluate!r}"
            )
        try:
            self.rates()
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

    def rates(self) -> tuple[SchedulerFn | None, str]:
        """The trainer's ``scheduler_fn`` and ``schedule_by``."""
        return named_schedule(self.lr_schedule, self.warmup)

    def held_out(self) -> Validation | None:
        """The trainer's ``validation``."""
        if self.validation is None:
            return None
        return Validation(self.validation, self.patience, restore=not self.keep_last)

    def tested(self) -> str | int:
        """The trainer's ``evaluate``."""
        return self.evaluate if self.evaluate in EVALUATE else int(self.evaluate)

    @property
    def problem(self) -> str | None:
        """Of the scenario: vision, node, link or graph; None where no scenario has the name."""
        return scenarios.problem_of(self.scenario)

    @property
    def is_deep(self) -> bool:
        """Whether the scenario's own model is deeper than the mlp, and wants smaller steps."""
        images = IMAGES.get(self.scenario)
        return images is not None and images.model != "mlp"

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
        images = IMAGES.get(self.scenario)
        self._complete("model", GRAPH_MODEL if images is None else images.model)


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
