"""Which tasks have trained, which units they use, and what is locked while another one trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.hat_cl._step_protection import Owner
from maskcl.compat.hat_cl.exceptions import MaskerLockedError
from maskcl.compat.hat_cl.modules.maskers._gate import start_attention
from maskcl.compat.hat_cl.modules.maskers._task_words import any_task, pack
from maskcl.compat.hat_cl.modules.maskers._tensor_cache import TensorCache
from maskcl.compat.hat_cl.types_ import ForgetResult, Mask


class Locks(nn.Module, Owner):
    """A masker's tasks: trained, locked, forgotten."""

    attention: nn.ParameterList
    get_binary_mask: Callable[..., Tensor]
    _task_trained: Tensor
    _init_strat: str
    _attn_clamp: float

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._cache = TensorCache()

    @property
    def num_tasks(self) -> int:
        """How many tasks it has masks for."""
        return len(self.attention)

    @property
    def num_features(self) -> int:
        """How many units it masks."""
        return self.attention[0].shape[0]

    @property
    def trained_task_ids(self) -> list[int]:
        """Tasks that have trained."""
        # Read back from the device only after it was written.
        flags = self._task_trained
        return self._cache.get("trained", (flags,), lambda: flags.nonzero().flatten().tolist())

    def locked_tasks(
        self, task_id: int | None, locked_task_ids: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Tasks that must not change while ``task_id`` trains, in order.

        Args:
            task_id: the task that trains.
            locked_task_ids: these; None: all trained ones but it.

        Raises:
            MaskerLockedError: it is among them.
        """
        if locked_task_ids is None:
            return tuple(k for k in self.trained_task_ids if k != task_id)
        if task_id in locked_task_ids:
            raise MaskerLockedError(
                f"task {task_id} trains and is among locked_task_ids {list(locked_task_ids)}"
            )
        return tuple(sorted(set(locked_task_ids)))

    def get_locked_mask(self, task_id: int, locked_task_ids: Sequence[int] | None = None) -> Mask:
        """Units that any locked task uses, bool [U]; arguments as for `locked_tasks`."""
        return (self.words(self.locked_tasks(task_id, locked_task_ids)) != 0).any(-1)

    def words(self, tasks: tuple[int, ...]) -> Tensor:
        """Which of ``tasks`` use each unit, int64 [U, W]."""
        rows = [self.attention[k] for k in tasks]

        def make() -> Tensor:
            masks = {k: self.get_binary_mask(k) for k in tasks}
            return pack(masks, self.num_features, self.num_tasks, self.attention[0].device)

        return self._cache.get(("words", tasks), rows, make)

    def free_units(self, locked: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """1 for each unit that no locked task uses, [U] floating, and their number, 0-d."""
        words = self.words(locked)

        def make() -> tuple[Tensor, Tensor]:
            free = (words == 0).all(-1).to(torch.float32)
            return free, free.sum()

        return self._cache.get(("free", locked), (words,), make)

    @torch.no_grad()
    def forget(
        self,
        task_id: int,
        dry_run: bool = False,
        module_name: str | None = None,
        locked_task_ids: list[int] | None = None,
    ) -> ForgetResult:
        """Draw the task's attention anew; it counts as never trained.

        Raises:
            IndexError: it has not trained.
        """
        if task_id not in self.trained_task_ids:
            raise IndexError(
                f"HATMasker: task {task_id} has not trained, there is nothing to forget"
            )
        if not dry_run:
            self._task_trained[task_id] = False
            start_attention(self.attention[task_id], self._init_strat, self.num_tasks)
        forgotten = torch.zeros(self.num_tasks, self.num_features, dtype=torch.bool)
        forgotten[task_id] = True
        return ForgetResult(**{f"{module_name or type(self).__name__}.attention": forgotten})

    def get_forgettable_mask(
        self, task_id: int, locked_task_ids: list[int] | None = None
    ) -> tuple[Mask, Mask, Mask]:
        """Units of the task alone, units of the task, and units of locked tasks, bool [U] each."""
        locked = self.locked_tasks(task_id, locked_task_ids)
        words = self.words((*locked, task_id))
        mine, others = any_task(words, (task_id,)), any_task(words, locked)
        return mine & ~others, mine, others

    def own_parameters(self) -> list[list[nn.Parameter]]:
        """By task, its attention."""
        return [[attention] for attention in self.attention]

    @torch.no_grad()
    def bound(self, task: int) -> None:
        """Keep the attention where its gate still has a gradient (HAT, section 2.5)."""
        self.attention[task].clamp_(-self._attn_clamp, self._attn_clamp)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._cache.clear()
        return super()._apply(fn, recurse)
