"""HAT's linear layer."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.compat.hat_cl._waiting_product import LinearProduct
from maskcl.compat.hat_cl.modules._masked_layer import HATMaskedModuleABC
from maskcl.compat.hat_cl.modules.utils import register_mapping
from maskcl.compat.hat_cl.types_ import HATConfig


@register_mapping
class HATLinear(HATMaskedModuleABC, nn.Linear):  # type: ignore[misc]
    """``nn.Linear`` whose output units carry one mask a task.

    Args:
        in_features, out_features, bias, device, dtype: as for ``nn.Linear``.
        hat_config: of the masker.

    Shape: a payload of [.., in_features] -> of [.., out_features].
    """

    base_class = nn.Linear
    channel_dim = -1

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hat_config: HATConfig,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            num_features=out_features,
            hat_config=hat_config,
            device=device,
            dtype=dtype,
            in_features=in_features,
            out_features=out_features,
            bias=bias,
        )

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x W^T + b."""
        return F.linear(x, weight, bias)

    def deferred(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> LinearProduct:
        """The product: the mask will be its epilogue."""
        return LinearProduct(x, weight, bias)

    def to_base_module(self, task_id: int | None = None, **kwargs: Any) -> nn.Sequential:
        """An ``nn.Linear`` and the task's AttentionMasker (an Identity for no task).

        Args:
            task_id: which task.
            kwargs: of `HATMasker.to_base_module`.
        """
        options = {"device": self.weight.device, "dtype": self.weight.dtype}
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, **options)
        return self._with_masker(linear, task_id, kwargs)

    @classmethod
    def from_base_module(cls, base_module: nn.Linear, **kwargs: Any) -> HATLinear:
        """The same weights under masks.

        Args:
            base_module: it.
            kwargs: of HATConfig.
        """
        layer = cls(
            base_module.in_features,
            base_module.out_features,
            HATConfig(**kwargs),
            base_module.bias is not None,
            base_module.weight.device,
            base_module.weight.dtype,
        )
        layer.load_from_base_module(base_module)
        return layer
