"""The masked units of a backbone: their embedding, their stored masks, what these protect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.clarena.backbones.norms import NormsByTask
from maskcl.compat.clarena.backbones.plain import CLBackbone
from maskcl.compat.clarena.backbones.protection import LayerProtection, Part, protect
from maskcl.compat.clarena.backbones.task_bits import TaskBits, TaskMasks

Masks = dict[str, Tensor]


class MaskedUnits(CLBackbone):
    """What HATMaskBackbone knows of units, layer by layer or all in one vector.

    Attributes:
        task_embedding_t: layer -> embedding of the current task.
        task_bits: the masks of the stored tasks, bits in buffers.
        embedding_task: int64, a buffer: the task that the embedding was initialised for, or -1.
    """

    embedding_task: Tensor

    def __init__(self, output_dim: int | None, **kwargs: Any) -> None:
        super().__init__(output_dim=output_dim, **kwargs)
        self.task_embedding_t = nn.ModuleDict()
        self.task_bits = TaskBits()
        self.register_buffer("embedding_task", torch.tensor(-1))

    def setup_task_id(self, task_id: int) -> None:
        """Go to a task; before its first forward.

        Raises:
            ValueError: task_id is not an int of at least 1.
        """
        super().setup_task_id(task_id)
        self.embedding_task.fill_(-1)
        for norms in self.norms_by_task():
            if str(task_id) not in norms:
                norms.keep(task_id)

    def _embed_units(self) -> None:
        """Give each weighted layer an embedding of its units."""
        for name in self.weighted_layer_names:
            units = self.get_layer_by_name(name).weight.shape[0]
            self.task_embedding_t[name] = nn.Embedding(1, units)

    def embeddings(self) -> list[nn.Parameter]:
        """The current task's embeddings, [1, units] each, in the layers' order.

        Raises:
            ValueError: a weighted layer has none.
        """
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

    def te_to_binary_mask(self) -> Masks:
        """The current embedding's mask as it would be stored: 1 where e > 0."""
        flat = self.flat_embedding().detach()
        return self.by_layer((flat > 0).to(flat.dtype))

    def store_mask(self) -> Masks:
        """Record the current embedding's mask as the current task's; returns it.

        Raises:
            RuntimeError: no task is set up.
        """
        self.task_bits.store(self.current_task(), self.flat_embedding().detach() > 0)
        return self.te_to_binary_mask()

    @property
    def masks(self) -> TaskMasks:
        """Task ID -> layer -> stored mask; copies."""
        dtype = self._dtype()
        ids = self.task_bits.stored()
        return TaskMasks({i: self.by_layer(self.task_bits.mask(i, dtype).clone()) for i in ids})

    def used_units(self) -> Tensor:
        """1 where any stored task uses the unit, [U]; not to be written to."""
        return self.task_bits.cumulative(self._count(), self._dtype())

    def get_cumulative_mask(self) -> Masks:
        """1 where any stored task uses the unit, [units] a layer; copies."""
        return self.by_layer(self.used_units().clone())

    def get_summative_mask(self) -> Masks:
        """How many stored tasks use the unit, [units] a layer; copies."""
        return self.by_layer(self.task_bits.summative(self._count(), self._dtype()).clone())

    def protected_layers(self) -> Iterator[Part]:
        """Every layer whose weights the tasks share, with the layers whose masks its ends have.

        A subclass adds those that are not among the weighted layers.
        """
        before = None
        for name in self.weighted_layer_names:
            yield name, self.get_layer_by_name(name), name, before
            before = name

    def protection(self) -> LayerProtection:
        """What the stored tasks need of the weights, kept until a mask is stored."""
        bits, ids = self.task_bits.bits, self.task_bits.task_ids
        parts = list(self.protected_layers())
        weights = [p for _, layer, _, _ in parts for p in layer.parameters()]

        def make() -> LayerProtection:
            return protect(parts, bits, self.unit_spans(), len(ids))

        return self.task_bits.kept("protection", make, (bits, ids, *weights))

    def unprotected(self) -> list[str]:
        """Names of trainable parameters that tasks share and that no mask protects."""
        kept = [p for norms in self.norms_by_task() for p in norms.source.parameters()]
        kept += [p for _, layer, _, _ in self.protected_layers() for p in layer.parameters()]
        known = {id(p) for p in [*kept, *self.task_embedding_t.parameters()]}
        return [n for n, p in self.named_parameters() if p.requires_grad and id(p) not in known]

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

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        found = state_dict.get(f"{prefix}task_bits.task_ids")
        if isinstance(found, Tensor):
            stored = found.tolist()
            others = [i for i in self.processed_task_ids if i not in stored]
            self.processed_task_ids = [*stored, *others]
        super()._load_from_state_dict(state_dict, prefix, *args, **options)

    def _count(self) -> int:
        return sum(weight.numel() for weight in self.embeddings())

    def _dtype(self) -> torch.dtype:
        return self.embeddings()[0].dtype
