"""Which tasks use which units: one bit a task and unit, in buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.tasks.state import WORD, TaskState


class TaskBits(nn.Module):
    """The stored masks of a backbone's tasks, as bits.

    Bit k % 64 of word k // 64 of a unit says that the k-th stored task uses it. All that is
    asked of the masks is worked out from the bits, and kept until they change; unless sums over the
    tasks have been assigned, which then count in place of the bits' and go on with what is stored.

    Attributes:
        bits: int64 [U, W], a buffer.
        task_ids: int64 [n] IDs of the stored tasks, in the order of their bits, a buffer.
        assigned_cumulative: int64 [U], a cumulative mask that was assigned; else [0]. A buffer.
        assigned_summative: int64 [U], a summative mask that was assigned; else [0]. A buffer.
    """

    bits: Tensor
    task_ids: Tensor
    assigned_cumulative: Tensor
    assigned_summative: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bits", torch.zeros(0, 1, dtype=torch.int64))
        self.register_buffer("task_ids", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("assigned_cumulative", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("assigned_summative", torch.zeros(0, dtype=torch.int64))
        self._state = TaskState()

    def stored(self) -> list[int]:
        """IDs of the stored tasks."""
        return self._state.kept("stored", self.task_ids.tolist, (self.task_ids,))

    @torch.no_grad()
    def store(self, task_id: int, used: Tensor) -> None:
        """Record the units that a task uses, in the place of an earlier record.

        Args:
            task_id: of the task.
            used: bool [U].
        """
        ids = self.stored()
        place = ids.index(task_id) if task_id in ids else len(ids)
        words = max(self.bits.shape[1], place // WORD + 1)
        bits = torch.zeros(len(used), words, dtype=torch.int64, device=used.device)
        if len(self.bits):
            bits[:, : self.bits.shape[1]] = self.bits
        bit = torch.ones((), dtype=torch.int64, device=used.device) << (place % WORD)
        column = bits[:, place // WORD]
        bits[:, place // WORD] = torch.where(used, column | bit, column & ~bit)
        # New tensors: what a step before has looked up (rates, for one) stays as it was.
        self.bits = bits
        if place == len(ids):
            added = self.task_ids.new_tensor([task_id])
            self.task_ids = torch.cat([self.task_ids, added])

    def add_to_assigned(self, used: Tensor) -> None:
        """Let assigned sums go on with the units, bool [U], of a task that has ended."""
        if len(self.assigned_cumulative):
            self.assigned_cumulative = self.assigned_cumulative | used
        if len(self.assigned_summative):
            self.assigned_summative = self.assigned_summative + used

    def replace(self, masks: Mapping[int, Tensor]) -> None:
        """Forget all stored masks, and record these: task ID -> bool [U]."""
        self.bits, self.task_ids = self.bits.new_zeros(0, 1), self.task_ids.new_zeros(0)
        for task_id, used in masks.items():
            self.store(task_id, used)

    def mask(self, task_id: int, dtype: torch.dtype) -> Tensor:
        """The stored mask of a task, 0 or 1, [U].

        Raises:
            ValueError: the task has none.
        """
        ids = self.stored()
        if task_id not in ids:
            raise ValueError(
                f"task {task_id!r} has no stored mask, those that have one: {ids or 'none'}"
            )
        return self._kept(f"mask {task_id} {dtype}", lambda: self._column(task_id).to(dtype))

    def _column(self, task_id: int) -> Tensor:
        place = self.stored().index(task_id)
        return (self.bits[:, place // WORD] >> (place % WORD)) & 1

    def cumulative(self, units: int, dtype: torch.dtype) -> Tensor:
        """1 where any stored task uses the unit, [U]."""
        if len(self.assigned_cumulative):
            return self.assigned_cumulative.to(dtype)
        if not len(self.bits):
            return torch.zeros(units, dtype=dtype, device=self.bits.device)
        return self._kept(f"cumulative {dtype}", lambda: (self.bits != 0).any(1).to(dtype))

    def summative(self, units: int, dtype: torch.dtype) -> Tensor:
        """How many stored tasks use the unit, [U]."""

        def count() -> Tensor:
            columns = [self._column(task_id) for task_id in self.stored()]
            return torch.stack(columns).sum(0).to(dtype)

        if len(self.assigned_summative):
            return self.assigned_summative.to(dtype)
        if not len(self.bits):
            return torch.zeros(units, dtype=dtype, device=self.bits.device)
        return self._kept(f"summative {dtype}", count)

    def protecting(self, summative: bool) -> tuple[Tensor, int]:
        """Bits [U, W] as protection takes them, and of how many tasks.

        Args:
            summative: an assigned summative mask counts, as for AdaHAT, else a cumulative one. Its
                n tasks of a unit are bits 0 to n - 1, so that of two units the smaller number of
                tasks use both.
        """
        counts = self.assigned_summative if summative else self.assigned_cumulative
        if not len(counts):
            return self.bits, len(self.task_ids)
        tasks = int(counts.max())
        words = torch.arange(max(1, -(-tasks // WORD)), device=counts.device) * WORD
        inside = (counts[:, None] - words).clamp(0, WORD)
        # A shift by 64 is none.
        ones = (torch.ones_like(inside) << inside.clamp(max=WORD - 1)) - 1
        return torch.where(inside == WORD, -1, ones), tasks

    def kept(self, name: str, make: Callable[[], Any], tensors: Sequence[Tensor]) -> Any:
        """What ``make`` returned, until one of ``tensors`` is another (``TaskState.kept``)."""

        def make_for_training() -> Any:
            # A test in inference mode may be the first to ask, and autograd takes no such tensors.
            with torch.inference_mode(False), torch.no_grad():
                return make()

        return self._state.kept(name, make_for_training, tensors)

    def sources(self) -> tuple[Tensor, ...]:
        """All buffers: what is worked out from them is kept until one is another."""
        return tuple(self.buffers())

    def _kept(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        return self.kept(name, make, (self.bits, self.task_ids))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        # How many tasks and words there are is the file's to say; an older one has none assigned.
        for name, own in list(self.named_buffers()):
            if name.startswith("assigned") and f"{prefix}task_ids" in state_dict:
                state_dict.setdefault(prefix + name, own[:0])
            found = state_dict.get(prefix + name)
            if isinstance(found, Tensor):
                setattr(self, name, torch.zeros(found.shape, dtype=own.dtype, device=own.device))
        super()._load_from_state_dict(state_dict, prefix, *args, **options)
