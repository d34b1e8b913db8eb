"""What a network of tasks does where nobody says which task a sample is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskcl.nn.inference.task_inference import Inferred, TaskInference
from maskcl.nn.tasks.answers import answers
from maskcl.nn.tasks.unlearning import Removed, gone
from maskcl.sharded_modules import class_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from maskcl.nn.tasks.active import Entering


class Inferring(nn.Module):
    """Base of TaskNetwork.

    Attributes:
        inference: what tells tasks apart; None for nothing.
    """

    inference: TaskInference | None
    if TYPE_CHECKING:  # of TaskNetwork
        task: Callable[[int], Entering[Any]]
        _check_task: Callable[[str, int], None]
        _device: Callable[[], torch.device]

    def __init__(self) -> None:
        super().__init__()
        self.inference = None

    def infer(self, *args: Any) -> Inferred:
        """The task of each sample by ``net.inference``, and the output under its mask; see there.

        Args:
            args: of the forward, on the network's device.

        Raises:
            RuntimeError: there is no ``net.inference``, no task is finished, or one that is was not
                measured.
            ValueError: the arguments are not as it wants them.
        """
        return self._inference("infer").infer(self, *args)

    def measure_task(self, task: int, data: Any) -> None:
        """Let ``net.inference`` gather a task's statistics; the methods' ``end_task`` does.

        Args:
            task: in training, or finished.
            data: a ``methods.TaskData`` of all its training samples.

        Raises:
            RuntimeError: there is no ``net.inference``.
            ValueError: the samples are not as it wants them.
        """
        self._check_task("measure_task", task)
        self._inference("measure_task").measure(self, task, data)

    def answers(
        self, task: Tensor, classes: dict[int, Tensor], args: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """Outputs and labels of samples, each under its task's mask: see ``tasks.answers``."""
        return answers(lambda k, given: self._answer(k, classes[k], given), task, classes, args)

    def masked_modules(self) -> list[nn.Module]:
        """Those whose output differs between tasks by a mask; [] where there is none."""
        return []

    def check_space(self, space: str) -> None:
        """Raise ValueError unless the network has what an inference of this space measures."""
        if space == "base":
            self.check_base()
        if space == "masked" and not self.masked_modules():
            raise ValueError(
                f"TaskInference: space is 'masked', and {class_name(self)} has no masked"
                " layer, wanted 'shared'"
            )

    def base_rows(self, args: tuple[Any, ...]) -> Tensor:
        """What the heads are given where no mask removes anything, [R, ...]; see `check_base`."""
        self.check_base()
        raise NotImplementedError

    def check_base(self) -> None:
        """Raise ValueError unless there is a frozen base whose features no task changes."""
        raise ValueError(
            f"TaskInference: space is 'base', and {class_name(self)} has no frozen base,"
            " wanted a PiggybackNetwork, or space 'shared'"
        )

    def _answer(self, task: int, classes: Tensor, args: tuple[Any, ...]) -> Tensor:
        with self.task(task):
            return self(*args)

    def _inference(self, caller: str) -> TaskInference:
        if self.inference is None:
            raise RuntimeError(
                f"{class_name(self)}.{caller}: net.inference is None, wanted a"
                " maskcl.TaskInference, put there before the first task ends"
            )
        return self.inference

    def _forget_statistics(self, task: int) -> dict[str, Removed]:
        """Drop what was measured of a task; the record of it, by name in the ``state_dict``."""
        if self.inference is None:
            return {}
        tensors = self.inference.of_task(task)
        tensors.pop("config", None)
        self.inference.forget(task)
        return {
            f"inference.statistics.{task}.{name}": gone(tensor) for name, tensor in tensors.items()
        }

    def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
        config = state.get(f"{prefix}inference.config")
        if config is not None and self.inference is None:
            self.inference = TaskInference.of(config).to(self._device())
        super()._load_from_state_dict(state, prefix, *args)
