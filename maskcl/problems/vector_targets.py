"""What regression and multi-label problems share: targets of several numbers for each sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from maskcl.problems.base import Problem, weighted_mean
from maskcl.problems.vision import Vision


class VectorTargets:
    """Learns targets [n, d] with as many outputs; another problem says what samples are.

    Args:
        data: makes the batches: ``Vision()`` of tensors of one shape, the default; ``Graphs()``,
            ``Node()`` or ``Link()``. What it says of classes is not used.

    Raises:
        ValueError: ``data`` draws targets of its own, as link prediction does, or is no problem of
            classes.
    """

    targets: ClassVar[str]
    likelihood: ClassVar[str]

    def __init__(self, data: Problem | None = None) -> None:
        self.data: Any = Vision() if data is None else data
        if getattr(self.data, "targets", None) != "classes" or isinstance(self.data, type):
            raise ValueError(
                f"{type(self).__name__}: data is {data!r}, wanted Vision(), Graphs(), Node() or"
                " Link()"
            )
        if getattr(self.data, "prediction", False):
            raise ValueError(
                f"{type(self).__name__}: data is link prediction, which asks one question of its"
                " own; wanted Vision(), Graphs(), Node() or Link()"
            )

    @property
    def name(self) -> str:
        """Of what the samples are: "vision", "node", "link" or "graph"."""
        return str(self.data.name)

    @property
    def reads_items(self) -> bool:
        """Whether batches are the dataset's items put together, so that workers may read them."""
        return bool(getattr(self.data, "reads_items", False))

    @property
    def adjacency(self) -> str | None:
        """The kind of edges that the network takes; None where samples are no graphs."""
        return getattr(self.data, "adjacency", None)

    @property
    def segments(self) -> Any:
        """Batch -> the sample of each row inside the network; None where each row is one."""
        return getattr(self.data, "segments", None)

    def train_batches(
        self,
        dataset: Any,
        order: Tensor | Sequence[int],
        batch_size: int,
        generator: torch.Generator | None = None,
    ) -> Iterator[Any]:
        """Batches of ``data``, whose last field is the targets [B, d]."""
        return iter(self.data.train_batches(dataset, order, batch_size, generator))

    def num_batches(self, num_samples: int, batch_size: int) -> int:
        """How many batches `train_batches` yields for that many samples."""
        return int(self.data.num_batches(num_samples, batch_size))

    def test_batches(self, inputs: Any, batch_size: int) -> Iterator[Any]:
        """Batches of ``data`` without targets, in order."""
        return iter(self.data.test_batches(inputs, batch_size))

    def forward(self, net: nn.Module, batch: Any) -> tuple[Tensor, Tensor, None]:
        """``(outputs[n, d], target[n, d], None)`` of a batch whose last field is the target.

        Raises:
            ValueError: the network has another number of outputs.
        """
        outputs = net(*batch[:-1])
        return outputs, self._fitting(outputs, batch[-1]), None

    def loss(self, outputs: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The mean over samples and outputs (samples weighted where ``weight[n]`` is given), 0-d.

        Raises:
            ValueError: the target is not of the outputs' shape.
        """
        # In bfloat16 targets would be rounded; what is broadcast would be another loss.
        wide = torch.promote_types(outputs.dtype, torch.float32)
        target = self._fitting(outputs, target).to(wide)
        losses = self._losses(outputs.to(wide), target)
        return losses.mean() if weight is None else weighted_mean(losses.mean(1), weight)

    def predict(self, net: nn.Module, batch: Any) -> Tensor:
        """The outputs [n, d] for a test batch: inputs, or fields of which the last is not used."""
        args = (batch,) if isinstance(batch, Tensor) else batch[:-1]
        outputs: Tensor = net(*args)
        return outputs

    def describe(self) -> dict[str, Any]:
        """All that a result depends on, as a JSON object."""
        return {**self.data.describe(), "output": self.targets}

    def _losses(self, outputs: Tensor, target: Tensor) -> Tensor:
        """[n, d], of one dtype."""
        raise NotImplementedError

    def _fitting(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The target [n, d]; one [n] is that of one output."""
        found = target.unsqueeze(1) if target.dim() == 1 else target
        if outputs.shape != found.shape:
            raise ValueError(
                f"{type(self).__name__}: the network has outputs {list(outputs.shape)}, wanted"
                f" {list(found.shape)}, those of the targets"
            )
        return found
