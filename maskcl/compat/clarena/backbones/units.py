"""The stored masks of a backbone, and what they protect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from maskcl.compat.clarena.backbones.block_state import leave_out, put_in
from maskcl.compat.clarena.backbones.embedded_units import EmbeddedUnits
from maskcl.compat.clarena.backbones.handed_masks import Masks, TaskMasks, task_of
from maskcl.compat.clarena.backbones.protection import LayerProtection, Part, protect
from maskcl.compat.clarena.checks import check_task_id


class MaskedUnits(EmbeddedUnits):
    """What HATMaskBackbone knows of its stored tasks."""

    def te_to_binary_mask(self) -> Masks:
        """The current embedding's mask as it would be stored: 1 where e > 0."""
        flat = self.flat_embedding().detach()
        return self.by_layer((flat > 0).to(flat.dtype))

    def store_mask(self) -> Masks:
        """Record the current embedding's mask as the current task's; returns it.

        Masked blocks record their parts of it, so that they can be tested on their own.

        Raises:
            RuntimeError: no task is set up.
        """
        task, used = self.current_task(), self.flat_embedding().detach() > 0
        self.task_bits.store(task, used)
        self.task_bits.add_to_assigned(used)
        by_layer = self.by_layer(used)
        for block in self.masked_blocks().values():
            own = [by_layer[name] for name in block.weighted_layer_names]
            block.task_bits.store(task, torch.cat(own))
        return self.te_to_binary_mask()

    @property
    def masks(self) -> TaskMasks:
        """Task ID -> layer -> stored mask; copies, which can be assigned to."""
        self.check_registered()
        bits = self.task_bits
        found = {i: self.by_layer(bits.mask(i, self._dtype()).clone()) for i in bits.stored()}
        return TaskMasks(found, self._write_masks)

    @masks.setter
    def masks(self, value: Mapping[Any, Masks]) -> None:
        self._write_masks({task_of(task): masks for task, masks in value.items()})

    def _write_masks(self, masks: Mapping[int, Masks]) -> None:
        self.check_registered()
        for task_id in masks:
            check_task_id("masks", task_id)
        flat = {i: self.flat(f"masks[{i}]", mask) != 0 for i, mask in masks.items()}
        self.task_bits.replace(flat)

    def assign_sum(self, name: str, owner: str, masks: Mapping[str, Tensor]) -> None:
        """Let sums over the stored tasks be these; {} to let them follow from the masks again.

        Args:
            name: "cumulative" or "summative".
            owner: what they are assigned to.
            masks: layer -> [units]; 0 or 1, or of "summative" whole numbers.

        Raises:
            ValueError: masks are not as above.
        """
        largest = 1 if name == "cumulative" else float("inf")
        found = self.flat(owner, masks, largest=largest) if masks else self.task_bits.bits[:0, 0]
        setattr(self.task_bits, f"assigned_{name}", found)

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

        A subclass adds those that are neither weighted layers nor shortcuts.
        """
        before = None
        for name in self.weighted_layer_names:
            yield name, self.weighted_layer(name), name, before
            before = name
        for block in (self, *self.masked_blocks().values()):
            yield from block.shortcuts(self)

    def shortcuts(self, whole: MaskedUnits) -> Iterator[Part]:
        """What of this block goes past weighted layers of ``whole``, as for `protected_layers`."""
        return iter(())

    def protection(self, summative: bool = False) -> LayerProtection:
        """What the stored tasks need of the weights, kept until a mask is stored or assigned.

        Args:
            summative: an assigned summative mask counts, where there is one, else a cumulative one.
        """
        parts = list(self.protected_layers())
        weights = [p for _, layer, _, _ in parts for p in layer.parameters()]

        def make() -> LayerProtection:
            bits, tasks = self.task_bits.protecting(summative)
            return protect(parts, bits, self.unit_spans(), tasks)

        sources = (*self.task_bits.sources(), *weights)
        return self.task_bits.kept(f"protection {summative}", make, sources)

    def unprotected(self) -> list[str]:
        """Names of trainable parameters that tasks share and that no mask protects."""
        kept = [p for norms in self.norms_by_task() for p in norms.source.parameters()]
        kept += [p for _, layer, _, _ in self.protected_layers() for p in layer.parameters()]
        known = {id(p) for p in [*kept, *self.task_embedding_t.parameters()]}
        return [n for n, p in self.named_parameters() if p.requires_grad and id(p) not in known]

    def state_dict(self, *args: Any, prefix: str = "", **options: Any) -> Any:
        """As any module's, with the masks of its blocks once."""
        state = super().state_dict(*args, prefix=prefix, **options)
        leave_out(state, prefix, self.masked_blocks())
        return state

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **options: Any
    ) -> None:
        if blocks := self.masked_blocks():
            put_in(state_dict, prefix, blocks, self.unit_spans())
        found = state_dict.get(f"{prefix}task_bits.task_ids")
        if isinstance(found, Tensor):
            stored = found.tolist()
            others = [i for i in self.processed_task_ids if i not in stored]
            self.processed_task_ids = [*stored, *others]
        super()._load_from_state_dict(state_dict, prefix, *args, **options)
