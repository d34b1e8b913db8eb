"""BeGin's base of loaders, for those of one's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import Tensor


class BaseScenarioLoader:
    """Tasks one after the other, and the scores of predictions for them.

    A loader of one's own says what the first three functions below do, and the three that give
    scores. A trainer reads ``num_tasks``, ``num_classes``, ``incr_type`` and ``_curr_task``.

    Args:
        dataset_name: of the data.
        save_path: folder with the files.
        num_tasks: how many.
        incr_type: "task", "class", "domain" or "time".
        metric: such as "accuracy".
        kwargs: what else a loader takes.

    Attributes:
        num_feats, num_classes, num_tasks: of the scenario, once it is there.
        kwargs: those that were given.
        dataset_load_func: the one among them, or None.
        initial_test_result: scores [T + 1] of the untrained model, which FWT needs, or None.
        export_mode: whether tasks go by without scores.
    """

    num_classes: int
    num_feats: int
    num_tasks: int
    _target_dataset: Any = None
    _accumulated_dataset: Any = None

    def __init__(
        self,
        dataset_name: str,
        save_path: str | os.PathLike[str] | None = None,
        num_tasks: int | None = None,
        incr_type: str = "task",
        metric: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.dataset_name, self.save_path, self.incr_type = dataset_name, save_path, incr_type
        self.num_tasks, self.metric, self.kwargs = num_tasks or 0, metric, kwargs
        self.dataset_load_func: Callable[..., Any] | None = kwargs.get("dataset_load_func")
        self._curr_task = 0
        self.initial_test_result: Tensor | None = None
        self.export_mode = False
        self._init_continual_scenario()
        self._update_target_dataset()
        self._update_accumulated_dataset()

    def __len__(self) -> int:
        return self.num_tasks

    def _init_continual_scenario(self) -> None:
        """Load the data and cut them into tasks."""
        raise NotImplementedError

    def _update_target_dataset(self) -> None:
        """Make ``_target_dataset`` the current task's."""
        raise NotImplementedError

    def _update_accumulated_dataset(self) -> None:
        """Make ``_accumulated_dataset`` that of all tasks up to the current one."""
        raise NotImplementedError

    def get_current_dataset(self) -> Any:
        """The current task's data; None after the last task."""
        return self._target_dataset if self._curr_task < self.num_tasks else None

    def get_accumulated_dataset(self) -> Any:
        """The data of all tasks up to the current one; None after the last task."""
        return self._accumulated_dataset if self._curr_task < self.num_tasks else None

    def get_eval_result(self, preds: Tensor, target_split: str = "test") -> Tensor:
        """Scores [T + 1] of predictions for the current dataset's ``val`` or ``test`` samples."""
        raise NotImplementedError

    def get_accum_eval_result(self, preds: Tensor, target_split: str = "test") -> Tensor:
        """As `get_eval_result`, for the accumulated dataset."""
        raise NotImplementedError

    def get_simple_eval_result(self, curr_batch_preds: Tensor, curr_batch_gts: Tensor) -> float:
        """The metric of a batch whose labels are known."""
        raise NotImplementedError

    def next_task(self, preds: Tensor | None = None) -> dict[str, Any] | None:
        """Go on to the next task.

        Args:
            preds: for the current dataset's test samples; here they are not looked at.

        Returns:
            Of a loader that keeps scores, after the last task: ``exp_results`` [T, T + 1], ``AP``,
            ``AF`` and ``FWT``.
        """
        self._curr_task += 1
        if self._curr_task < self.num_tasks:
            self._update_target_dataset()
            self._update_accumulated_dataset()
        return None

    def get_current_dataset_for_export(self, _global: bool = False) -> Any:
        """What `export_dataset` says of the current task, or of all together."""
        return None

    def export_dataset(self, full: bool = True) -> dict[str, Any]:
        """The scenario as a dict of tensors, for programs that do without loaders and trainers.

        Args:
            full: with ``tasks``, one dict a task; the loader is at its end then.

        Returns:
            ``global``, and ``tasks`` by their number; see the loaders.

        Raises:
            RuntimeError: full, and the loader is not at its first task.
        """
        if full and self._curr_task != 0:
            raise RuntimeError(
                f"export_dataset: the scenario is at task {self._curr_task}, wanted a new one"
            )
        found: dict[str, Any] = {"global": self.get_current_dataset_for_export(_global=True)}
        if full:
            self.export_mode, found["tasks"] = True, {}
            while self._curr_task < self.num_tasks:
                found["tasks"][self._curr_task] = self.get_current_dataset_for_export()
                self.next_task()
        return found
