"""From logits to a loss and to predictions: what all problems share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn.tasks.heads import sees_one_class
from maskcl.problems.base import weighted_mean

OUTPUTS = ("label", "score")


class Classification:
    """Cross-entropy over classes, or of one logit whose sign answers a yes-or-no question.

    Args:
        output: what `predict` gives: ``label``, int64 [n]; or ``score``, floating [n], larger for
            what is more likely positive: the one logit, or that of class 1 minus that of class 0.

    Raises:
        ValueError: no such output.
    """

    name: str
    targets: ClassVar[str] = "classes"
    likelihood: ClassVar[str] = "categorical"
    reads_items = False

    def __init__(self, output: str = "label") -> None:
        if output not in OUTPUTS:
            raise ValueError(
                f"{type(self).__name__}: output is {output!r}, wanted one of {', '.join(OUTPUTS)}"
            )
        self.output = output

    def forward(self, net: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """``(logits[n, classes], target[n], weight)`` of a batch whose last field is the target.

        The weight is None but for the one class of a head that grows: its probability is 1 whatever
        the logit, so all weights are 0, and the loss.
        """
        logits, target = net(*batch[:-1]), batch[-1]
        if logits.shape[1] == 1 and sees_one_class(net):
            return logits, self.predictions(logits.detach()), torch.zeros_like(logits[:, 0])
        return logits, target, None

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The mean over samples (weighted where ``weight[n]`` is given), 0-d; 0 without weight."""
        if logits.shape[1] == 1:
            wanted = target.to(logits.dtype)
            losses = F.binary_cross_entropy_with_logits(logits[:, 0], wanted, reduction="none")
        elif weight is None:
            return F.cross_entropy(logits, target)
        else:
            losses = F.cross_entropy(logits, target, reduction="none")
        return losses.mean() if weight is None else weighted_mean(losses, weight)

    def predict(self, net: nn.Module, batch: Any) -> Tensor:
        """Labels or scores, [n], for a test batch, whose target is None.

        Raises:
            ValueError: scores are asked for, and there are more than two classes.
        """
        logits = net(*batch[:-1])
        if logits.shape[1] == 1 and sees_one_class(net):
            return torch.zeros_like(logits[:, 0], dtype=torch.long)
        if self.output == "label":
            return self.predictions(logits)
        if logits.shape[1] > 2:
            raise ValueError(
                f"{type(self).__name__}: output is 'score' and the network has {logits.shape[1]}"
                " outputs, wanted one or two"
            )
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]

    def predictions(self, logits: Tensor) -> Tensor:
        """The class with the largest logit; with one logit, whether it is above 0. int64 [n]."""
        return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(dim=1)

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """How many samples have their own class predicted, int64, 0-d."""
        return (self.predictions(logits) == target).count_nonzero()

    def num_batches(self, num_samples: int, batch_size: int) -> int:
        """How many batches `train_batches` yields for that many samples."""
        full, rest = divmod(num_samples, batch_size)
        return full + int(rest > 1 or full == 0)

    def describe(self) -> dict[str, Any]:
        """All that a result depends on, as a JSON object."""
        return {"name": self.name, **vars(self)}

    def _parts(self, order: Tensor | Sequence[int], batch_size: int) -> Iterator[Tensor]:
        """``order`` cut into batches, int64 [<= batch_size + 1].

        A single sample that would be left over joins the batch before it: batch statistics of
        one sample do not exist.
        """
        rows = torch.as_tensor(order)
        last = self.num_batches(len(rows), batch_size) - 1
        for i in range(last + 1):
            yield rows[i * batch_size : len(rows) if i == last else (i + 1) * batch_size]
