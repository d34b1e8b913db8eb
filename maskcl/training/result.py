"""What a run measured."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maskcl.report import write_run
from maskcl.training.inference_scores import InferenceScores
from maskcl.validation import ContentError, check

# Of what `to_dict` gives; a ? marks what runs of before lack. Figures may be NaN.
_FORM = {
    "matrix": [[Any]],
    "untrained": [Any],
    "losses": [[Any]],
    "accuracies": [[Any]],
    "seconds": [float],
    "measures?": [{str: {str: float}}],
    "free?": [[Any]],
    "validation?": [[Any]],
    "best_epochs?": [(int, None)],
}


@dataclasses.dataclass
class Result:
    """What a run measured. T tasks.

    Attributes:
        matrix: [T, T], M[i, j] the score on task j after training task i; NaN where that says
            nothing (later tasks that have heads of their own), and where task i was finished before
            and so was task i + 1.
        untrained: [T], scores of the network before training; NaN likewise.
        losses: for each task, the mean loss of each epoch.
        accuracies: for each task, the training accuracy of each epoch (soft masks, in [0, 1]); of
            multi-label targets the share of labels that are right; [] of regression.
        seconds: for each task, time in training and evaluation.
        inference: what a run that infers tasks measured beside; None for others.
        free: for each task, the share of its capacity that is free after each epoch (HAT); [] where
            the method has none.
        validation: for each task, the score on its held-out samples after each epoch, in [0, 1] (of
            regression minus the loss); [] where none are held out.
        best_epochs: for each task the epoch with the best of these, from 0; None likewise.
        measures: after each task trained here, what the method measures: name -> part of the
            network -> number.
    """

    matrix: np.ndarray
    untrained: np.ndarray
    losses: list[list[float]]
    accuracies: list[list[float]]
    seconds: list[float]
    measures: list[dict[str, dict[str, float]]] = dataclasses.field(default_factory=list)
    inference: InferenceScores | None = None
    free: list[list[float]] = dataclasses.field(default_factory=list)
    validation: list[list[float]] = dataclasses.field(default_factory=list)
    best_epochs: list[int | None] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._content: Callable[[], dict[str, Any]] | None = None
        tasks = len(self.losses)  # runs of before these lists have none of them
        self.free = self.free or [[] for _ in range(tasks)]
        self.validation = self.validation or [[] for _ in range(tasks)]
        self.best_epochs = self.best_epochs or [None] * tasks

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle takes along: figures, not the run that they are of."""
        return {**self.__dict__, "_content": None}

    def described_by(self, content: Callable[[], dict[str, Any]]) -> Result:
        """The same, which can be reported: ``content`` makes what result.json holds."""
        self._content = content
        return self

    def report(self, folder: str | os.PathLike[str]) -> Path:
        """Write result.json, report.html and its pictures, as ``maskcl train`` does.

        The network is described as it is when this is called.

        Args:
            folder: is made, with those above it, where there is none. In one that is there, files
                of these names are replaced and all others stay.

        Returns:
            The path of report.html.

        Raises:
            RuntimeError: this is a copy, or was read from a file: only what ``fit`` returns knows
                its run.
            ImportError: matplotlib is missing; nothing is written then.
            OSError: the folder cannot be written to.
        """
        if self._content is None:
            raise RuntimeError(
                "Result.report: this result does not know its run: call report on what"
                " Trainer.fit returned, not on a copy"
            )
        return write_run(self._content, folder)

    @property
    def capacity(self) -> list[dict[str, float]]:
        """HAT: after each task, layer -> share of its units that finished tasks use."""
        return self.measured("capacity")

    @property
    def protected(self) -> list[dict[str, float]]:
        """HAT: after each task, parameter -> share of its elements that are protected."""
        return self.measured("protected")

    @property
    def off(self) -> list[dict[str, float]]:
        """Piggyback: for each task, layer -> share of its weights that the task's mask removes."""
        return self.measured("off")

    def measured(self, name: str) -> list[dict[str, float]]:
        """One of the method's measures after each task; empty where the method has none such."""
        return [after[name] for after in self.measures if name in after]

    @classmethod
    def empty(cls, tasks: int) -> Result:
        """A result with nothing measured yet."""
        nan = np.full((tasks, tasks), np.nan)
        blank: list[list[list[float]]] = [[[] for _ in range(tasks)] for _ in range(2)]
        return cls(nan, nan[0].copy(), blank[0], blank[1], [0.0] * tasks)

    def with_room(self, tasks: int) -> Result:
        """The same with more tasks, of which nothing is measured yet."""
        new, count = Result.empty(tasks), len(self.matrix)
        new.matrix[:count, :count], new.untrained[:count] = self.matrix, self.untrained
        new.losses[:count], new.accuracies[:count] = self.losses, self.accuracies
        new.seconds[:count], new.measures = self.seconds, self.measures
        new.free[:count], new.validation[:count] = self.free, self.validation
        new.best_epochs[:count] = self.best_epochs
        new.inference = None if self.inference is None else self.inference.with_room(tasks)
        return new

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        found = copy.deepcopy(self.to_facts())
        for values in (found, found.get("inference", {})):
            arrays = {name: v.tolist() for name, v in values.items() if isinstance(v, np.ndarray)}
            values.update(arrays)
        return found

    def to_facts(self) -> dict[str, Any]:
        """The same, nothing copied: matrices are arrays."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.inference is None:
            del values["inference"]  # runs without it are written as they always were
            return values
        scores = dataclasses.fields(self.inference)
        return values | {"inference": {f.name: getattr(self.inference, f.name) for f in scores}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """The result that `to_dict` came from.

        Raises:
            ContentError: it came from something else.
        """
        check(values, _FORM, "the result")
        tasks = len(values["matrix"])
        for name in ("untrained", "losses", "accuracies", "seconds"):
            if len(values[name]) != tasks:
                raise ContentError(f"the result has {tasks} tasks and {len(values[name])} {name}")
        for name in ("losses", "accuracies", "free", "validation"):
            if any(np.array(part, dtype=np.float64).ndim != 1 for part in values.get(name, [])):
                raise ContentError(f"the result's {name} are no lists of numbers")
        arrays = {k: np.array(values[k], dtype=np.float64) for k in ("matrix", "untrained")}
        inferred = values.get("inference")
        scores = None if inferred is None else InferenceScores.from_dict(inferred)
        return cls(**{**values, **arrays, "inference": scores})
