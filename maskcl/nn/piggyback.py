"""Frozen layers whose weights carry one mask a task (Piggyback, Mallya et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl import ops
from maskcl.nn.state import TaskAware, TaskState
from maskcl.ops.weight_mask import PiggybackWeightFunction, selection
from maskcl.reference.bitmask import num_words

LEVELS = ("binary", "ternary", "ternary_symmetric", "topk")


@dataclass(frozen=True)
class Cut:
    """How the scores of the task in training become its masks.

    Attributes:
        task: index. threshold, inclusive, density: as for ``ops.piggyback_weight``.
    """

    task: int
    threshold: float
    inclusive: bool
    density: float | None


class MaskState(TaskState):
    """What the layers of a PiggybackNetwork share; Python numbers, so that no forward waits.

    Attributes:
        cut: of the task in training, None where none is.
        done: the finished tasks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cut: Cut | None = None
        self.done: frozenset[int] = frozenset()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "cut": self.cut, "done": self.done}


class PiggybackLayer(TaskAware):
    """What the layers share: a frozen weight and bias, one task's scores, every task's bits.

    Attributes:
        weight, bias: parameters that take no gradient.
        scores: parameter of the weight's shape while a task trains, else None. float32 (float64 for
            a float64 weight), and it stays so when the layer becomes half or bfloat16.
        words: int32 [T, P, W], one bit a weight and task; P = 2 for the ternary levels (not 0, and
            negative), else 1. See ``ops.pack_mask``.
        num_tasks: T.
        levels: "binary", "ternary", "ternary_symmetric" or "topk".
    """

    _network = "PiggybackNetwork"
    # What nn.Linear, nn.ConvNd or nn.Embedding, the other base of each subclass, brings.
    weight: Tensor
    scores: nn.Parameter | None
    words: Tensor

    def _add_masks(self, num_tasks: int, levels: str) -> None:
        name = type(self).__name__
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
        """A task's bits as the ops take them, a view: [W], or [2, W] for the ternary levels."""
        return self.words[task] if planes(self.levels) == 2 else self.words[task, 0]

    def packed_scores(self, cut: Cut) -> Tensor:
        """The words that the scores give now, in the shape of ``words_of``."""
        assert self.scores is not None
        return ops.pack_scores(
            self.scores,
            cut.threshold,
            levels=self.levels,
            inclusive=cut.inclusive,
            density=cut.density,
        )

    def masked_weight(self) -> Tensor:
        """W m for the active task, with the gradient of the scores while it trains."""
        words, cut = self._mask()
        if words is not None:
            return ops.packed_weight(self.weight.detach(), words)
        assert self.scores is not None
        return ops.piggyback_weight(
            self.weight.detach(),
            self.scores,
            cut.threshold,
            levels=self.levels,
            inclusive=cut.inclusive,
            density=cut.density,
        )

    def new_scores(self) -> nn.Parameter:
        """Scores for this weight, not filled."""
        dtype = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        return nn.Parameter(torch.empty_like(self.weight, dtype=dtype, requires_grad=False))

    def _mask(self) -> tuple[Tensor | None, Cut]:
        """The active task's words, or None and the cut of its scores."""
        state, task = self._active()
        assert isinstance(state, MaskState)
        if task in state.done:
            return self.words_of(task), _NO_CUT
        cut = state.cut
        if cut is None or cut.task != task or self.scores is None:
            raise RuntimeError(
                f"{type(self).__name__}: task {task} is neither finished nor in training, so it has"
                f" no mask; net.begin_task({task}) starts it"
            )
        return None, cut

    def _frozen_bias(self) -> Tensor | None:
        bias: Tensor | None = self.bias  # type: ignore[assignment]
        return None if bias is None else bias.detach()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Half-precision scores would lose the small steps that they learn by.
        scores, self.scores = self.scores, None
        super()._apply(fn, recurse)
        if scores is not None:
            holder = nn.ParameterList([scores])
            holder._apply(lambda tensor: _keep_precision(tensor, fn(tensor)))
            self.scores = holder[0]
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Scores come and go with the task in training that a state is of.
        if prefix + "scores" in state_dict:
            self.scores = self.scores if self.scores is not None else self.new_scores()
        elif prefix + "words" in state_dict:
            self.scores = None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """The ordinary layer's arguments, and the masks'."""
        return f"{super().extra_repr()}, num_tasks={self.num_tasks}, levels={self.levels}"


