"""Which units each task uses: HAT's record of tasks, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.hat.capacity import Capacity
from maskcl.nn.hat.embedding import CLOSED, check_init, new_embedding
from maskcl.nn.hat.protection import Protection, protect
from maskcl.nn.hat.reading_hooks import let_hooks_read_only
from maskcl.nn.hat.shared_parameters import shared_parameters
from maskcl.nn.hat.topology import Topology
from maskcl.nn.tasks.kept_bits import KeptBits, not_finite
from maskcl.nn.tasks.later_tasks import LaterTasks
from maskcl.nn.tasks.model_structure import ModelStructure
from maskcl.nn.tasks.narrow import numbers_of
from maskcl.nn.tasks.own_parts import own_modules, own_parameters, shared_modules
from maskcl.nn.tasks.state import WORD
from maskcl.shards import whole, write


@dataclass(frozen=True)
class TaskUnits:
    """What decides about one task's masks, as tensors: views that follow the network's.

    Attributes:
        embedding: [U], the task's.
        bits: int64 [U], the word of each unit's tasks that the task's bit is in.
        shift: int64 0-d, of that bit.
        finished: bool 0-d.
        free_share: [U], (1 - u) / sum (1 - u) of eq. 5; zeros where no unit is free.
    """

    embedding: nn.Parameter
    bits: Tensor
    shift: Tensor
    finished: Tensor
    free_share: Tensor

    def hard_mask(self) -> Tensor:
        """Units that the task uses, bool [U]: as recorded, else embedding > 0."""
        recorded = ((self.bits >> self.shift) & 1) != 0
        return torch.where(self.finished, recorded, whole(self.embedding) > 0)


class UnitTasks(LaterTasks):
    """Base of ForgettingTasks: the tasks' embeddings and bits, from begin to end.

    Attributes:
        embeddings: one float32 [U] a task, all layers' units one after the other.
        tasks: int64 [U, W]; bit k % 64 of word k // 64: finished task k uses the unit.
        topology: which units reach which parameter.
        units: layer name -> its slice of U.
        init: how embeddings start.
    """

    init: str
    tasks: Tensor
    embeddings: nn.ParameterList
    topology: Topology
    units: dict[str, slice]
    _structure: ModelStructure
    _sizes: list[int]

    def _build_units(self, init: str) -> None:
        device = self._device()
        self.init = init
        count = sum(self._sizes)
        self.embeddings = nn.ParameterList(
            nn.Parameter(torch.empty(count, device=device)) for _ in range(self.num_tasks)
        )
        words = self._records()["tasks"][1]
        self.register_buffer("tasks", torch.zeros(count, words, dtype=torch.int64, device=device))
        for k in range(self.num_tasks):
            self.reset_embedding(k, init)

    def _records(self) -> dict[str, tuple[int, int, float]]:
        return super()._records() | {"tasks": (1, -(-self.num_tasks // WORD), 0)}

    def _state_of(self, tasks: Iterable[int]) -> dict[str, Tensor]:
        tasks = list(tasks)
        own = {f"embeddings.{task}": self._embedding(task).detach() for task in tasks}
        return own | super()._state_of(tasks)

    def _add_records(self, first: int) -> None:
        super()._add_records(first)
        for task in range(first, self.num_tasks):
            self.embeddings.append(nn.Parameter(torch.empty_like(self.embeddings[0])))
            self.reset_embedding(task, self.init)

    def begin_task(self, task: int, *, check: bool = True) -> None:
        """Let what the task trains require gradients, and nothing else; all gradients are dropped.

        Args:
            task: not finished.
            check: whether finished tasks have to be what they were.

        Raises:
            RuntimeError: the task is finished, or finished tasks are not what they were.
            ConversionError: the model is not the one that was followed; nothing has changed then.
        """
        self._check_open("begin_task", task)
        self._structure.check("HATNetwork.begin_task", self.model)
        let_hooks_read_only(self._modules_for(task))
        if check:
            self.check_kept("HATNetwork.begin_task")
        super().begin_task(task)

    @torch.no_grad()
    def finish_task(self, task: int, *, check: bool = True) -> None:
        """Record the units with embedding > 0 as the task's, and freeze all that is its own.

        Args:
            task: not finished.
            check: whether the tasks before have to be what they were.

        Raises:
            RuntimeError: it is finished already, or finished tasks are not what they were.
            ConversionError: the model is not the one that was followed; nothing has changed then.
        """
        self._check_open("finish_task", task)
        self._structure.check("HATNetwork.finish_task", self.model)
        if check:
            self.check_kept("HATNetwork.finish_task")
        bits = (whole(self.embeddings[task]) > 0).to(torch.int64) << (task % WORD)
        self.tasks[:, task // WORD] |= bits
        self.finished[task] = True
        for parameter in (self.embeddings[task], *own_parameters(self.model, task)):
            parameter.requires_grad_(False)
        self._follow_finished()

    def _modules_for(self, *tasks: int) -> Iterator[tuple[str, nn.Module]]:
        """Names below ``model`` and modules: what tasks share, and what these have."""
        yield from shared_modules(self.model)
        for task in tasks:
            for name, module in own_modules(self.model, task):
                yield from module.named_modules(prefix=name)

    def _follow_model(self) -> None:
        let_hooks_read_only(self.model.named_modules())
        super()._follow_model()

    def task_parameters(self, task: int) -> list[nn.Parameter]:
        """What a task trains: the shared weights, its embedding, its norms' affine and its head."""
        self._check_task("task_parameters", task)
        self._reshard()
        return [
            *shared_parameters(self.model),
            self.embeddings[task],
            *own_parameters(self.model, task),
        ]

    @torch.no_grad()
    def reset_embedding(
        self, task: int, init: str = "normal", generator: torch.Generator | None = None
    ) -> None:
        """Draw a task's embedding anew; ``init`` as for the class, ``generator`` on the CPU.

        Raises:
            RuntimeError: the task is finished.
        """
        self._check_open("reset_embedding", task)
        check_init(init)
        write(self.embeddings[task], self._new_embedding(task, init, generator))

    def hard_mask(self, task: int) -> Tensor:
        """Units that a task uses, bool [U]: as recorded by finish_task, else embedding > 0."""
        self._check_task("hard_mask", task)
        return self._units_of(task).hard_mask()

    def used(self) -> Tensor:
        """Units that any finished task uses, bool [U]."""
        return self._used().clone()

    def _used(self) -> Tensor:
        return self._state.kept("used", lambda: (self.tasks != 0).any(1), (self.tasks,))

    def capacity(self) -> Capacity:
        """By layer, the share of units that finished tasks use; with counts of what is free.

        It also says what forgetting a task would free; see `Capacity`. It waits for the device.
        """
        return Capacity(self.units, self.tasks, self.protection())

    def _kept_now(self) -> KeptBits | None:
        """Elements whose two ends one task uses, tasks' norms, heads and bits, what is frozen."""
        protection = self.protection()
        kept = self._state_fingerprints([*protection.names, "embeddings"])
        if kept is not None:
            kept.shared |= protection.fingerprints()
        return kept

    def _changed_since(self, caller: str) -> str | None:
        problem = super()._changed_since(caller)
        if problem is not None or self._kept is None:
            return problem
        protection = self.protection()
        parameters = map(torch.Tensor.detach, protection.parameters)
        return not_finite(caller, dict(zip(protection.names, parameters, strict=True)))

    def protection(self) -> Protection:
        """What the finished tasks need of the shared parameters, from the bits as they are now."""
        self._reshard()
        parameters = shared_parameters(self.model)

        def make() -> Protection:
            return protect(self.model, self.topology, self.tasks, self.finished)

        return self._state.kept("protection", make, (self.tasks, self.finished, *parameters))

    def _units_of(self, task: int) -> TaskUnits:
        # Every `with net.task(k)` asks: what was found last is found by a few comparisons.
        tasks, finished = self._buffers["tasks"], self._buffers["finished"]
        embedding = self._embedding(task)
        assert tasks is not None and finished is not None
        name = f"last units {task}"
        seen = tasks._version, finished._version
        last = self._state.cache.get(name)
        if (
            last is not None
            and last[0] is tasks
            and last[1] is finished
            and last[2] is embedding
            and last[3] == seen
        ):
            units: TaskUnits = last[4]
            return units

        def make() -> TaskUnits:
            bits = tasks[:, task // WORD]
            shift = torch.tensor(task % WORD, device=bits.device)
            return TaskUnits(embedding, bits, shift, finished[task], self._free_share(embedding))

        units = self._state.kept(f"units {task}", make, (tasks, finished, embedding))
        self._state.cache[name] = tasks, finished, embedding, seen, units
        return units

    def _free_share(self, like: Tensor) -> Tensor:
        """(1 - u) / sum (1 - u) of eq. 5 in the dtype of ``like``: the same for all tasks."""
        tasks = self.tasks

        def make() -> Tensor:
            free = (tasks == 0).all(1).to(like.dtype)
            return free / free.sum().clamp_min(1)

        share: Tensor = self._state.kept(f"free share {like.dtype}", make, (tasks,))
        return share

    def _new_embedding(self, task: int, init: str, generator: torch.Generator | None) -> Tensor:
        """As a task starts, units that came after it was finished closed."""
        new = new_embedding(sum(self._sizes), init, generator)
        seen = self._state.narrow.get(task, {})
        for name, span in self.units.items() if seen else ():
            layer: Any = self.model.get_submodule(name)
            if (narrow := seen.get(layer.place)) is not None and narrow.out is not None:
                part = new[span]
                kept = torch.tensor(numbers_of(narrow.out))
                part.copy_(torch.full_like(part, CLOSED).index_copy_(0, kept, part[kept]))
        return new

    def _embedding(self, task: int) -> nn.Parameter:
        # By the way that ``self.embeddings[task]`` goes, which takes several times as long.
        found = self._modules["embeddings"]._parameters[str(task)]  # type: ignore[union-attr]
        assert found is not None
        return found
