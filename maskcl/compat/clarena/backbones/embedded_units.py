"""The units of a backbone's weighted layers, and the current task's embedding of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.clarena.backbones.handed_masks import Masks, check_masks
from maskcl.compat.clarena.backbones.norms import NormsByTask
from maskcl.compat.clarena.backbones.plain import CLBackbone
from maskcl.compat.clarena.backbones.task_bits import TaskBits


class EmbeddedUnits(CLBackbone):
    """The embeddings of a backbone's units, layer by layer or all in one vector.

    Attributes:
        task_embedding_t: layer -> embedding of the current task.
        task_bits: the masks of the stored tasks, bits in buffers.
        embedding_task: int64, a buffer: the task that the embedding was initialised for, or -1.
    """

    task_bits: TaskBits
    embedding_task: Tensor

    def register_units(self) -> None:
        """Make the modules and buffers of the masks, in place of any that are there."""
        self.task_embedding_t = nn.ModuleDict()
        self.task_bits = TaskBits()
        self.register_buffer("embedding_task", torch.tensor(-1))

    def check_registered(self) -> None:
        """Raise ValueError where `register_units` has not been called."""
        if "task_bits" not in self._modules:
            raise ValueError(
                f"{type(self).__name__}: gate is None, wanted 'sigmoid' at its start, or"
                " register_hat_mask_module_explicitly(gate)"
            )

    def setup_task_id(self, task_id: int) -> None:
        """Go to a task, in the masked blocks too; before its first forward.

        Raises:
            ValueError: task_id is not an int of at least 1, or no masks are registered.
        """
        self.check_registered()
        super().setup_task_id(task_id)
        self.embedding_task.fill_(-1)
        for block in self.masked_blocks().values():
            block.setup_task_id(task_id)
        for norms in self.norms_by_task():
            if str(task_id) not in norms:
                norms.keep(task_id)

    def masked_blocks(self) -> dict[str, Any]:
        """Its parts that are masked backbones with embeddings of its own, by their names."""
        own = set(map(id, self.task_embedding_t.values()))
        found: dict[str, Any] = {}
        for name, module in self.named_modules():
            if isinstance(module, EmbeddedUnits) and module is not self:
                embeddings = map(id, module.task_embedding_t.values())
                if own.issuperset(embeddings):
                    found[name] = module
        return found

    def embed_units(self) -> None:
        """Give each weighted layer that has none an embedding of its units."""
        for name in self.weighted_layer_names:
            if name not in self.task_embedding_t:
                units = self.weighted_layer(name).weight.shape[0]
                self.task_embedding_t[name] = nn.Embedding(1, units)

    def embeddings(self) -> list[nn.Parameter]:
        """The current task's embeddings, [1, units] each, in the layers' order.

        Raises:
            ValueError: a weighted layer has none, or no masks are registered.
        """
        self.check_registered()
        missing = [n for n in self.weighted_layer_names if n not in self.task_embedding_t]
        if missing or not self.weighted_layer_names:
            raise ValueError(
                f"{type(self).__name__}: task_embedding_t lacks {', '.join(missing) or 'all'},"
                " wanted an nn.Embedding(1, units) for each of weighted_layer_names"
            )
        modules: list[Any] = [self.task_embedding_t[n] for n in self.weighted_layer_names]
        return [module.weight for module in modules]

    def unit_spans(self) -> dict[str, slice]:
        """Layer -> its units among those of all layers."""
        spans, start = {}, 0
        for name, weight in zip(self.weighted_layer_names, self.embeddings(), strict=True):
            spans[name] = slice(start, start + weight.numel())
            start += weight.numel()
        return spans

    def flat_embedding(self) -> Tensor:
        """All layers' embeddings one after the other, [U]."""
        return torch.cat([weight.view(-1) for weight in self.embeddings()])

    def by_layer(self, flat: Tensor) -> Masks:
        """[U] -> layer -> [units], views."""
        sizes = [weight.numel() for weight in self.embeddings()]
        return dict(zip(self.weighted_layer_names, flat.split(sizes), strict=True))

    def flat(self, owner: str, masks: Any, *, largest: float = 1) -> Tensor:
        """Layer -> [units] to [U], int64, on the embeddings' device.

        Raises:
            ValueError: as for `check_masks`, of what is assigned to ``owner``.
        """
        spans, device = self.unit_spans(), self.embeddings()[0].device
        masks = check_masks(owner, masks, spans, largest=largest)
        return torch.cat([masks[name].detach().to(device, torch.int64) for name in spans])

    def norms_by_task(self) -> list[NormsByTask]:
        """The containers of the norms that each task has for itself."""
        return [module for module in self.modules() if isinstance(module, NormsByTask)]

    def current_task(self) -> int:
        """The current task's ID.

        Raises:
            RuntimeError: no task is set up.
        """
        if self.task_id is None:
            raise RuntimeError(f"{type(self).__name__}: no task, call setup_task_id(task_id) first")
        return self.task_id

    def _count(self) -> int:
        return sum(weight.numel() for weight in self.embeddings())

    def _dtype(self) -> torch.dtype:
        return self.embeddings()[0].dtype
