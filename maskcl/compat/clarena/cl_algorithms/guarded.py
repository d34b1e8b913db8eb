"""The masks of an algorithm's stored tasks, and the guard of its optimizer's steps."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maskcl.compat.clarena.backbones import HATMaskBackbone
from maskcl.compat.clarena.backbones.handed_masks import HandedMasks, Masks, TaskMasks
from maskcl.compat.clarena.backbones.protection import LayerProtection, protect_behind
from maskcl.compat.clarena.cl_algorithms.base import CLAlgorithm
from maskcl.compat.clarena.heads.kinds import kind_of
from maskcl.optim import Guard, guard


class GuardedAlgorithm(CLAlgorithm):
    """What keeps the weights that stored tasks use."""

    backbone: HATMaskBackbone
    adjustment_mode: str
    _exact: bool
    _guards: tuple[Guard, ...] = ()
    # The task, the optimizer and the masks that they are of.
    _guarded: tuple[Any, ...] = ()

    @property
    def masks(self) -> TaskMasks:
        """Task ID -> layer -> stored mask; copies, which can be assigned to."""
        return self.backbone.masks

    @masks.setter
    def masks(self, value: Mapping[Any, Masks]) -> None:
        self.backbone.masks = value  # type: ignore[assignment]

    @property
    def cumulative_mask_for_previous_tasks(self) -> HandedMasks[str, Tensor]:
        """Layer -> 1 where any stored task uses the unit; copies, which can be assigned to.

        What is assigned protects weights in place of the stored masks, and tasks that end later
        add to it, until {} is assigned. It is a part of ``state_dict``.
        """
        write = functools.partial(self._assign, "cumulative")
        return HandedMasks(self.backbone.get_cumulative_mask(), write)

    @cumulative_mask_for_previous_tasks.setter
    def cumulative_mask_for_previous_tasks(self, value: Mapping[str, Tensor]) -> None:
        self._assign("cumulative", value)

    def _assign(self, name: str, masks: Mapping[str, Tensor]) -> None:
        self.backbone.assign_sum(name, f"{name}_mask_for_previous_tasks", masks)

    def guard_optimizer(self, optimizer: Any) -> None:
        """Let the optimizer leave alone what is protected, unless it does so already."""
        # Lightning wraps optimizers; hooks are the inner one's.
        inner = getattr(optimizer, "optimizer", optimizer)
        now = (self.task_id, inner, *self.backbone.task_bits.sources())
        if len(self._guarded) == len(now) and all(a is b for a, b in zip(self._guarded, now)):
            return
        self.release_optimizer()
        self._guarded = now
        both = [self.backbone.protection(), self.head_protection()]
        self._guards = tuple(guard(inner, p, exact=self._exact) for p in both if p is not None)

    def release_optimizer(self) -> None:
        """Let the optimizer do as it would."""
        for held in self._guards:
            held.remove()
        self._guards, self._guarded = (), ()

    def head_protection(self) -> LayerProtection | None:
        """What stored tasks need of a head that all tasks share; None where each has its own."""
        if kind_of(self.heads) != "DIL":
            return None
        backbone, head = self.backbone, self.heads.get_head()
        bits, tasks = backbone.task_bits.protecting(summative=False)
        last, spans = backbone.weighted_layer_names[-1], backbone.unit_spans()
        return protect_behind("heads.head", head, last, bits, spans, tasks)
