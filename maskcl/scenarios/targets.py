"""Targets that are no classes, as a person's datasets hold them: values, and labels of 0 and 1."""

from __future__ import annotations

from torch import Tensor

from maskcl.scenarios.base import ScenarioError

_WANTED = {
    "values": "[n] or [n, d], a number or d numbers for each example",
    "multilabel": "[n, L], 0 or 1 for each of L labels",
}


def check_targets(found: Tensor, targets: str, where: str) -> Tensor:
    """A set's targets as the scenario holds them: values floating [n, d], labels int64 [n, L].

    Whole numbers are values like any other, float32. Labels may be of any dtype that holds 0 and 1.

    Args:
        found: of all examples.
        targets: "values" or "multilabel".
        where: begins messages, such as "datasets: task 0's training".

    Raises:
        ScenarioError: another shape, complex numbers, a value that is not finite, a label that is
            neither 0 nor 1; the first such example is named.
    """
    shape = list(found.shape)
    if targets == "values" and found.dim() == 1:
        found = found.unsqueeze(1)
    if found.dim() != 2 or found.shape[1] == 0:
        raise ScenarioError(f"{where} targets have shape {shape}, wanted {_WANTED[targets]}")
    if found.is_complex():
        raise ScenarioError(f"{where} targets are {found.dtype}, wanted real numbers")
    found = found.detach().cpu()
    if targets == "values":
        values = found if found.is_floating_point() else found.float()
        _refuse(~values.isfinite(), values, where, "a finite number")
        return values if values.element_size() >= 4 else values.float()
    _refuse((found != 0) & (found != 1), found, where, "0 or 1")
    return found.long()


def check_widths(train: Tensor, test: Tensor, where: str) -> None:
    """Raise ScenarioError unless a task's training and test targets have as many numbers."""
    if train.shape[1] != test.shape[1]:
        raise ScenarioError(
            f"{where} training targets have {train.shape[1]} numbers and its test targets"
            f" {test.shape[1]}, wanted as many"
        )


def _refuse(wrong: Tensor, found: Tensor, where: str, wanted: str) -> None:
    if bool(wrong.any()):
        example, column = wrong.nonzero()[0].tolist()
        value = found[example, column].item()
        raise ScenarioError(f"{where} target {example} holds {value:g}, wanted {wanted}")
