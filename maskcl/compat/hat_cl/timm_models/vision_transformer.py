"""HAT's vision transformers by timm's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from timm.layers import trunc_normal_
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    named_apply,
    register_model,
)
from timm.models.vision_transformer import get_init_weights_vit
from torch import nn

from maskcl.compat.hat_cl._base import HATPayloadCarrierMixin
from maskcl.compat.hat_cl.layout import Layout
from maskcl.compat.hat_cl.modules import HATLinear, TaskIndexedLayerNorm
from maskcl.compat.hat_cl.parameter import TaskIndexedParameter
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.timm_models._vit_blocks import (
    HATAttention,
    HATBlock,
    TaskIndexedLayerScale,
)
from maskcl.compat.hat_cl.timm_models._vit_weights import from_plain_state_dict
from maskcl.compat.hat_cl.timm_models.layers import HATPatchEmbed
from maskcl.compat.hat_cl.types_ import HATConfig

__all__ = ["HATAttention", "HATBlock", "HATVisionTransformer", "TaskIndexedLayerScale"]

_PLAIN = {
    "hat_vit_tiny_patch16_224": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "hat_vit_tiny_patch16_224_in21k": "vit_tiny_patch16_224.augreg_in21k",
    "hat_vit_base_patch16_224": "vit_base_patch16_224.augreg_in21k_ft_in1k",
}


def _config(plain: str) -> Any:
    found = get_pretrained_cfg(plain, allow_unregistered=False)
    assert found is not None
    # Weights in Flax's own files would be read by the ordinary model's loader.
    return replace(found, custom_load=False)


default_cfgs = generate_default_cfgs(
    {f"{name}.{plain.split('.')[1]}": _config(plain) for name, plain in _PLAIN.items()}
)


class HATVisionTransformer(HATPayloadCarrierMixin):
    """timm's VisionTransformer on payloads; class token and positions are the tasks' own.

    Args:
        hat_config: of the maskers.
        img_size, patch_size, in_chans: of the images.
        num_classes: 0 for no head.
        global_pool: ``token``, ``avg`` or empty.
        embed_dim, depth, num_heads, mlp_ratio, qkv_bias, init_values: of the blocks.
        class_token: one token more, in front.
        no_embed_class: it has no position.
        pre_norm, fc_norm: norms in front of the blocks and of the head (None: with ``avg``).
        drop_rate, attn_drop_rate, drop_path_rate: dropout.
        weight_init: ``jax``, ``jax_nlhb``, ``moco``, empty for timm's, or ``skip``.
        embed_layer, norm_layer, act_layer, block_fn: classes of the parts.

    Raises:
        ValueError: global_pool is unknown, or ``token`` without a class token.
    """

    def __init__(
        self,
        hat_config: HATConfig,
        img_size: Any = 224,
        patch_size: Any = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        init_values: float | None = None,
        class_token: bool = True,
        no_embed_class: bool = False,
        pre_norm: bool = False,
        fc_norm: bool | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        weight_init: str = "",
        embed_layer: Callable[..., Any] = HATPatchEmbed,
        norm_layer: Callable[..., Any] | None = None,
        act_layer: type[nn.Module] | None = None,
        block_fn: Callable[..., Any] = HATBlock,
    ) -> None:
        super().__init__()
        if global_pool not in ("", "avg", "token") or (global_pool == "token" and not class_token):
            raise ValueError(
                f"HATVisionTransformer: global_pool is {global_pool!r}, wanted 'token' with a class"
                " token, 'avg' or ''"
            )
        norm = norm_layer or partial(TaskIndexedLayerNorm, eps=1e-6)
        tasks = hat_config.num_tasks
        self.hat_config, self.num_classes, self.global_pool = hat_config, num_classes, global_pool
        self.num_features = self.embed_dim = embed_dim
        self.num_prefix_tokens = int(class_token)
        self.no_embed_class = no_embed_class
        self.grad_checkpointing = False
        size = {"img_size": img_size, "patch_size": patch_size, "in_chans": in_chans}
        self.patch_embed = embed_layer(hat_config, embed_dim=embed_dim, bias=not pre_norm, **size)
        token = torch.zeros(1, 1, embed_dim)
        self.cls_token = TaskIndexedParameter(tasks, token) if class_token else None
        length = self.patch_embed.num_patches + (0 if no_embed_class else self.num_prefix_tokens)
        self.pos_embed = TaskIndexedParameter(tasks, torch.randn(1, length, embed_dim) * 0.02)
        self.pos_drop = nn.Dropout(drop_rate)
        self.norm_pre = norm(tasks, embed_dim) if pre_norm else nn.Identity()
        shared = {
            "mlp_ratio": mlp_ratio,
            "qkv_bias": qkv_bias,
            "init_values": init_values,
            "drop": drop_rate,
            "attn_drop": attn_drop_rate,
            "act_layer": act_layer or nn.GELU,
            "norm_layer": norm,
        }
        paths = torch.linspace(0, drop_path_rate, depth).tolist()
        self.blocks = nn.Sequential(
            *(block_fn(embed_dim, num_heads, hat_config, drop_path=p, **shared) for p in paths)
        )
        behind = global_pool == "avg" if fc_norm is None else fc_norm
        self.norm = nn.Identity() if behind else norm(tasks, embed_dim)
        self.fc_norm = norm(tasks, embed_dim) if behind else nn.Identity()
        self.reset_classifier(num_classes)
        if weight_init != "skip":
            self.init_weights(weight_init)

    @torch.no_grad()
    def init_weights(self, mode: str = "") -> None:
        """Draw all weights as timm does; the norms' and masks stay."""
        for position in self.pos_embed:
            trunc_normal_(position, std=0.02)
        for token in self.cls_token or ():
            nn.init.normal_(token, std=1e-6)
        bias = -torch.tensor(float(self.num_classes)).log().item() if "nlhb" in mode else 0.0
        start = get_init_weights_vit(mode, bias, needs_reset=False)
        parts = (self.patch_embed, self.blocks, self.head)
        for name, part in zip(("patch_embed", "blocks", "head"), parts, strict=True):
            named_apply(start, part, name=name)

    def no_weight_decay(self) -> set[str]:
        """Names that are better not decayed."""
        return {"pos_embed", "cls_token", "dist_token"}

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head of ``num_classes``; 0 for none."""
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head: nn.Module = nn.Identity()
        if num_classes > 0:
            self.head = HATLinear(self.embed_dim, num_classes, self.hat_config)

    def _tokens(self, pld: HATPayload) -> HATPayload:
        """Class token and positions, under the patches' mask again."""
        if pld.task_id is None:
            raise ValueError("HATVisionTransformer: task_id is None, wanted a task: positions are")
        data = pld.data
        position = self.pos_embed[pld.task_id]
        if self.no_embed_class:
            data = data + position
        if self.cls_token is not None:
            token = self.cls_token[pld.task_id].expand(data.shape[0], -1, -1)
            data = torch.cat((token, data), dim=1)
        if not self.no_embed_class:
            data = data + position
        return pld.derive(self.pos_drop(data), layout=Layout(2, tuple(data.shape)))

    def forward_features(self, pld: HATPayload) -> HATPayload:
        """A payload of all tokens."""
        pld = self._tokens(self.patch_embed(pld))
        for part in (self.norm_pre, self.blocks, self.norm):
            pld = pld.forward_by(part)
        return pld

    def forward_head(self, pld: HATPayload, pre_logits: bool = False) -> HATPayload:
        """The payload of the logits, or of what the head gets."""
        data = pld.data
        if self.global_pool:
            tokens = data[:, self.num_prefix_tokens :].mean(1)
            data = tokens if self.global_pool == "avg" else data[:, 0]
        layout = Layout(data.dim() - 1, tuple(data.shape))
        pld = pld.derive(data, layout=layout, mask_applied=True).forward_by(self.fc_norm)
        return pld if pre_logits else pld.forward_by(self.head)

    def forward(self, pld: HATPayload) -> HATPayload:
        """A payload of images -> of logits."""
        return self.forward_head(self.forward_features(pld))


def _vit(name: str, pretrained: bool, options: dict[str, Any]) -> Any:
    return build_model_with_cfg(
        HATVisionTransformer,
        name,
        pretrained,
        pretrained_filter_fn=from_plain_state_dict,
        patch_size=16,
        depth=12,
        **options,
    )


@register_model
def hat_vit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> Any:
    """HAT's ViT-Tiny; give ``hat_config``."""
    options = {"embed_dim": 192, "num_heads": 3} | kwargs
    return _vit("hat_vit_tiny_patch16_224", pretrained, options)


@register_model
def hat_vit_tiny_patch16_224_in21k(pretrained: bool = False, **kwargs: Any) -> Any:
    """HAT's ViT-Tiny with the weights of ImageNet-21k; give ``hat_config``."""
    options = {"embed_dim": 192, "num_heads": 3} | kwargs
    return _vit("hat_vit_tiny_patch16_224_in21k", pretrained, options)


@register_model
def hat_vit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> Any:
    """HAT's ViT-Base; give ``hat_config``."""
    options = {"embed_dim": 768, "num_heads": 12} | kwargs
    return _vit("hat_vit_base_patch16_224", pretrained, options)
