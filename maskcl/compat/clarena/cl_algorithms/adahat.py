"""AdaHAT on CLArena's hooks (Wang et al. 2024, doi 10.1007/978-3-031-70352-2_9)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskcl.compat.clarena.backbones import HATMaskBackbone
from maskcl.compat.clarena.backbones.handed_masks import HandedMasks
from maskcl.compat.clarena.checks import check_number
from maskcl.compat.clarena.cl_algorithms.adjustment import SCALE
from maskcl.compat.clarena.cl_algorithms.base import Heads
from maskcl.compat.clarena.cl_algorithms.hat import HAT
from maskcl.compat.clarena.cl_algorithms.module import their_class
from maskcl.compat.clarena.spelling import spellings

__all__ = ["AdaHAT"]

_Theirs: Any = their_class("AdaHAT")


class AdaHAT(HAT, _Theirs):
    """HAT whose protected weights learn a little, the less the more tasks use them.

    A gradient is multiplied by r / (n + r), where n is the smaller of the numbers of stored tasks
    that use the two ends of the weight, and r = adjustment_intensity / (epsilon + the share of the
    layer's free units that the mask takes) (eqs. 8 and 9).

    Args:
        backbone: as for HAT.
        heads: as for HAT.
        adjustment_mode: "adahat"; "adahat_no_sum", where the current task's ID is n everywhere;
            "adahat_no_reg", where r = adjustment_intensity / epsilon.
        adjustment_intensity: alpha of eq. 9, above 0.
        s_max: as for HAT.
        clamp_threshold: as for HAT.
        mask_sparsity_reg_factor: as for HAT.
        mask_sparsity_reg_mode: as for HAT.
        task_embedding_init_mode: as for HAT.
        epsilon: of eq. 9, above 0.
        non_algorithmic_hparams: as for HAT.
        protection: as for HAT; with "exact" n is the number of tasks that use both ends.
        disable_unlearning: as for CLAlgorithm.

    Raises:
        ValueError: an argument is not as above.
    """

    modes: ClassVar[tuple[str, ...]] = ("adahat", "adahat_no_sum", "adahat_no_reg")
    _is_adaptive = True

    @spellings(
        mask_sparsity_factor="mask_sparsity_reg_factor",
        mask_sparsity_mode="mask_sparsity_reg_mode",
        task_embedding_init="task_embedding_init_mode",
    )
    def __init__(
        self,
        backbone: HATMaskBackbone,
        heads: Heads,
        adjustment_mode: str,
        adjustment_intensity: float,
        s_max: float,
        clamp_threshold: float,
        mask_sparsity_reg_factor: float,
        mask_sparsity_reg_mode: str = "original",
        task_embedding_init_mode: str = "N01",
        epsilon: float = 0.1,
        non_algorithmic_hparams: dict[str, Any] | None = None,
        *,
        protection: str = "min",
        disable_unlearning: bool = True,
    ) -> None:
        super().__init__(
            backbone,
            heads,
            adjustment_mode,
            s_max,
            clamp_threshold,
            mask_sparsity_reg_factor,
            mask_sparsity_reg_mode,
            task_embedding_init_mode,
            None,
            non_algorithmic_hparams,
            protection=protection,
        )
        own = {"adjustment_intensity": adjustment_intensity, "epsilon": epsilon}
        self.save_hyperparameters(own)
        self.adjustment_intensity, self.epsilon = adjustment_intensity, epsilon
        AdaHAT.sanity_check(self)

    def sanity_check(self) -> None:
        """Raise ValueError where an argument of AdaHAT's own is not as documented."""
        name = type(self).__name__
        check_number(f"{name}: adjustment_intensity", self.adjustment_intensity, 0, above=True)
        check_number(f"{name}: epsilon", self.epsilon, 0, above=True)

    @property
    def summative_mask_for_previous_tasks(self) -> HandedMasks[str, Tensor]:
        """Layer -> how many stored tasks use the unit; copies, which can be assigned to.

        What is assigned, whole numbers, counts for the rates in place of the stored masks, and
        tasks that end later add to it, until {} is assigned. It is a part of ``state_dict``.
        """
        write = functools.partial(self._assign, "summative")
        return HandedMasks(self.backbone.get_summative_mask(), write)

    @summative_mask_for_previous_tasks.setter
    def summative_mask_for_previous_tasks(self, value: Mapping[str, Tensor]) -> None:
        self._assign("summative", value)

    def _plan(
        self, layers: list[str], network_sparsity: dict[str, Tensor] | None
    ) -> tuple[str, list[float], int]:
        epsilon = self.epsilon or 0.0
        if self.adjustment_mode == "adahat_no_reg":
            return "adahat", [self.adjustment_intensity / epsilon] * len(layers), 0
        if network_sparsity is None:
            raise ValueError(
                "AdaHAT.clip_grad_by_adjustment: network_sparsity is None, wanted what the"
                f" regulariser returns for {self.adjustment_mode!r}"
            )
        # One wait for the device: the kernels take numbers.
        shares = torch.stack([network_sparsity[name] for name in network_sparsity]).tolist()
        r = {
            name: self.adjustment_intensity / (epsilon + share)
            for name, share in zip(network_sparsity, shares, strict=True)
        }
        if self.adjustment_mode == "adahat":
            return "adahat", [r[name] for name in layers], 0
        task = self.backbone.current_task()
        return SCALE, [r[name] / (task + r[name]) for name in layers], 0
