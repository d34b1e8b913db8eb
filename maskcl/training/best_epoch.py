"""The best epoch of a task so far, and the network as it was then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskcl.checkpoint import CheckpointError

if TYPE_CHECKING:
    from maskcl.nn.tasks.network import TaskNetwork


class BestEpoch:
    """What validation has found of the task in training.

    Args:
        net: whose task has begun.
        keep: whether the network of the best epoch is kept, to be restored.

    Attributes:
        epoch: the best one, from 0; None before the first.
        score: of it.
        loss: of it; of equal scores the lower loss is better.
        rose: the last epoch whose score was above all before it.
    """

    def __init__(self, net: TaskNetwork, *, keep: bool) -> None:
        self._net, self._keep = net, keep
        self.epoch: int | None = None
        self.rose = 0
        self.score, self.loss = float("-inf"), float("inf")
        self._kept: dict[str, Tensor] = {}

    @torch.no_grad()
    def offer(self, epoch: int, score: float, loss: float) -> None:
        """Tell of an epoch that has just ended."""
        if self.epoch is not None and (score, -loss) <= (self.score, -self.loss):
            return
        if score > self.score:
            self.rose = epoch
        self.epoch, self.score, self.loss = epoch, score, loss
        if self._keep:
            for name, tensor in self._learned().items():
                if name in self._kept:
                    self._kept[name].copy_(tensor)
                else:
                    self._kept[name] = tensor.detach().clone()

    def is_over(self, epoch: int, patience: int | None) -> bool:
        """Whether in ``patience`` epochs, the last of them ``epoch``, the score has not risen."""
        return patience is not None and epoch - self.rose >= patience

    @torch.no_grad()
    def restore(self) -> None:
        """Put the network of the best epoch back, where it was kept."""
        if self._kept:
            for name, tensor in self._learned().items():
                tensor.copy_(self._kept[name])
            self._net._changed()

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint inside the task needs: tensors and a JSON object."""
        names = ("epoch", "rose", "score", "loss")
        return dict(self._kept), {name: getattr(self, name) for name in names}

    def load_state_dict(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Take over `state_dict`'s result, after the network is what it was.

        Raises:
            CheckpointError: it is of another network.
        """
        wanted = self._learned() if self._keep else {}
        fits = tensors.keys() == wanted.keys() and all(
            tensors[name].shape == t.shape and tensors[name].dtype == t.dtype
            for name, t in wanted.items()
        )
        numbers = [facts.get(name) for name in ("epoch", "rose", "score", "loss")]
        if not fits or not all(isinstance(number, (int, float)) for number in numbers):
            raise CheckpointError("the checkpoint's best epoch is of another network")
        self.epoch, self.rose = facts["epoch"], facts["rose"]
        self.score, self.loss = facts["score"], facts["loss"]
        self._kept = {name: tensors[name].to(t.device, copy=True) for name, t in wanted.items()}

    def _learned(self) -> dict[str, Tensor]:
        """What the task may change: parameters that learn, and the model's buffers."""
        found: dict[str, Tensor] = {
            name: p for name, p in self._net.named_parameters() if p.requires_grad
        }
        saved = self._net.state_dict().keys()
        found |= {
            name: buffer
            for name, buffer in self._net.named_buffers()
            if name.startswith("model.") and name in saved
        }
        return found
