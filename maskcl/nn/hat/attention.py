"""Multi-head attention as four layers with units, in the place of ``nn.MultiheadAttention``."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn.hat.layers import HATLinear
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.replace_modules import with_hooks


class HATAttention(nn.Module):
    """What ``nn.MultiheadAttention`` computes, its projections layers of their own.

    The units of ``value`` go through the heads to ``out_proj``; those of ``query`` and ``key`` end
    in the weights of the attention, which all tasks use.

    Args:
        original: whose weights are taken over.
    """

    # torch's transformer layers ask for these to choose their way.
    in_proj_bias = None
    _qkv_same_embed_dim = False

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim = original.embed_dim
        self.num_heads = original.num_heads
        self.dropout = original.dropout
        self.batch_first = original.batch_first
        weights = _weights(original)
        bias = original.in_proj_bias
        biases = [None] * 3 if bias is None else list(bias.detach().chunk(3))
        self.query, self.key, self.value = (
            _layer(weight, part) for weight, part in zip(weights, biases, strict=True)
        )
        self.out_proj = _layer(original.out_proj.weight, original.out_proj.bias)
        self.training = original.training

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention`` has it."""
        is_batched = query.dim() == 3
        if not is_batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = (
            self._heads(layer(x))
            for layer, x in ((self.query, query), (self.key, key), (self.value, value))
        )
        mask = self._mask(q, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.embed_dim // self.num_heads)
            weights = torch.softmax(scores if mask is None else scores + mask, -1)
            weights = F.dropout(weights, dropout, self.training)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if is_batched else weights.squeeze(0)
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if not is_batched:
            return y.squeeze(0), weights
        return y if self.batch_first else y.transpose(0, 1), weights

    def _heads(self, x: Tensor) -> Tensor:
        """[N, L, E] as [N, heads, L, E / heads]."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(self, q: Tensor, attn: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """What is added to the scores; None for nothing."""
        found = None
        if attn is not None:
            found = _added(attn, q.dtype)
            if found.dim() == 3:  # [N * heads, L, S]
                found = found.unflatten(0, (-1, self.num_heads))
        if padding is not None:
            padding = _added(padding, q.dtype)
            padding = padding[None] if padding.dim() == 1 else padding
            padding = padding[:, None, None, :]
            found = padding if found is None else found + padding
        return found

    def plain(self, layers: dict[str, nn.Linear]) -> nn.MultiheadAttention:
        """The ordinary module with the weights of these layers, named as here."""
        parts = [layers[name] for name in ("query", "key", "value")]
        kdim, vdim = parts[1].in_features, parts[2].in_features
        new: Any = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            bias=parts[0].bias is not None,
            kdim=kdim,
            vdim=vdim,
            batch_first=self.batch_first,
            device="meta",
        )
        if new._qkv_same_embed_dim:
            new.in_proj_weight = nn.Parameter(torch.cat([p.weight.detach() for p in parts]))
        else:
            new.q_proj_weight, new.k_proj_weight, new.v_proj_weight = (p.weight for p in parts)
        if parts[0].bias is not None:
            new.in_proj_bias = nn.Parameter(torch.cat([p.bias.detach() for p in parts]))
        new.out_proj.weight, new.out_proj.bias = layers["out_proj"].weight, layers["out_proj"].bias
        return new


def attention_like(module: nn.MultiheadAttention) -> nn.Module | None:
    """A HATAttention for it; None where it is frozen.

    Raises:
        ConversionError: it has something that HATAttention has not, or a part of it is frozen.
    """
    trains = {p.requires_grad for p in module.parameters()}
    if True not in trains:
        return None
    if len(trains) > 1 or module.bias_k is not None or module.add_zero_attn:
        raise ConversionError(
            "to_hat: an nn.MultiheadAttention has add_bias_kv, add_zero_attn or a part that is"
            " frozen; wanted one without, or frozen as a whole"
        )
    if type(module) is not nn.MultiheadAttention:
        return None
    new: nn.Module = with_hooks(HATAttention(module), module)
    module._parameters.clear()  # copied: a large model's would be there twice
    module.out_proj._parameters.clear()
    return new


def _weights(module: Any) -> list[Tensor]:
    if module._qkv_same_embed_dim:
        return list(module.in_proj_weight.detach().chunk(3))
    return [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]


def _layer(weight: Tensor, bias: Tensor | None) -> HATLinear:
    new: Any = HATLinear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    new.weight = nn.Parameter(weight.detach().clone())
    new.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return cast(HATLinear, new)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask as numbers to add: -inf where a boolean one says that it is not to be looked at."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
