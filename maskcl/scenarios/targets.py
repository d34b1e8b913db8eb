"""Targets that are no classes, as a person's datasets hold them: values, and labels of 0 and 1."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.items import Given

_WANTED = {
    "values": "[n] or [n, d], a number or d numbers for each example",
    "multilabel": "[n, L], 0 or 1 for each of L labels",
}


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
        shown = "other things" if values.dtype.kind == "O" else str(values.dtype)
        raise ScenarioError(
            f"{where}: targets are {shown}, wanted {_WANTED[targets]}, and as many for each item"
        )
    shape = list(values.shape)
    is_wide = values.dtype.kind == "f" and values.dtype.itemsize > 4
    found = torch.from_numpy(np.array(values, np.float64 if is_wide else np.float32, order="C"))
    if targets == "values" and found.dim() == 1:
        found = found.unsqueeze(1)
    if found.dim() != 2 or found.shape[1] == 0:
        raise ScenarioError(f"{where}: targets have the shape {shape}, wanted {_WANTED[targets]}")
    if targets == "values":
        _refuse(~found.isfinite(), found, where, "a finite number")
        return found
    _refuse((found != 0) & (found != 1), found, where, "0 or 1")
    return found.long()


def _refuse(wrong: Tensor, found: Tensor, where: str, wanted: str) -> None:
    if bool(wrong.any()):
        example, column = wrong.nonzero()[0].tolist()
        value = found[example, column].item()
        raise ScenarioError(f"{where}: item {example} has {value:g} in its target, wanted {wanted}")
