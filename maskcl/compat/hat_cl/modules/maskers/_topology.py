"""Which masks come before a masker's, and how a checkpoint keeps that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.hat_cl.exceptions import HATInitializationError
from maskcl.compat.hat_cl.layout import Layout
from maskcl.compat.hat_cl.modules.maskers._input_masks import Feeds
from maskcl.compat.hat_cl.modules.maskers._task_words import WORD, any_task
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.types_ import Mask

IN_TASKS, DEPTH = "in_tasks", "depth"


class Topology(nn.Module):
    """What a masker knows of the network around it; learnt in its forwards, kept in ``state_dict``.

    ``state_dict`` has ``in_tasks``, int64 [I, W]: the trained tasks that use each input of the
    layer ([1, W] of -1 where all use all), and ``depth``, both once they are known. A checkpoint
    without them loads too.
    """

    mask_dim: int | None
    trained_task_ids: list[int]
    _task_trained: Tensor
    _settled: tuple[int, ...] | None
    locked_tasks: Callable[..., tuple[int, ...]]
    infer_mask_dim: Callable[..., int]
    attention: nn.ParameterList
    _depth: int | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.feeds = Feeds()
        self._prev_maskers: list[Topology] | None = None

    def meet(self, pld: HATPayload, shape: torch.Size, feature_dim: int) -> None:
        """Remember what came in: its masks say which inputs a task uses."""
        self.feeds.add(pld, shape, feature_dim)

    def succeed(self, prev_maskers: list[Topology] | None) -> list[Any]:
        """Remember the maskers before this one; returns what comes before the next."""
        known = self._prev_maskers or []
        new = [m for m in prev_maskers or [] if not any(m is k for k in known)]
        if new or self._prev_maskers is None:
            self._prev_maskers = [*known, *new]
            self._depth = None
        return [self]

    @property
    def depth(self) -> int:
        """Maskers in front of this one, along the path of the first that was met.

        Raises:
            HATInitializationError: no forward has shown it.
        """
        if self._prev_maskers is None and self._depth is None:
            raise HATInitializationError("HATMasker.depth: run a forward of the network first")
        if self._depth is None:
            self._depth = self._prev_maskers[0].depth + 1 if self._prev_maskers else 0
        return self._depth

    def mask_dimension(self, data: Tensor, layout: Layout | None) -> int:
        """The dimension of ``data`` that the mask lies along.

        The masker's own ``mask_dim``; else where the layer put the units; else the one that has the
        mask's size.
        """
        if self.mask_dim is not None:
            return self.mask_dim % data.dim()
        if layout is not None and not layout.mixed and not layout.ops:
            return layout.dim
        return self.infer_mask_dim(data, self.attention[0])

    def in_words(self, tasks: tuple[int, ...]) -> Tensor | None:
        """Which of ``tasks`` use each input, int64 [I, W]; None where all use all.

        Raises:
            HATInitializationError: no forward has shown it.
        """
        try:
            return self.feeds.words(tasks)
        except LookupError:
            raise HATInitializationError(
                "HATMasker: which masks come before this layer's is not known; run a forward of the"
                " network, or load a state_dict that was saved after one"
            ) from None

    def get_prev_forgettable_mask(
        self, task_id: int, locked_task_ids: list[int] | None = None
    ) -> Mask:
        """Inputs that the task uses and no locked task does, bool [I]; [1] where all use all."""
        locked = self.locked_tasks(task_id, locked_task_ids)
        words = self.in_words((*locked, task_id))
        if words is None:
            return torch.ones(1, dtype=torch.bool, device=self.attention[0].device)
        return any_task(words, (task_id,)) & ~any_task(words, locked)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        try:
            words = self.feeds.words(tuple(self.trained_task_ids))
        except LookupError:
            return
        if words is None:
            flags = self._task_trained
            words = torch.full((1, -(-flags.numel() // WORD)), -1, device=flags.device)
        destination[prefix + IN_TASKS] = words
        destination[prefix + DEPTH] = torch.tensor(self.depth)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        words, depth = (state_dict.pop(prefix + name, None) for name in (IN_TASKS, DEPTH))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._settled = None
        if words is not None and not self.feeds.known:
            self.feeds.saved = words.detach().clone().to(self._task_trained.device)
            self._depth = None if depth is None else int(depth)
