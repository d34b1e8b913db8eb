"""The trainer behind all of BeGin's: its arguments and what they come to."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from maskcl.compat.begin.methods import BARE, Plan, Unit
from maskcl.compat.begin.trainers.keywords import KEYWORDS, checked
from maskcl.compat.begin.trainers.loop import Loop
from maskcl.compat.begin.trainers.running import Run


class BaseTrainer(Loop):
    """Train a model on a scenario's tasks, one after the other; fine-tuning unless told otherwise.

    Args:
        model: a GCNNode, GCNLink, GCNGraph or another GraphModel. A method's trainer converts a
            copy, ``trainer.model``; without a method the model itself is trained.
        scenario: a loader at its first task.
        optimizer_fn: parameters (or groups of them) -> a new optimizer; called here for its rates,
            and for each task.
        loss_fn: outputs, labels -> 0-d loss. Labels of test samples are -1.
        device: "cpu", "cuda", a torch.device, or None for the CPU.
        scheduler_fn: optimizer -> scheduler, stepped with the validation loss (link prediction:
            score) if it is a ReduceLROnPlateau, whose ``min_lr`` then ends a task; None for none.
        benchmark: seed torch, numpy and random with ``seed``, which methods then use too.
        seed: see there.
        full_mode: train the base and the joint model too; INT needs the latter.
        verbose: print the log and the results.
        binary: outputs are scores, not classes; True where the scenario has one class.
        tmp_save_path: folder for ``save_file_name`` with .pkl behind it, the arrays of the result;
            None for no file.
        pretraining: model -> a ``utils.pretraining.PretrainingMethod`` that trains it before the
            first task; None for none.
        kwargs: these, and the method's: see ``unit.keywords``. A subclass with an ``__init__`` of
            its own may take others, and any may name its own in ``keywords``.

    Attributes:
        model: as it trains. method: the hooks that train it.
        tmp_path, result_path: ``tmp_save_path``.
        save_file_name: of this trainer's result.
        init_lrs: see `Start`.
        smax, lamb, threshold, ...: the method's keywords; to set one changes the method.

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
        known = {**KEYWORDS, **self.unit.keywords, **dict.fromkeys(self.keywords)}
        options = checked(type(self), known, kwargs)
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
        self.tmp_path = self.result_path = options["tmp_save_path"]
        self.save_file_name = f"result_{str(time.time()).replace('.', '')}"
        self.pretraining = options["pretraining"]
        self._num_classes = scenario.num_classes
        none = torch.full((max(scenario.num_classes, 2),), -1)
        self._task_of_class = getattr(scenario, "task_of_class", none)
        self._runs: dict[int, Run] = {}
        given, chance = copy.deepcopy(model), torch.get_rng_state()
        self._plan = self._planned(given)
        self.model = self._convert(model).to(self.device)
        self._remember(given, chance, optimizer_fn(list(given.parameters())))
        self._set_method({name: options[name] for name in self.unit.keywords})

    def _planned(self, model: Any) -> Plan:
        """What the method has to know of this run."""
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
        return Plan(
            self.problem,
            self._scenario.incr_type,
            self.num_tasks,
            0 if self.unit.convert is None else model.classifier.num_outputs,
            example,
        )

    def _convert(self, model: Any) -> Any:
        """The model as it trains; without a method itself."""
        convert = self.unit.convert
        if convert is None:
            return model
        return copy.deepcopy(model).to("cpu").converted(lambda core: convert(core, self._plan))

    def _set_method(self, options: Mapping[str, Any]) -> None:
        """Make the method anew, for the run that is going on too."""
        self._method_options = dict(options)
        self.method = self.unit.method(options, self._plan)
        for run in self._runs.values():
            if run.name == "exp":
                run.method = self.method

    def _example(self, model: Any, dataset: Any) -> tuple[Any, ...]:
        """Arguments of the model's core for a few samples."""
        raise NotImplementedError

    def _check_scenario(self, scenario: Any) -> None:
        name = type(self).__name__
        # A loader of the user's own may not say what it is of.
        if self.problem and getattr(scenario, "problem", self.problem) != self.problem:
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
