"""Mammoth (Boschini et al. 2022, arXiv 2201.00766): a model of its zoo, task-incremental.

``models/masks.py`` in a checkout of Mammoth needs one line, ``from maskcl.integrations.mammoth
import MaskModel``; then ``--model maskcl --mask_method hat`` is one of its models;
docs/integrations/mammoth.md.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.integrations.task_training import TaskTraining
from maskcl.methods import EWC, HAT, MAS, Piggyback, TaskData
from maskcl.nn import TaskNetwork, to_hat, to_importance, to_piggyback

try:
    from models.utils.continual_model import (  # type: ignore[import-not-found]
        ContinualModel,
    )
except ImportError as error:
    raise ImportError(
        f"maskcl.integrations.mammoth needs Mammoth (found no {error.name}): import it inside a"
        " checkout of github.com/aimagelab/mammoth, which is no package, with its requirements"
    ) from error

__all__ = ["MaskModel"]

_METHODS: dict[str, Any] = {"hat": HAT, "piggyback": Piggyback, "mas": MAS, "ewc": EWC}


class MaskModel(ContinualModel):
    """HAT, Piggyback, MAS or EWC on the dataset's backbone, with a head for each task.

    Command line: ``--mask_method`` names the method, ``--mask_options`` its arguments as JSON, such
    as ``{"sparsity": 0.5}``, ``--mask_head`` the backbone's output layer where that is not its last
    ``nn.Linear``.

    Args:
        backbone: converted, so that all its layers are masked but the head.
        loss: of a head's outputs and labels from 0.
        args: Mammoth's.
        transform: Mammoth's.
        dataset: that says how many tasks and classes there are.

    Raises:
        ValueError: there is no dataset, or the method has no such option or value.
        ConversionError: the backbone cannot be converted; the sentence says why.
    """

    NAME = "maskcl"
    COMPATIBILITY = ["task-il"]  # noqa: RUF012

    @staticmethod
    def get_parser(parser: Any) -> Any:
        """The options of this model."""
        parser.add_argument("--mask_method", choices=sorted(_METHODS), required=True)
        parser.add_argument("--mask_options", type=_options, default="{}")
        parser.add_argument("--mask_head", default=None)
        return parser

    def __init__(
        self, backbone: nn.Module, loss: Any, args: Any, transform: Any, dataset: Any = None
    ) -> None:
        if dataset is None:
            raise ValueError("MaskModel: dataset is None, wanted the one that Mammoth trains on")
        try:
            method = _METHODS[args.mask_method](**args.mask_options)
        except TypeError as error:
            raise ValueError(f"MaskModel: mask_options: {error}") from error
        self.method = method
        self.run: Any = None  # the TaskTraining of the task that has begun
        net = _converted(backbone, method, args.mask_head, dataset)
        super().__init__(net, loss, args, transform, dataset=dataset)

    def get_optimizer(self, params: Any = None, lr: float | None = None) -> Any:
        """Mammoth's, of the task's parameters and protected once a task has begun."""
        run: TaskTraining | None = self.run
        if params is None and run is not None:
            params = self.method.parameter_groups(self.net, run.task)
        optimizer = super().get_optimizer(params, lr)
        if run is not None:
            run.protect([optimizer])
        return optimizer

    def begin_task(self, dataset: Any) -> None:
        """Begin the task, with an optimizer of its own in the place of the one made before."""
        seed = 0 if self.args.seed is None else self.args.seed
        self.run = TaskTraining(self.method, self.net, self.current_task, seed)
        self.opt = self.get_optimizer()
        self._steps = len(dataset.train_loader)
        steps = max(self._steps * self.args.n_epochs, 1)
        self.method.check_plan(self.net, self.run.state, self.opt, steps)

    def observe(
        self, inputs: Tensor, labels: Tensor, not_aug_inputs: Tensor, epoch: int | None = None
    ) -> float:
        """One step."""
        run = self.run
        if not run.holds([self.opt]):
            run.protect([self.opt])
        first, _ = self.get_offsets(run.task)
        run.before_step(epoch or 0, self.args.n_epochs, self.epoch_iteration, self._steps)
        self.opt.zero_grad()
        loss = self.loss(run.forward(inputs), labels - first) + run.term
        loss.backward()
        run.after_backward()
        self.opt.step()
        run.after_step()
        return loss.item()

    def end_task(self, dataset: Any) -> None:
        """Finish the task; its outputs keep their bits from here on."""
        first, _ = self.get_offsets(self.run.task)

        def batches() -> Iterator[Any]:
            for inputs, labels, *_ in dataset.train_loader:
                yield inputs.to(self.device), labels.to(self.device, torch.long) - first

        self.run.end(TaskData(batches))
        self.run = None

    def forward(self, x: Tensor, task_label: int | None = None) -> Tensor:
        """Outputs [N, all classes] under the task's mask, -inf for the other tasks' classes."""
        if task_label is None:
            raise ValueError("MaskModel: task_label is None, wanted the task of the samples")
        with self.net.task(task_label):
            outputs = self.net(x)
        first, end = self.get_offsets(task_label)
        all_classes = outputs.new_full((len(x), self.num_classes), -math.inf)
        all_classes[:, first:end] = outputs
        return all_classes


def _options(given: Any) -> dict[str, Any]:
    """A word of the command line; Mammoth sends defaults here too, such as a checkpoint's dict."""
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{given!r} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"{given!r} is no JSON object, wanted {{name: value}}")
    return found


def _converted(backbone: nn.Module, method: Any, head: str | None, dataset: Any) -> TaskNetwork:
    """The network of tasks that the method wants."""
    tasks, each = dataset.N_TASKS, dataset.N_CLASSES_PER_TASK
    classes = [each] * tasks if isinstance(each, int) else list(each)
    if isinstance(method, HAT):  # it finds the head by the way of the units
        example = torch.zeros(2, _channels(backbone, dataset.SIZE), *dataset.SIZE)
        return to_hat(backbone, tasks, example, classes=classes)
    if isinstance(method, Piggyback):
        return to_piggyback(backbone, tasks, classes=classes, head=head, levels=method.levels)
    return to_importance(backbone, tasks, classes=classes, head=head)


def _channels(backbone: nn.Module, size: tuple[int, int]) -> int:
    """Of the images that the backbone's first layer takes."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            return module.in_channels
        if isinstance(module, nn.Linear):
            return max(module.in_features // math.prod(size), 1)
    raise ValueError(f"MaskModel: {type(backbone).__name__} has no convolution or linear layer")
