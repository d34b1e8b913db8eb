"""Frozen layers whose weights carry one mask a task (Piggyback, Mallya et al. 2018)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl import ops
from maskcl.nn.piggyback.masked_layer import PiggybackLayer
from maskcl.ops._check import is_autocast
from maskcl.ops.piggyback_convolutions import Window, piggyback_convolution
from maskcl.ops.piggyback_products import masked_product
from maskcl.ops.selection import selection
from maskcl.ops.weight_mask import PiggybackWeightFunction
from maskcl.sharded_modules import class_name


class PiggybackLinear(PiggybackLayer, nn.Linear):
    """``x (W m)^T + b`` with the active task's mask m; W and b never train.

    Args:
        in_features, out_features, bias: as for ``nn.Linear``.
        num_tasks: how many masks there is room for.
        levels: as for PiggybackLayer.
        device, dtype: of the parameters.

    Shape: [.., in_features] -> [.., out_features]. A sparse CSR input [N, in_features], such as
    bags of words, meets the masked weight in one sparse product.

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
        if input.layout == torch.sparse_csr:
            return F.linear(input, self.masked_weight(), self.frozen_bias())
        words, cut = self.mask()
        weight, bias = self._held("weight").detach(), self.frozen_bias()
        if words is not None:
            return ops.packed_linear(input, weight, words, bias)
        scores = self.trained_scores()
        if self._is_plain(input, weight):
            select = None, self.levels, float(cut.threshold), cut.inclusive, 1.0
            return masked_product(input, weight, scores, bias, select)
        return ops.piggyback_linear(
            input,
            weight,
            scores,
            cut.threshold,
            bias,
            levels=self.levels,
            inclusive=cut.inclusive,
            density=cut.density,
        )

    def _is_plain(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the op would find nothing to refuse or to convert: its checks cost as much."""
        return (
            x.dim() == 2
            and x.shape[1] == weight.shape[1]
            and x.dtype is weight.dtype
            and x.device == weight.device
            and x.layout is torch.strided
            and self.levels != "topk"
            and not torch.compiler.is_compiling()
            and not is_autocast(x.device.type)
        )


class PiggybackConv1D(PiggybackLayer):
    """``x (W m) + b``, W of shape [in, out], as the ``Conv1D`` of transformers' GPT-2 has it.

    Args:
        original: that layer; its weight and bias are taken over.
        num_tasks, levels: as for PiggybackLinear.

    Shape: [.., in] -> [.., out].
    """

    bias: Tensor | None

    def __init__(self, original: nn.Module, *, num_tasks: int, levels: str = "binary") -> None:
        super().__init__()
        self.weight = original.weight  # type: ignore[assignment]
        self.bias = original.bias  # type: ignore[assignment]
        self.original_class = type(original)
        self._add_masks(num_tasks, levels)

    def forward(self, input: Tensor) -> Tensor:
        """x (W m) + b."""
        y = input @ self.masked_weight()
        bias = self.frozen_bias()
        return y if bias is None else y + bias

    def extra_repr(self) -> str:
        """Sizes and masks."""
        ins, outs = self.weight.shape
        return f"{ins}, {outs}, num_tasks={self.num_tasks}, levels={self.levels}"


class _PiggybackConv(PiggybackLayer):
    """What the convolutions share."""

    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    padding: Any
    padding_mode: Any
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __init__(self, *args: Any, num_tasks: int, levels: str = "binary", **options: Any) -> None:
        super().__init__(*args, **options)
        self._add_masks(num_tasks, levels)

    def forward(self, input: Tensor) -> Tensor:
        """conv(x) with the weight W m."""
        words, cut = self.mask()
        window = self._window(input) if words is None else None
        if window is None or self._is_followed():
            return self._conv_forward(input, self.masked_weight(), self.frozen_bias())
        scores, weight = self.trained_scores(), self._held("weight").detach()
        options = self.levels, cut.inclusive, cut.density
        select = selection(class_name(self), scores, cut.threshold, *options)
        return piggyback_convolution(input, weight, scores, self.frozen_bias(), select, window)

    def _window(self, x: Tensor) -> Window | None:
        """What goes over a batch of images of zeros around; None for other padding or no batch."""
        if self.padding_mode != "zeros" or x.dim() != self.weight.dim():
            return None
        padding = self.padding
        if isinstance(padding, str):
            if padding == "valid":
                padding = (0,) * len(self.stride)
            else:
                spans = zip(self.dilation, self.weight.shape[2:], strict=True)
                totals = [dilation * (size - 1) for dilation, size in spans]
                if any(total % 2 for total in totals):
                    return None
                padding = tuple(total // 2 for total in totals)
        return Window(self.stride, padding, self.dilation, self.groups)

    def _is_followed(self) -> bool:
        """Whether the compiler or a transform of torch.func looks on, which want single steps."""
        return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


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
        words, cut = self.mask()
        weight = self.weight.detach()
        if words is not None:
            return ops.packed_embedding(input, weight, words)
        all_scores = self.trained_scores()
        # "topk" is of the whole table, whichever rows are asked for.
        select = selection(
            "PiggybackEmbedding",
            all_scores,
            cut.threshold,
            self.levels,
            cut.inclusive,
            cut.density,
        )
        rows = F.embedding(input, weight)
        scores = F.embedding(input, all_scores, self.padding_idx)
        return PiggybackWeightFunction.apply(rows, scores, *select)


PIGGYBACK_LAYERS = (
    PiggybackLinear,
    PiggybackConv1D,
    PiggybackConv1d,
    PiggybackConv2d,
    PiggybackConv3d,
    PiggybackEmbedding,
)
