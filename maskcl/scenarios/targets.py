"""Targets that are no classes, from a person's datasets: values, and labels of 0 and 1."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.items import Given
from maskcl.scenarios.target_values import WANTED, target_reasons


def check_pair(train: Given, test: Given, targets: str) -> tuple[Tensor, Tensor]:
    """A task's training and test targets as the scenario holds them.

    Values are float32 (float64) [n, d], whole numbers among them. Labels are int64 [n, L], from any
    dtype that holds 0 and 1. Both are copies.

    Args:
        train: training items.
        test: test items.
        targets: "values" or "multilabel".

    Raises:
        ScenarioError: another shape, no real numbers, a value that is not finite, a label that is
            neither 0 nor 1, of which the first is named; a test set with other numbers of them.
    """
    found, scored = (_checked(given, targets) for given in (train, test))
    if found.shape[1] != scored.shape[1]:
        raise ScenarioError(
            f"{test.where} has {scored.shape[1]} numbers as the target of an item, and its training"
            f" set {found.shape[1]}, wanted as many"
        )
    return found, scored


def _checked(given: Given, targets: str) -> Tensor:
    values, where = given.targets, given.where
    if values.dtype.kind not in "fiub":
        what = "real numbers" if values.dtype.kind == "c" else "numbers, as many for each item"
        raise ScenarioError(f"{where}: targets are not {what}; wanted {WANTED[targets]}")
    is_wide = values.dtype.kind == "f" and values.dtype.itemsize > 4
    found = torch.from_numpy(np.array(values, np.float64 if is_wide else np.float32, order="C"))
    if targets == "values" and found.dim() == 1:
        found = found.unsqueeze(1)
    if (reason := target_reasons(found, targets)) is not None:
        raise ScenarioError(f"{where}: {reason}")
    return found if targets == "values" else found.long()
