"""HAT on CLArena's hooks (Serra et al. 2018, arXiv 1801.01423)."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from maskcl.compat.clarena.backbones import HATMaskBackbone
from maskcl.compat.clarena.backbones.handed_masks import Masks
from maskcl.compat.clarena.backbones.masked import INITS
from maskcl.compat.clarena.checks import check_number
from maskcl.compat.clarena.cl_algorithms.adjustment import (
    Adjustment,
    AdjustmentRates,
    user_counts,
)
from maskcl.compat.clarena.cl_algorithms.base import Heads
from maskcl.compat.clarena.cl_algorithms.module import their_class
from maskcl.compat.clarena.cl_algorithms.regularizers.hat_mask_sparsity import (
    MODES,
    HATMaskSparsityReg,
)
from maskcl.compat.clarena.cl_algorithms.steps import MaskedAlgorithm
from maskcl.compat.clarena.heads.kinds import kind_of
from maskcl.compat.clarena.spelling import spellings

__all__ = ["HAT"]

_PROTECTIONS = ("min", "exact")
_Theirs: Any = their_class("HAT")


class HAT(MaskedAlgorithm, _Theirs):
    """Hard attention to the task.

    Args:
        backbone: a HATMaskBackbone.
        heads: HeadsTIL or HeadDIL.
        adjustment_mode: what happens to the gradients of weights that stored tasks use: "hat", 0
            (and no optimizer moves them); "hat_random", times uniform numbers; "hat_const_alpha",
            times ``alpha``; "hat_const_1", nothing. Only "hat" keeps stored tasks' outputs.
        s_max: largest scale of the gates, at least 1.
        clamp_threshold: bound on |s e| in the compensation of the embeddings' gradient.
        mask_sparsity_reg_factor: c, the weight of the sparsity term.
        mask_sparsity_reg_mode: "original" (eq. 5) or "cross".
        task_embedding_init_mode: "N01", "U-11", "U01", "U-10" or "last".
        alpha: of "hat_const_alpha", at least 0.
        non_algorithmic_hparams: saved among ``hparams``.
        protection: which weights stored tasks use: "min", CLArena's and the paper's eq. 2, where
            any task uses the one end and any the other; "exact", where some task uses both.
        disable_unlearning: as for CLAlgorithm.

    Raises:
        ValueError: an argument is not as above.
    """

    modes: ClassVar[tuple[str, ...]] = ("hat", "hat_random", "hat_const_alpha", "hat_const_1")

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
        s_max: float,
        clamp_threshold: float,
        mask_sparsity_reg_factor: float,
        mask_sparsity_reg_mode: str = "original",
        task_embedding_init_mode: str = "N01",
        alpha: float | None = None,
        non_algorithmic_hparams: dict[str, Any] | None = None,
        *,
        protection: str = "min",
        disable_unlearning: bool = True,
    ) -> None:
        super().__init__(backbone, heads, non_algorithmic_hparams)
        own = {
            "adjustment_mode": adjustment_mode,
            "s_max": s_max,
            "clamp_threshold": clamp_threshold,
            "mask_sparsity_reg_factor": mask_sparsity_reg_factor,
            "mask_sparsity_reg_mode": mask_sparsity_reg_mode,
            "task_embedding_init_mode": task_embedding_init_mode,
            "alpha": alpha,
        }
        self.save_hyperparameters(own)
        for name, value in own.items():
            setattr(self, name, value)
        # AdaHAT's; HAT of 1.0 had it too.
        self.epsilon: float | None = None
        self._check("protection", protection, _PROTECTIONS)
        self._exact = protection == "exact"
        self.mark_sparsity_reg = HATMaskSparsityReg(
            mask_sparsity_reg_factor, mask_sparsity_reg_mode
        )
        # Training steps do backward and step themselves.
        self.automatic_optimization = False
        HAT.sanity_check(self)
        backbone.clamp_threshold = clamp_threshold

    def sanity_check(self) -> None:
        """Raise ValueError where an argument is not as documented; warn of what will forget."""
        name = type(self).__name__
        if not isinstance(self.backbone, HATMaskBackbone):
            found = type(self.backbone).__name__
            raise ValueError(f"{name}: backbone is a {found}, wanted a HATMaskBackbone")
        HATMaskBackbone.sanity_check(self.backbone)
        if kind_of(self.heads) == "CIL":
            raise ValueError(f"{name}: heads are HeadsCIL, wanted HeadsTIL or HeadDIL")
        self._check("adjustment_mode", self.adjustment_mode, self.modes)
        self._check("mask_sparsity_reg_mode", self.mask_sparsity_reg_mode, MODES)
        self._check("task_embedding_init_mode", self.task_embedding_init_mode, INITS)
        check_number(f"{name}: s_max", self.s_max, 1)
        check_number(f"{name}: clamp_threshold", self.clamp_threshold, 0, above=True)
        if self.adjustment_mode == "hat_const_alpha":
            check_number(f"{name}: alpha", self.alpha, 0)
        unprotected = self.backbone.unprotected()
        if unprotected and self.adjustment_mode == "hat":
            shown = ", ".join(unprotected[:3]) + (", .." if len(unprotected) > 3 else "")
            warnings.warn(
                f"{name}: every task trains {shown}, which no mask protects: stored tasks will be"
                " forgotten",
                stacklevel=4,
            )

    def _check(self, argument: str, value: str, choices: tuple[str, ...]) -> None:
        if value not in choices:
            wanted = ", ".join(map(repr, choices))
            found = f"{argument} is {value!r}"
            raise ValueError(f"{type(self).__name__}: {found}, wanted one of {wanted}")

    def clip_grad_by_adjustment(
        self, network_sparsity: dict[str, Tensor] | None = None
    ) -> tuple[AdjustmentRates, AdjustmentRates, Tensor]:
        """Adjust the backbone's gradients, in place.

        Args:
            network_sparsity: layer -> share of the free units that the mask takes; for AdaHAT.

        Returns:
            Layer -> rates of its weights, of its biases (computed when looked at), and the
            network's capacity, the mean rate.

        Raises:
            ValueError: network_sparsity is None, and the mode needs it.
        """
        summative, exact, bits = self._is_adaptive, self._exact, self.backbone.task_bits
        protection = self.backbone.protection(summative)
        rule, values, seed = self._plan(protection.layers, network_sparsity)
        counts = bits.kept(
            f"counts {exact} {summative}",
            lambda: user_counts(protection, exact),
            bits.sources(),
        )
        adjustment = Adjustment(protection, rule, values, exact, seed, counts)
        adjustment.apply_()
        head = self.head_protection() if self.adjustment_mode == "hat" else None
        if head is not None:
            head.clamp_(exact=exact)
        device = self.backbone.embeddings()[0].device
        capacity = torch.full((), adjustment.capacity(), device=device)
        rates = (AdjustmentRates(adjustment, kind) for kind in ("weight", "bias"))
        return next(rates), next(rates), capacity

    def _plan(
        self, layers: list[str], network_sparsity: dict[str, Tensor] | None
    ) -> tuple[str, list[float], int]:
        """Rule, its value for each parameter of these layers, and its seed."""
        rule, value = {
            "hat": ("hat", 0.0),
            "hat_random": ("random", 0.0),
            "hat_const_alpha": ("const", self.alpha),
        }.get(self.adjustment_mode, ("const", 1.0))
        # From torch's generator, so that torch.manual_seed repeats a run.
        seed = int(torch.randint(2**62, ())) if rule == "random" else 0
        return rule, [float(value)] * len(layers), seed

    @torch.no_grad()
    def clip_grad_by_mask(self, mask: Masks, aggregation_mode: str) -> None:
        """Multiply the gradients of weights by a mask's measure of them, in place.

        Args:
            mask: layer -> [units].
            aggregation_mode: of a weight's two ends: "min", "max" or "mean".
        """
        for name in self.backbone.weighted_layer_names:
            layer = self.backbone.weighted_layer(name)
            measures = self.backbone.get_layer_measure_parameter_wise(mask, name, aggregation_mode)
            for parameter, measure in zip((layer.weight, layer.bias), measures, strict=True):
                if parameter is not None and parameter.grad is not None:
                    parameter.grad.mul_(measure)
