"""What layers with a mask a task for their weights share: frozen weights, scores, and bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl import ops
from maskcl.nn.piggyback.cut import NO_CUT, Cut, MaskState, check_levels, planes
from maskcl.nn.tasks.state import TaskAware
from maskcl.reference.bitmask import num_words
from maskcl.reference.gate import compute_dtype
from maskcl.sharded_modules import class_name
from maskcl.shards import gather, is_sharded, local, placed, shard, span, whole, write


class PiggybackLayer(TaskAware):
    """What the layers share: a frozen weight and bias, one task's scores, every task's bits.

    Attributes:
        weight, bias: parameters that take no gradient.
        scores: parameter of the weight's shape while a task trains, else None. float32 (float64 for
            a float64 weight), or bfloat16 where ``begin_task`` was told so; they stay so when the
            layer becomes half or bfloat16.
        words: int32 [T, P, W], one bit a weight and task; P = 2 for the ternary levels (not 0, and
            negative), else 1. See ``ops.pack_mask``. Under ``fully_shard`` a DTensor cut along W.
        num_tasks: T.
        levels: "binary", "ternary", "ternary_symmetric" or "topk".
    """

    _network = "PiggybackNetwork"
    # What nn.Linear, nn.ConvNd or nn.Embedding, the other base of each subclass, brings.
    weight: Tensor
    scores: nn.Parameter | None
    words: Tensor
    # The scores as they were made, in a tuple, where they are no second parameter.
    _started: tuple[nn.Parameter, ...] = ()

    def _add_masks(self, num_tasks: int, levels: str) -> None:
        name = class_name(self)
        if not isinstance(num_tasks, int) or num_tasks < 1:
            raise ValueError(f"{name}: num_tasks is {num_tasks!r}, wanted at least 1")
        check_levels(name, levels)
        self.num_tasks = num_tasks
        self.levels = levels
        self.requires_grad_(False)
        self.register_parameter("scores", None)
        shape = num_tasks, planes(levels), num_words(self.weight.numel())
        words = torch.zeros(shape, dtype=torch.int32, device=self.weight.device)
        self.register_buffer("words", words)

    def words_of(self, task: int) -> Tensor:
        """A task's bits as the ops take them: [W], or [2, W] for the ternary levels.

        A view; where they are sharded they are gathered, and every process has to call it.
        """
        return whole(self._row(task))

    def own_words(self, task: int) -> Tensor:
        """The same as far as this process has them, a view."""
        return local(self._row(task))

    def _row(self, task: int) -> Tensor:
        return self.words[task] if planes(self.levels) == 2 else self.words[task, 0]

    def cut_words(self, words: Tensor) -> Tensor:
        """What this process has of a task's whole words."""
        return words[..., span(self.words, 2)].clone() if is_sharded(self.words) else words

    def shard_words(self) -> None:
        """Leave each process its part of the words, where the weight is sharded.

        They are cut where the words are, not where rows are: a row may end inside a word.
        """
        if is_sharded(self.weight) and not is_sharded(self.words):
            with torch.inference_mode(False):
                self.words = shard(self.words, self.weight, 2)

    def packed_scores(self, cut: Cut) -> Tensor:
        """The words that the scores give now, in the shape of ``words_of``."""
        assert self.scores is not None
        return ops.pack_scores(
            whole(self.scores),
            cut.threshold,
            levels=self.levels,
            inclusive=cut.inclusive,
            density=cut.density,
        )

    def masked_weight(self) -> Tensor:
        """W m for the active task, with the gradient of the scores while it trains."""
        words, cut = self.mask()
        if words is not None:
            return ops.packed_weight(self.weight.detach(), words)
        return ops.piggyback_weight(
            self.weight.detach(),
            self.trained_scores(),
            cut.threshold,
            levels=self.levels,
            inclusive=cut.inclusive,
            density=cut.density,
        )

    def new_scores(self, dtype: torch.dtype | None = None) -> nn.Parameter:
        """Scores for this weight, not filled; sharded as it is. None: float32, or its float64."""
        if dtype is None:
            dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        new = nn.Parameter(torch.empty_like(self.weight, dtype=dtype, requires_grad=False))
        self._started = (new,)
        return new

    @torch.no_grad()
    def start_scores(
        self,
        init: float,
        spread: str,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Fresh scores: all ``init`` ("constant"), or U(-init, init) drawn on the CPU."""
        self.scores = self.new_scores(dtype)
        if spread == "uniform":
            wide = compute_dtype(self.scores.dtype)  # the same numbers for every dtype
            start = torch.empty(self.scores.shape, dtype=wide)
            write(self.scores, start.uniform_(-init, init, generator=generator))
        else:
            self.scores.fill_(init)

    def mask(self) -> tuple[Tensor | None, Cut]:
        """The active task's words, or None and the cut of its scores."""
        active = self._active()
        if (words := active.own[self.place]) is not None:
            return words if type(words) is Tensor else whole(words), NO_CUT
        if (cut := active.record) is None or self._held("scores") is None:
            task = active.task
            raise RuntimeError(
                f"{class_name(self)}: task {task} is neither finished nor in training, so it has"
                f" no mask; net.begin_task({task}) starts it"
            )
        return None, cut

    def of(self, task: int) -> Tensor | None:
        """A finished task's words, None for any other task; sharded where they are."""
        assert isinstance(self._state, MaskState)
        return self._row(task) if task in self._state.done else None

    def check_scores(self) -> None:
        """Raise where ``fully_shard`` has taken the scores over: it would never let them go.

        Raises:
            RuntimeError: it was called while a task was in training.
        """
        if is_sharded(self.scores) and not any(self.scores is made for made in self._started):
            raise RuntimeError(
                f"{class_name(self)}: fully_shard was called while a task was in training, and"
                " would put this task's scores in the place of later ones': call it before"
                " begin_task, whose scores are then sharded as the weights are"
            )

    def trained_scores(self) -> Tensor:
        """The scores for a forward; where they are sharded, all of them, gathered."""
        return gather(self._held("scores"))

    def frozen_bias(self) -> Tensor | None:
        """The bias where there is one, out of reach of any optimizer as the weight is."""
        bias = self._held("bias")
        return None if bias is None else bias.detach()

    def _held(self, name: str) -> Any:
        """A parameter; attributes of modules, which a parametrization needs, take far longer."""
        found = self._parameters.get(name)
        return getattr(self, name) if found is None else found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Half-precision scores would lose the small steps that they learn by.
        scores, self.scores = self.scores, None
        super()._apply(fn, recurse)
        if scores is not None:
            holder = nn.ParameterList([scores])
            holder._apply(lambda tensor: _keep_precision(tensor, fn(tensor)))
            self.scores = holder[0]
            self._started = (self.scores,)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Scores come and go with the task in training that a state is of.
        if prefix + "scores" in state_dict:
            given = state_dict[prefix + "scores"]
            if self.scores is None:
                self.scores = self.new_scores(
                    given.dtype if given.dtype is torch.bfloat16 else None
                )
            state_dict[prefix + "scores"] = placed(class_name(self), given, self.scores)
        elif prefix + "words" in state_dict:
            self.scores = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """The ordinary layer's arguments, and the masks'."""
        return f"{super().extra_repr()}, num_tasks={self.num_tasks}, levels={self.levels}"


def _keep_precision(scores: Tensor, moved: Tensor) -> Tensor:
    """Where a conversion takes a parameter, scores go with it, but to no half precision."""
    if moved.dtype in (torch.float32, torch.float64):
        return moved
    kept = torch.bfloat16 if scores.dtype is torch.bfloat16 else torch.float32
    return scores.to(moved.device, kept)
