"""Attention, layer scale and block of the HAT transformer."""

from __future__ import annotations

from typing import Any

from timm.layers import DropPath, LayerScale
from torch import nn

from maskcl.compat.hat_cl._base import HATPayloadCarrierMixin
from maskcl.compat.hat_cl.modules import HATLinear, TaskIndexedLayerNorm
from maskcl.compat.hat_cl.modules._base import TaskIndexedModuleListABC, wanted_tasks
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.timm_models.layers import HATMlp
from maskcl.compat.hat_cl.types_ import HATConfig


class HATAttention(HATPayloadCarrierMixin):
    """Self-attention whose projections' units carry masks.

    Args:
        dim: of the tokens.
        hat_config: of the maskers.
        num_heads: a divisor of dim.
        qkv_bias: biases of query, key and value.
        attn_drop, proj_drop: dropout of weights and output.

    Raises:
        ValueError: num_heads is no divisor of dim.
    """

    def __init__(
        self,
        dim: int,
        hat_config: HATConfig,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"HATAttention: num_heads is {num_heads}, wanted a divisor of {dim}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.hat_config = hat_config
        self.qkv_q = HATLinear(dim, dim, hat_config, bias=qkv_bias)
        self.qkv_k = HATLinear(dim, dim, hat_config, bias=qkv_bias)
        self.qkv_v = HATLinear(dim, dim, hat_config, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = HATLinear(dim, dim, hat_config)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, pld: HATPayload) -> HATPayload:
        """A payload of [N, tokens, dim] -> of the same."""
        batch, tokens, dim = pld.data.shape
        heads = (batch, tokens, self.num_heads, self.head_dim)
        q = self.qkv_q(pld).reshape(*heads).permute(0, 2, 1, 3)
        k = self.qkv_k(pld).reshape(*heads).permute(0, 2, 3, 1)
        v = self.qkv_v(pld).reshape(*heads).permute(0, 2, 1, 3)
        # The masks are in q, k and v; the weights over tokens belong to no unit.
        scores = (q @ k) * self.scale
        weights = scores.derive(self.attn_drop(scores.data.softmax(dim=-1)), mask_applied=True)
        x = (weights @ v).transpose(1, 2).reshape(batch, tokens, dim)
        return x.forward_by(self.proj).forward_by(self.proj_drop)


class TaskIndexedLayerScale(TaskIndexedModuleListABC):
    """One timm ``LayerScale`` a task: num_tasks, then its arguments."""

    base_class = LayerScale

    @classmethod
    def from_base_module(
        cls, base_module: LayerScale, num_tasks: int | None = None, **kwargs: Any
    ) -> TaskIndexedLayerScale:
        """A copy for every task, and one for no task.

        Args:
            base_module: an ordinary layer scale.
            num_tasks: how many tasks.
            kwargs: of other modules' conversion.
        """
        gamma = base_module.gamma
        scale = cls(
            wanted_tasks(cls.__name__, num_tasks),
            gamma.numel(),
            init_values=base_module.init_values,
            device=gamma.device,
            dtype=gamma.dtype,
        )
        scale.load_from_base_module(base_module)
        return scale


class HATBlock(HATPayloadCarrierMixin):
    """Attention and MLP, each behind a norm and beside a shortcut.

    Args:
        dim: of the tokens.
        num_heads: of the attention.
        hat_config: of the maskers.
        mlp_ratio: hidden units of the MLP by dim.
        qkv_bias, drop, attn_drop, drop_path: as for timm's block.
        init_values: of the layer scales; None for none.
        act_layer: class of the MLP's activation.
        norm_layer: makes a task indexed norm of (num_tasks, dim).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hat_config: HATConfig,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: type[nn.Module] = nn.GELU,
        norm_layer: Any = TaskIndexedLayerNorm,
    ) -> None:
        super().__init__()
        tasks = hat_config.num_tasks

        def scale() -> nn.Module:
            if init_values is None:
                return nn.Identity()
            return TaskIndexedLayerScale(tasks, dim, init_values=init_values)

        def path() -> nn.Module:
            return DropPath(drop_path) if drop_path > 0 else nn.Identity()

        self.norm1 = norm_layer(tasks, dim)
        self.attn = HATAttention(dim, hat_config, num_heads, qkv_bias, attn_drop, drop)
        self.ls1, self.drop_path1 = scale(), path()
        self.norm2 = norm_layer(tasks, dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = HATMlp(dim, hat_config, hidden, act_layer=act_layer, drop=drop)
        self.ls2, self.drop_path2 = scale(), path()

    def forward(self, pld: HATPayload) -> HATPayload:
        """A payload of [N, tokens, dim] -> of the same."""
        inner = pld
        for part in (self.norm1, self.attn, self.ls1, self.drop_path1):
            inner = inner.forward_by(part)
        pld = pld + inner
        inner = pld
        for part in (self.norm2, self.mlp, self.ls2, self.drop_path2):
            inner = inner.forward_by(part)
        return inner + pld
