"""The MLP of a HAT transformer's block."""

from __future__ import annotations

from typing import Any

from timm.layers import to_2tuple
from torch import nn

from maskcl.compat.hat_cl._base import HATPayloadCarrierMixin
from maskcl.compat.hat_cl.modules import HATLinear
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.types_ import HATConfig


class HATMlp(HATPayloadCarrierMixin):
    """Two HATLinear with an activation between them.

    Args:
        in_features: of the input.
        hat_config: of the maskers.
        hidden_features, out_features: None: as in_features.
        act_layer: class of the activation.
        bias, drop: of both layers, or a pair.
    """

    def __init__(
        self,
        in_features: int,
        hat_config: HATConfig,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: type[nn.Module] = nn.GELU,
        bias: Any = True,
        drop: Any = 0.0,
    ) -> None:
        super().__init__()
        hidden = hidden_features or in_features
        biases, drops = to_2tuple(bias), to_2tuple(drop)
        self.fc1 = HATLinear(in_features, hidden, hat_config, bias=biases[0])
        self.act = act_layer()
        self.drop1 = nn.Dropout(drops[0])
        self.fc2 = HATLinear(hidden, out_features or in_features, hat_config, bias=biases[1])
        self.drop2 = nn.Dropout(drops[1])

    def forward(self, pld: HATPayload) -> HATPayload:
        """A payload of [.., in_features] -> of [.., out_features]."""
        for part in (self.fc1, self.act, self.drop1, self.fc2, self.drop2):
            pld = pld.forward_by(part)
        return pld