class PiggybackLinear(PiggybackLayer, nn.Linear):
    """``x (W m)^T + b`` with the active task's mask m; W and b never train.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``.
        num_tasks: how many masks there is room for.
        levels: as for PiggybackLayer.
        device, dtype: of the parameters.

    Shape: [.., in_features] -> [.., out_features].

    Raises:
        ValueError: num_tasks or levels is not as above.
        RuntimeError: (forward) it belongs to no network, or the active task has no mask.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        num_tasks: int,
        levels: str = "binary",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias, device=device, dtype=dtype)
        self._add_masks(num_tasks, levels)

    def forward(self, input: Tensor) -> Tensor:
        """x (W m)^T + b."""
        words, cut = self._mask()
        weight, bias = self.weight.detach(), self._frozen_bias()
        if words is not None:
            return ops.packed_linear(input, weight, words, bias)
        assert self.scores is not None
        return ops.piggyback_linear(
            input,
            weight,
            self.scores,
            cut.threshold,
            bias,
            levels=self.levels,
            inclusive=cut.inclusive,
            density=cut.density,
        )


class _PiggybackConv(PiggybackLayer):
    """What the convolutions share."""

    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def __init__(self, *args: Any, num_tasks: int, levels: str = "binary", **options: Any) -> None:
        super().__init__(*args, **options)
        self._add_masks(num_tasks, levels)

    def forward(self, input: Tensor) -> Tensor:
        """conv(x) with the weight W m."""
        return self._conv_forward(input, self.masked_weight(), self._frozen_bias())


class PiggybackConv1d(_PiggybackConv, nn.Conv1d):
    """``conv1d(x, W m) + b``: ``nn.Conv1d``'s arguments and PiggybackLinear's."""


class PiggybackConv2d(_PiggybackConv, nn.Conv2d):
    """``conv2d(x, W m) + b``: ``nn.Conv2d``'s arguments and PiggybackLinear's."""


class PiggybackConv3d(_PiggybackConv, nn.Conv3d):
    """``conv3d(x, W m) + b``: ``nn.Conv3d``'s arguments and PiggybackLinear's."""


class PiggybackEmbedding(PiggybackLayer, nn.Embedding):
    """Rows of W m with the active task's mask m; only the rows asked for are masked.

    Args:
        num_embeddings, embedding_dim, padding_idx: as for ``nn.Embedding``; the scores of row
            padding_idx take no gradient.
        num_tasks, levels, device, dtype: as for PiggybackLinear.

    Shape: integers [..] -> [.., embedding_dim].

    Raises:
        ValueError: an argument is not as above.
        RuntimeError: (forward) it belongs to no network, or the active task has no mask.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        num_tasks: int,
        levels: str = "binary",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        options = {"device": device, "dtype": dtype}
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, padding_idx, **options)
        self._add_masks(num_tasks, levels)

    def forward(self, input: Tensor) -> Tensor:
        """(W m)[input]."""
        words, cut = self._mask()
        weight = self.weight.detach()
        if words is not None:
            return ops.packed_embedding(input, weight, words)
        assert self.scores is not None
        # "topk" is of the whole table, whichever rows are asked for.
        select = selection(
            "PiggybackEmbedding",
            self.scores,
            cut.threshold,
            self.levels,
            cut.inclusive,
            cut.density,
        )
        rows = F.embedding(input, weight)
        scores = F.embedding(input, self.scores, self.padding_idx)
        return PiggybackWeightFunction.apply(rows, scores, *select)


PIGGYBACK_LAYERS = (
    PiggybackLinear,
    PiggybackConv1d,
    PiggybackConv2d,
    PiggybackConv3d,
    PiggybackEmbedding,
)

_NO_CUT = Cut(-1, 0.0, False, None)


def planes(levels: str) -> int:
    """Bits a weight that a mask of these levels takes."""
    return 2 if levels.startswith("ternary") else 1


def check_levels(owner: str, levels: str) -> None:
    """Raise ValueError unless masks of these levels can be bits."""
    if levels not in LEVELS:
        raise ValueError(f"{owner}: levels is {levels!r}, wanted one of {', '.join(LEVELS)}")


def _keep_precision(scores: Tensor, moved: Tensor) -> Tensor:
    """Where a conversion takes a parameter, scores go with it, but never below float32."""
    if moved.dtype in (torch.float32, torch.float64):
        return moved
    return scores.to(moved.device, torch.float32)
