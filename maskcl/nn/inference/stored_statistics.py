"""Statistics of tasks as they are kept: in a ``state_dict``, in files, forgotten one by one."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.inference.statistics import NAMES, TaskStatistics


class StoredStatistics(nn.Module):
    """Base of TaskInference.

    Args:
        said: the arguments that statistics depend on, a JSON object.

    Attributes:
        statistics: by task, its index as text, a `TaskStatistics`.
        config: uint8, the arguments as text.
    """

    config: Tensor

    def __init__(self, said: dict[str, Any]) -> None:
        super().__init__()
        self.statistics = nn.ModuleDict()
        text = json.dumps(said, sort_keys=True).encode()
        self.register_buffer("config", torch.tensor(list(text), dtype=torch.uint8))

    def arguments(self) -> dict[str, Any]:
        """What it was made with, as a JSON object."""
        return arguments_of(self.config)

    @property
    def tasks(self) -> list[int]:
        """Those that were measured, ascending."""
        return sorted(map(int, self.statistics))

    def of_task(self, task: int) -> dict[str, Tensor]:
        """What it takes to tell a task elsewhere: its statistics and ``config``; {} for nothing."""
        if str(task) not in self.statistics:
            return {}
        return {"config": self.config, **dict(self._of(task).named_buffers())}

    def take(self, task: int, tensors: dict[str, Tensor]) -> None:
        """Take over what `of_task` gave, of another network of the same kind.

        Raises:
            ValueError: something is missing, or it was measured in another way.
        """
        if missing := [name for name in ("config", *NAMES) if name not in tensors]:
            raise ValueError(f"TaskInference: the statistics lack {', '.join(missing)}")
        if not torch.equal(tensors["config"].cpu(), self.config.cpu()):
            raise ValueError(
                "TaskInference: the statistics were made with"
                f" {arguments_of(tensors['config'])}, wanted {self.arguments()}"
            )
        copies = {name: tensors[name].to(self.config.device, copy=True) for name in NAMES}
        found = TaskStatistics(copies)
        if not found.is_whole():
            raise ValueError("TaskInference: the statistics' tensors do not go together")
        self.statistics[str(task)] = found

    def forget(self, task: int) -> None:
        """Drop a task's statistics; nothing of them is anywhere else."""
        if str(task) in self.statistics:
            del self.statistics[str(task)]

    def _of(self, task: int) -> TaskStatistics:
        found = self.statistics[str(task)]
        assert isinstance(found, TaskStatistics)
        return found

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, metadata: Any, strict: bool,
        missing: list[str], unexpected: list[str], errors: list[str],
    ) -> None:  # fmt: skip
        config = state.get(f"{prefix}config")
        if config is not None and not torch.equal(config.cpu(), self.config.cpu()):
            errors.append(
                f"the state's inference was made with {arguments_of(config)}, this one with"
                f" {arguments_of(self.config)}"
            )
            return
        start = f"{prefix}statistics."
        tasks = sorted({k[len(start) :].partition(".")[0] for k in state if k.startswith(start)})
        self.statistics = nn.ModuleDict()
        for task in tasks:
            try:
                self.statistics[task] = TaskStatistics.like(
                    state, f"{start}{task}.", self.config.device
                )
            except KeyError as error:
                missing.append(str(error.args[0]))


def arguments_of(config: Tensor) -> dict[str, Any]:
    """The arguments that a ``config`` buffer says.

    Raises:
        ValueError: it says none.
    """
    said = json.loads(bytes(config.cpu().tolist()))
    if not isinstance(said, dict):
        raise ValueError(f"TaskInference: config says {said!r}, wanted arguments")
    return said
