"""A frozen network's masks: what is recorded of each task, compared, exchanged and saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.piggyback.cut import NO_CUT, Cut, MaskState, check_levels
from maskcl.nn.piggyback.frozen_base import base_hash, base_state, freeze
from maskcl.nn.piggyback.layers import PIGGYBACK_LAYERS
from maskcl.nn.piggyback.mask_words import check_all_words, differing_bits, off_shares
from maskcl.nn.piggyback.masked_layer import PiggybackLayer
from maskcl.nn.tasks.active import ActiveTask
from maskcl.nn.tasks.bits import fingerprints, partial_hashes
from maskcl.nn.tasks.kept_bits import KeptBits
from maskcl.nn.tasks.later_tasks import LaterTasks
from maskcl.nn.tasks.model_structure import ModelStructure
from maskcl.nn.tasks.network import check_members, numbers_where
from maskcl.nn.tasks.own_parts import (
    all_parameters,
    holders,
    own_modules,
    own_parameters,
    shared_modules,
    train_only,
)
from maskcl.shard_sums import total
from maskcl.shards import is_sharded, local, span


class RecordedMasks(LaterTasks):
    """What a PiggybackNetwork knows of its tasks' masks; base of it, for its arguments see there.

    Attributes:
        finished: bool [T].
        levels: of all masks.
    """

    _state: MaskState
    _structure: ModelStructure

    def __init__(self, model: nn.Module, num_tasks: int, *, levels: str = "binary") -> None:
        super().__init__(model, num_tasks)
        check_levels("PiggybackNetwork", levels)
        check_members("PiggybackNetwork", model, num_tasks)
        self.levels = levels
        self._check_layers()
        freeze(model)
        self._state.bind(model)
        self._structure = ModelStructure(model)
        self.register_load_state_dict_post_hook(_after_loading)
        self.register_state_dict_pre_hook(_take_shards)

    @property
    def layers(self) -> dict[str, PiggybackLayer]:
        """The layers with masks, by name below ``model``."""
        return {n: m for n, m in shared_modules(self.model) if isinstance(m, PIGGYBACK_LAYERS)}

    @property
    def masked_share(self) -> float:
        """Share of the weights that tasks have in common which masks reach, in [0, 1]."""
        masked = sum(layer.weight.numel() for layer in self.layers.values())
        others = sum(parameter.numel() for parameter in self.unmasked_weights().values())
        return masked / max(masked + others, 1)

    def unmasked_weights(self) -> dict[str, nn.Parameter]:
        """By name below ``model``, weights (2 dimensions at least) with neither mask nor task."""
        lists = [held for _, held in holders(self.model)]
        own = {id(p) for p in all_parameters(*lists)}
        own |= {id(p) for layer in self.layers.values() for p in (layer.weight, layer.scores)}
        found = self.model.named_parameters()
        return {name: p for name, p in found if p.dim() > 1 and id(p) not in own}

    @property
    def training_task(self) -> int | None:
        """The task between begin_task and finish_task, None where there is none."""
        return None if self._state.cut is None else self._state.cut.task

    def task_parameters(self, task: int) -> list[nn.Parameter]:
        """What a task trains: its scores if it is in training, its norms' affine and its head."""
        self._check_task("task_parameters", task)
        self._reshard()
        scores = self.scores() if self.training_task == task else []
        return [*scores, *own_parameters(self.model, task)]

    def scores(self) -> list[nn.Parameter]:
        """Scores of the task in training, in the order of ``layers``; [] where there is none."""
        found = []
        for layer in self.layers.values():
            layer.check_scores()
            if layer.scores is not None:
                found.append(layer.scores)
        return found

    def words(self, task: int) -> dict[str, Tensor]:
        """A finished task's masks by layer, a copy: int32 [W], or [2, W] for the ternary levels.

        Raises:
            RuntimeError: the task is not finished.
        """
        self._check_task("words", task)
        if not bool(self.finished[task]):
            raise RuntimeError(f"PiggybackNetwork.words: task {task} is not finished")
        self.take_shards()
        return {name: layer.words_of(task).clone() for name, layer in self.layers.items()}

    @torch.no_grad()
    def set_words(self, task: int, words: Mapping[str, Tensor]) -> None:
        """Take a task's masks as they are, and mark it finished.

        Args:
            task: neither finished nor in training.
            words: as :meth:`words` gives them, for every layer; bits past a weight's end are 0.

        Raises:
            RuntimeError: the task is finished or in training.
            ValueError, TypeError: words do not fit; nothing has changed then.
        """
        self._check_open("set_words", task)
        if self.training_task == task:
            raise RuntimeError(
                f"PiggybackNetwork.set_words: task {task} is in training;"
                f" net.forget_task({task}) gives it up"
            )
        check_all_words("PiggybackNetwork.set_words", words, self.layers)
        self._record(task, {n: layer.cut_words(words[n]) for n, layer in self.layers.items()})

    def off(self, task: int) -> dict[str, float]:
        """Share of each layer's weights that a task's mask turns off; waits for the device.

        Of a finished task, or of the one in training as its scores are now.

        Raises:
            RuntimeError: the task is neither.
        """
        return off_shares(self._words_now("off", task), self.layers)

    def differing(self, first: int, second: int) -> float:
        """Share of all weights whose masks differ between two tasks; waits for the device.

        Raises:
            RuntimeError: a task is neither finished nor in training.
        """
        a, b = (self._words_now("differing", task) for task in (first, second))
        total = sum(layer.weight.numel() for layer in self.layers.values())
        return differing_bits(a, b, self.layers) / max(total, 1)

    def masked_modules(self) -> list[nn.Module]:
        """The layers whose weights carry masks."""
        return list(self.layers.values())

    def _kept_now(self) -> KeptBits | None:
        """The base, and the finished tasks' words, norms and heads."""
        without = [f"model.{n}.{kind}" for n in self.layers for kind in ("scores", "words")]
        kept = self._state_fingerprints(without)
        if kept is None:
            return None
        for name, layer in self.layers.items():
            kept.own[f"model.{name}.words[{{}}]"] = _hashes(layer, kept.done)
        return kept

    def _reshard(self) -> None:
        super()._reshard()
        if self.is_sharded:
            for layer in self.layers.values():
                layer.shard_words()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._reshard()  # never the whole of what only a part is kept of
        return super()._apply(fn, recurse)

    def base_hash(self) -> str:
        """sha256 of all that every task shares, in hexadecimal; masks fit no other base.

        Names, dtypes, shapes and values of weights, biases, frozen norms with their statistics and
        all other parameters and persistent buffers, but no masks, task norms or heads.
        """
        return base_hash(self.model)

    def lasting_state(self) -> dict[str, dict[str, slice | None]]:
        """As of any network; each task's masks are its own, those of tasks to come are zeros."""
        found = super().lasting_state()
        for task in range(self.num_tasks):
            rows = {f"model.{name}.words": slice(task, task + 1) for name in self.layers}
            found.setdefault(f"task-{task}", {}).update(rows)
        return found

    def _base_names(self) -> list[str]:
        return [f"model.{name}" for name in base_state(self.model)]

    def own_state(self, task: int) -> dict[str, Tensor]:
        """A task's head and norms by their names in the ``state_dict``, not copied.

        Every task has the same number of them, in the same order.
        """
        self._check_task("own_state", task)
        found: dict[str, Tensor] = {}
        for name, module in own_modules(self.model, task):
            found |= module.state_dict(prefix=f"model.{name}.")
        return found

    def get_extra_state(self) -> Tensor:
        """How the task in training is cut, for the ``state_dict``: see ``Cut.numbers``."""
        return (self._state.cut or NO_CUT).numbers()

    def set_extra_state(self, state: Tensor) -> None:
        """Take :meth:`get_extra_state`'s numbers over."""
        cut = Cut.of(state)
        self._state.cut = None if cut == NO_CUT else cut

    def _records(self) -> dict[str, tuple[int, int, float]]:
        words = {f"model.{name}.words": (0, self.num_tasks, 0) for name in self.layers}
        return super()._records() | words

    def _follow_model(self) -> None:
        for layer in self.layers.values():
            layer.num_tasks = self.num_tasks
        super()._follow_model()
        self._settle()

    def _new_state(self) -> MaskState:
        return MaskState()

    def _check_layers(self) -> None:
        if not self.layers:
            raise ValueError("PiggybackNetwork: the model has no piggyback layer to mask")
        for name, layer in self.layers.items():
            if layer.levels != self.levels:
                raise ValueError(
                    f"PiggybackNetwork: module {name!r} has levels {layer.levels!r}, wanted"
                    f" {self.levels!r}"
                )

    def _refresh(self) -> None:
        """Follow ``finished``, which may have been loaded, moved or broadcast."""
        if torch.compiler.is_compiling():
            return
        finished: Any = self._buffers["finished"]
        last, seen = self._state.cache.get("done", (None, -1))
        if last is finished and seen == finished._version:  # every `with net.task(k)` asks
            return
        # Fingerprints made in inference mode could take no part in training later.
        with torch.inference_mode(False), torch.no_grad():
            done = numbers_where(finished)
            self._state.done = frozenset(done)
            if done == self._done:  # a copy of the same: what was changed meanwhile stays so
                self._changed()
            else:
                self._follow_finished()
        self._state.cache["done"] = finished, finished._version

    def _new_active(self, task: int, scale: Tensor | None) -> ActiveTask:
        self._refresh()
        return super()._new_active(task, scale)

    def _fill(self, active: ActiveTask) -> None:
        super()._fill(active)
        cut = self._state.cut
        active.record = cut if cut is not None and cut.task == active.task else None

    def _settle(self) -> None:
        """After a change of tasks: what is finished, and what requires gradients."""
        self._refresh()
        trained = [] if self.training_task is None else self.task_parameters(self.training_task)
        train_only(all_parameters(self), trained)
        self._changed()

    def _record(self, task: int, words: Mapping[str, Tensor]) -> None:
        """Keep a task's words, which are of sharded layers this process's."""
        for name, layer in self.layers.items():
            layer.own_words(task).copy_(words[name])
        if self.training_task == task:
            self._drop_scores()
        for parameter in own_parameters(self.model, task):
            parameter.grad = None
        self.finished[task] = True
        self._settle()

    def _drop_scores(self) -> None:
        self._state.cut = None
        for layer in self.layers.values():
            layer.scores = None

    def _packed_scores(self, cut: Cut) -> dict[str, Tensor]:
        self.scores()  # which are a task's own
        found = self.layers.items()
        return {name: layer.cut_words(layer.packed_scores(cut)) for name, layer in found}

    def _words_now(self, caller: str, task: int) -> dict[str, Tensor]:
        self._check_task(caller, task)
        self._refresh()
        if task in self._state.done:
            return {name: layer.own_words(task) for name, layer in self.layers.items()}
        cut = self._state.cut
        if cut is None or cut.task != task:
            raise RuntimeError(
                f"PiggybackNetwork.{caller}: task {task} is neither finished nor in training"
            )
        return self._packed_scores(cut)


