"""A table of embeddings whose channels carry a mask a task."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn.tasks.narrow import Narrow
from maskcl.nn.tasks.state import Masked


class HATEmbedding(Masked, nn.Embedding):
    """``W[x] * mask``, the mask along the channels: HAT's units of a table are its columns.

    Which rows a task reads is not recorded: of a channel that a finished task uses all rows stay.

    Args:
        num_embeddings, embedding_dim, padding_idx: as for ``nn.Embedding``.
        scale_grad_by_freq: likewise.
        device, dtype: of the parameters.

    Shape: integers [..] -> [.., embedding_dim].

    Raises:
        RuntimeError: (forward) it belongs to no network, or no task is active.
    """

    _network = "HATNetwork"

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        scale_grad_by_freq: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        nn.Embedding.__init__(
            self,
            num_embeddings,
            embedding_dim,
            padding_idx,
            scale_grad_by_freq=scale_grad_by_freq,
            device=device,
            dtype=dtype,
        )

    def unmasked(self, input: Tensor) -> Tensor:
        """W[x], as the active task sees it."""
        weight = self.weight
        if (narrow := self._narrow()) is not None:
            weight = Narrow(into=narrow.out).weight(weight)
        return F.embedding(
            input, weight, self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq
        )

    def forward(self, input: Tensor) -> Tensor:
        """W[x] * mask."""
        return self._finish(self.unmasked(input), -1)
