"""The trainer behind all of BeGin's: its arguments and what they come to."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from maskcl.compat.begin.methods import BARE, Plan, Unit
from maskcl.compat.begin.trainers.loop import Loop
from maskcl.compat.begin.trainers.running import Run

# What every trainer takes besides its method's keywords.
KEYWORDS: dict[str, Any] = {
    "scheduler_fn": None,
    "benchmark": False,
    "seed": 0,
    "full_mode": False,
    "verbose": True,
    "binary": False,
    "tmp_save_path": None,
    "pretraining": None,
}


class BaseTrainer(Loop):
    """Train a model on a scenario's tasks, one after the other; fine-tuning unless told otherwise.

    Args:
        model: a GCNNode, GCNLink, GCNGraph or another GraphModel. A method's trainer converts a
            copy, ``trainer.model``; without a method the model itself is trained.
        scenario: a loader at its first task.
        optimizer_fn: parameters (or groups of them) -> a new optimizer; called for each task.
        loss_fn: outputs, labels -> 0-d loss. Labels of test samples are -1.
        device: "cpu", "cuda", a torch.device, or None for the CPU.
        scheduler_fn: optimizer -> scheduler, stepped with the validation loss (link prediction:
            score) if it is a ReduceLROnPlateau, whose ``min_lr`` then ends a task; None for none.
        benchmark: seed torch, numpy and random with ``seed``, which methods then use too.
        seed: see there.
        full_mode: train the base and the joint model too; INT needs the latter.
        verbose: print the log and the results.
        binary: outputs are scores, not classes; True where the scenario has one class.
        tmp_save_path: folder for ``result_TIME.pkl``, the arrays of the result; None for no file.
        pretraining: None.
        kwargs: these, and the method's: see ``unit.keywords``. A subclass names its own in
            ``keywords``.

    Attributes:
        model: as it trains. method: the hooks that train it.

    Raises:
        TypeError: an unknown keyword, or a model that cannot be converted.
        ValueError: the scenario is of another setting, or a value is out of range.
        RuntimeError: there is no such device here.
    """

    unit: ClassVar[Unit] = BARE
    setting: ClassVar[str | None] = None
    problem: ClassVar[str] = ""
    keywords: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model: Any,
        scenario: Any,
        optimizer_fn: Callable[[Any], Optimizer],
        loss_fn: Callable[..., Tensor],
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        options = self._options(kwargs)
        self._check_scenario(scenario)
        self.device = _checked_device(type(self).__name__, device)
        self.seed = _seed(options)
        self._scenario = scenario
        self.optimizer_fn, self.loss_fn = optimizer_fn, loss_fn
        self.scheduler_fn = options["scheduler_fn"]
        self.num_tasks = scenario.num_tasks
        self.eval_fn = scenario.get_simple_eval_result
        self.full_mode, self.verbose = options["full_mode"], options["verbose"]
        self.binary = options["binary"] or scenario.num_classes == 1
        self.result_path = options["tmp_save_path"]
        self._task_of_class, self._num_classes = scenario.task_of_class, scenario.num_classes
        self._runs: dict[int, Run] = {}
        self._initial = copy.deepcopy(model)
        self.model, self.method = self._converted(model, options)
        self.model.to(self.device)

    def _converted(self, model: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """The model as it will train, and the method."""
        example: tuple[Any, ...] = ()
        if self.unit.convert is not None:
            if getattr(model, "classifier", None) is None or not hasattr(model, "converted"):
                raise TypeError(
                    f"{type(self).__name__}: model is a {type(model).__name__}, wanted a GCNNode,"
                    " GCNLink, GCNGraph or another maskcl.compat.begin.utils.GraphModel with a"
                    " classifier"
                )
            model = copy.deepcopy(model).to("cpu")
            example = self._example(model, self._scenario.get_current_dataset())
        plan = Plan(
            self.problem,
            self._scenario.incr_type,
            self.num_tasks,
            0 if self.unit.convert is None else model.classifier.num_outputs,
            example,
        )
        method, convert = self.unit.method(options, plan), self.unit.convert
        if convert is None:
            return model, method
        return model.converted(lambda core: convert(core, plan)), method

    def _example(self, model: Any, dataset: Any) -> tuple[Any, ...]:
        """Arguments of the model's core for a few samples."""
        raise NotImplementedError

    def _options(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        known = {**KEYWORDS, **self.unit.keywords, **dict.fromkeys(self.keywords)}
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{type(self).__name__}: no keyword {name!r}, known are {', '.join(known)}"
                    " (a subclass names its own in its attribute `keywords`)"
                )
        if kwargs.get("pretraining") is not None:
            raise ValueError(
                f"{type(self).__name__}: pretraining is given, wanted None: train the model before"
            )
        return {**known, **kwargs}

    def _check_scenario(self, scenario: Any) -> None:
        name = type(self).__name__
        if self.problem and scenario.problem != self.problem:
            raise ValueError(
                f"{name}: scenario is a {type(scenario).__name__}, wanted one of {self.problem}"
                " problems"
            )
        if self.setting is not None and scenario.incr_type != self.setting:
            raise ValueError(
                f"{name}: the scenario's incr_type is {scenario.incr_type!r}, wanted"
                f" {self.setting!r}"
            )


def _checked_device(owner: str, device: torch.device | str | None) -> torch.device:
    wanted = torch.device("cpu" if device is None else device)
    if wanted.type == "cuda":
        count = torch.cuda.device_count()
        if (wanted.index or 0) >= count:
            raise RuntimeError(
                f"{owner}: device is {str(wanted)!r}, and torch {torch.__version__} finds {count}"
                " CUDA devices here; 'cpu' works too"
            )
        wanted = torch.device("cuda", wanted.index or 0)
    return wanted


def _seed(options: Mapping[str, Any]) -> int:
    """With ``benchmark`` the given one, for everything that draws; else one drawn by torch."""
    if not options["benchmark"]:
        return int(torch.randint(2**31, ()))
    seed = int(options["seed"])
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - BeGin's `benchmark` seeds this one
    torch.backends.cudnn.deterministic = True
    return seed