def _hashes(layer: PiggybackLayer, done: list[int]) -> Tensor:
    """Fingerprints of the finished tasks' words, int64 [len(done)]."""
    words: Tensor = layer.words
    if not is_sharded(words):
        rows = words.flatten(1).unbind()
        return fingerprints([rows[task] for task in done])
    own, (_, planes, count), start = local(words)[done], words.shape, span(words, 2).start
    parts = (partial_hashes(own[:, p], 4 * (p * count + start)) for p in range(planes))
    return total(torch.stack([*parts]).sum(0), [words])


def _take_shards(net: RecordedMasks, *_: Any) -> None:
    net._reshard()


def _after_loading(net: RecordedMasks, incompatible_keys: Any) -> None:
    """Follow a loaded state: what is finished, in training and frozen."""
    with_scores = [name for name, layer in net.layers.items() if layer.scores is not None]
    wanted = [] if net.training_task is None else list(net.layers)
    if with_scores != wanted:
        raise RuntimeError(
            f"PiggybackNetwork: the loaded state has scores for {len(with_scores)} layers, wanted"
            f" {len(wanted)} for the task in training ({net.training_task})"
        )
    if (cut := net._state.cut) is not None:  # of a state with other scores, perhaps
        net._state.cut = cut.seen_by(net.scores()[0].dtype, net.levels)
    net._settle()
