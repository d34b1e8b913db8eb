"""How ``forward`` of algorithms and backbones was called in versions before 1.1."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


@functools.cache
def takes_test_mask(forward: Callable[..., Any]) -> bool:
    """Whether a backbone's forward has ``test_mask``, as before 1.1, and no ``test_task_id``."""
    parameters = inspect.signature(forward).parameters
    others = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return "test_mask" in parameters and "test_task_id" not in parameters and not others


def is_before_1_1(self: Any, *args: Any) -> bool:
    """Whether an algorithm's are (input, stage, batch_idx, num_batches, task_id).

    A batch is one of num_batches and the task in training is the current one, which tells the two
    orders apart.
    """
    if len(args) != 5:
        return False
    stage, first, second, third = args[1:]
    if stage != "train":
        return first is None and second is None and third is not None
    if not all(isinstance(value, int) for value in (first, second, third)):
        return False
    is_todays = first == self.task_id and second < third
    return third == self.task_id and first < second and not is_todays
