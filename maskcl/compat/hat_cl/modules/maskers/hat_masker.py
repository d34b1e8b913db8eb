"""The masks of all tasks of one layer's units."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.hat_cl._base import HATModuleABC
from maskcl.compat.hat_cl._counterparts import register_mapping
from maskcl.compat.hat_cl.exceptions import InsufficientMaskWarning
from maskcl.compat.hat_cl.modules.maskers._base import VectorMaskerABC
from maskcl.compat.hat_cl.modules.maskers._gate import soft_mask, start_attention
from maskcl.compat.hat_cl.modules.maskers._locks import Locks
from maskcl.compat.hat_cl.modules.maskers._regulator import Regulator
from maskcl.compat.hat_cl.modules.maskers._topology import Topology
from maskcl.compat.hat_cl.modules.maskers.attention_masker import AttentionMasker, open_units
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.types_ import HATConfig, Mask


@register_mapping
class HATMasker(Topology, Locks, VectorMaskerABC, HATModuleABC):
    """One attention a task, from which the unit masks come.

    Args:
        num_features: U, how many units.
        hat_config: the configuration.
        device, dtype: of the attentions.

    Attributes:
        attention: by task, [U].

    Warns:
        InsufficientMaskWarning: there are fewer units than tasks.
    """

    base_class = AttentionMasker
    _task_trained: Tensor

    def __init__(
        self, num_features: int, hat_config: HATConfig, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(hat_config.mask_dim)
        tasks = hat_config.num_tasks
        if tasks > num_features:
            warnings.warn(
                f"HATMasker: {num_features} units for {tasks} tasks; some tasks may learn nothing",
                InsufficientMaskWarning,
                stacklevel=2,
            )
        self.attention = nn.ParameterList(
            nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
            for _ in range(tasks)
        )
        self._init_strat = hat_config.init_strat
        for attention in self.attention:
            start_attention(attention, self._init_strat, tasks)
        self._max_trn_mask_scale = hat_config.max_trn_mask_scale
        self._attn_clamp = hat_config.attn_clamp
        self._grad_comp_clamp = hat_config.grad_comp_clamp
        self._grad_comp_factor = hat_config.grad_comp_factor
        self._gate = hat_config.gate
        trained = torch.zeros(tasks, dtype=torch.bool, device=device)
        self.register_buffer("_task_trained", trained)

    @property
    def regulator(self) -> Regulator:
        """Its sparsity term."""
        return Regulator(self)

    def forward(self, pld: HATPayload) -> HATPayload:
        """The payload with this masker, whose mask is applied where masked data are asked for."""
        self.check_payload(pld)
        data = pld.arranged
        layout = None if pld.masker is None else pld.layout
        self.meet(pld, data.shape, self.mask_dimension(data, layout))
        return self.enter(pld, data, layout)

    def check_payload(self, pld: HATPayload) -> None:
        """Raise where the payload's task or scale cannot be.

        Raises:
            ValueError: there is no such task, or it trains and has no scale.
        """
        task = pld.task_id
        if task is None:
            return
        if not 0 <= task < self.num_tasks:
            raise ValueError(f"HATMasker: task_id is {task}, wanted one of {self.num_tasks} tasks")
        if not (self.training and torch.is_grad_enabled()):
            return
        scale = pld.mask_scale
        if scale is None:
            raise ValueError("HATMasker: mask_scale is None, wanted a number while it trains")
        # A tensor may lie on a device, where looking at it would wait.
        if not isinstance(scale, Tensor) and scale > self._max_trn_mask_scale:
            warnings.warn(
                f"HATMasker: mask_scale is {scale}, above max_trn_mask_scale"
                f" {self._max_trn_mask_scale}: masks learn slowly there",
                RuntimeWarning,
                stacklevel=3,
            )

    def enter(self, pld: HATPayload, produced: Any, layout: Any) -> HATPayload:
        """A payload of ``produced`` data under this masker; in training the task counts as trained.

        Args:
            pld: what came in.
            produced: a tensor, or a product that waits for its mask.
            layout: where the units lie in it.
        """
        task = pld.task_id
        if task is not None and self.training and torch.is_grad_enabled():
            self.note(task, None)
            if task not in self.trained_task_ids:
                self._task_trained[task] = True
        behind = self.succeed(pld.prev_maskers)
        return pld.derive(produced, masker=self, prev_maskers=behind, layout=layout, exposed=True)

    def get_mask(self, task_id: int | None, mask_scale: Any = None) -> Mask:
        """A task's mask, [U]; ones for no task.

        Args:
            task_id: which.
            mask_scale: None: the binary mask, bool.
        """
        if task_id is None:
            return torch.ones_like(self.attention[0])
        if mask_scale is None:
            return self.get_binary_mask(task_id)
        factor = self._grad_comp_factor if self.training else None
        attention = self.attention[task_id]
        return soft_mask(attention, mask_scale, self._gate, factor, self._grad_comp_clamp)

    def working_mask(self, task_id: int | None, mask_scale: Any) -> Tensor | None:
        """What multiplies a payload's data, floating [U]; None for no task.

        Soft in training. Else binary whatever the scale: these are the units that are protected,
        and a gate that is nearly closed would let through what nobody protects.
        """
        if task_id is None:
            return None
        if self.training and mask_scale is not None:
            return self.get_mask(task_id, mask_scale)
        return self.get_binary_mask(task_id).to(self.attention[0].dtype)

    def get_binary_mask(
        self, task_id: int, from_cache: bool = True, save_to_cache: bool = True
    ) -> Mask:
        """Units that a task uses, bool [U].

        Args:
            task_id: which.
            from_cache: means nothing; there is no cache that could be out of date.
            save_to_cache: means nothing.
        """
        return open_units(self.attention[task_id], self._gate, self._max_trn_mask_scale)

    def get_reg_term(self, strat: str, **kwargs: Any) -> Tensor:
        """See `_regulator.Regulator.get_reg_term`."""
        return self.regulator.get_reg_term(strat, **kwargs)

    def apply_mask_to(
        self, data: Tensor, mask_dim: int | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """``data`` times the working mask of ``task_id`` at ``mask_scale``."""
        mask = self.working_mask(*args, **kwargs)
        if mask is None:
            return data
        return data * self.reshape_mask(data, mask, self.mask_dim if mask_dim is None else mask_dim)

    def to_base_module(
        self, task_id: int | None = None, trn_mask_scale: float | None = None, **kwargs: Any
    ) -> nn.Module:
        """The AttentionMasker of one task, or an Identity for none.

        Args:
            task_id: which.
            trn_mask_scale: of the AttentionMasker.
            kwargs: ``mask_dim``, instead of the masker's own; others are other modules'.
        """
        if task_id is None:
            return nn.Identity()
        attention = self.attention[task_id]
        masker = AttentionMasker(
            self.num_features,
            trn_mask_scale,
            self._gate,
            kwargs.get("mask_dim") if self.mask_dim is None else self.mask_dim,
            attention.device,
            attention.dtype,
            self._max_trn_mask_scale,
        )
        masker.load_state_dict({"attention": attention.detach()}, strict=False)
        return masker

    @classmethod
    def from_base_module(cls, base_module: AttentionMasker, **kwargs: Any) -> HATMasker:
        """A masker whose tasks all have the AttentionMasker's attention.

        Args:
            base_module: it.
            kwargs: of HATConfig; ``mask_dim`` and ``gate`` are the AttentionMasker's unless given.
        """
        config = HATConfig(**{"mask_dim": base_module.mask_dim, "gate": base_module.gate, **kwargs})
        attention = base_module.attention
        masker = cls(attention.numel(), config, attention.device, attention.dtype)
        masker.load_from_base_module(base_module)
        return masker

    @torch.no_grad()
    def load_from_base_module(self, base_module: AttentionMasker) -> None:
        """Copy the AttentionMasker's attention to every task."""
        for attention in self.attention:
            attention.copy_(base_module.attention)

    def __repr__(self) -> str:
        name = getattr(self._gate, "__name__", repr(self._gate))
        return (
            f"HATMasker(num_features={self.num_features}, num_tasks={self.num_tasks}, gate={name})"
        )

    __str__ = __repr__
