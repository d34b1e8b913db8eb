"""HAT's ResNets by timm's names: timm's own networks, their layers converted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet, _cfg
from torch import nn
from torch.utils.checkpoint import checkpoint

from maskcl.compat.hat_cl._base import HATPayloadCarrierMixin
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.timm_models.utils import convert_children_to_task_dependent_modules
from maskcl.compat.hat_cl.types_ import HATConfig

# Their methods take tensors; here these take payloads.
_Block: Any = BasicBlock
_ResNet: Any = ResNet
_SMALL: dict[str, Any] = {"input_size": (3, 32, 32), "pool_size": (4, 4)}
default_cfgs = generate_default_cfgs(
    {
        "resnet18s": _cfg(**_SMALL),
        "resnet34s": _cfg(**_SMALL),
        "hat_resnet18": _cfg(),
        "hat_resnet18s": _cfg(**_SMALL),
        "hat_resnet34": _cfg(),
        "hat_resnet34s": _cfg(**_SMALL),
    }
)
_LAYERS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class HATBasicBlock(_Block, HATPayloadCarrierMixin):
    """timm's BasicBlock on payloads; its sum is under conv2's mask.

    Args:
        args, kwargs: of timm's.
        hat_config: of the maskers.
    """

    # What timm's brings.
    conv1: Any
    bn1: Any
    drop_block: Any
    act1: Any
    aa: Any
    conv2: Any
    bn2: Any
    se: Any
    drop_path: Any
    downsample: Any
    act2: Any

    def __init__(self, *args: Any, hat_config: HATConfig, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        convert_children_to_task_dependent_modules(self, **hat_config)

    def zero_init_last(self) -> None:
        """Start as the shortcut alone."""
        for norm in self.bn2:
            nn.init.zeros_(norm.weight)

    def forward(self, x: HATPayload) -> HATPayload:
        """The payload behind the block."""
        shortcut = x
        for part in (self.conv1, self.bn1, self.drop_block, self.act1, self.aa):
            x = x.forward_by(part)
        for part in (self.conv2, self.bn2, self.se, self.drop_path):
            x = x if part is None else x.forward_by(part)
        if self.downsample is not None:
            shortcut = shortcut.forward_by(self.downsample)
        return (x + shortcut).forward_by(self.act2)


class ResNet_(_ResNet):  # noqa: N801
    """timm's ResNet, perhaps with a stem for small images.

    Args:
        layers: blocks by stage.
        block: which block.
        reduced_conv1_kernel: the first convolution is 3x3 of stride 1.
        kwargs: of timm's.

    Raises:
        ValueError: the stem has more than one convolution.
    """

    # What timm's brings.
    conv1: Any
    bn1: Any
    act1: Any
    maxpool: Any
    layer1: Any
    layer2: Any
    layer3: Any
    layer4: Any
    global_pool: Any
    fc: Any
    drop_rate: float

    def __init__(
        self,
        layers: Sequence[int],
        block: Any = BasicBlock,
        *,
        reduced_conv1_kernel: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(block, tuple(layers), **kwargs)
        if not reduced_conv1_kernel:
            return
        if not isinstance(self.conv1, nn.Conv2d):
            raise ValueError("ResNet_: reduced_conv1_kernel needs a stem of one convolution")
        channels = (self.conv1.in_channels, self.conv1.out_channels)
        self.conv1 = nn.Conv2d(*channels, kernel_size=3, stride=1, padding=1, bias=False)


class HATResNet(ResNet_, HATPayloadCarrierMixin):
    """timm's ResNet on payloads.

    Args:
        layers: blocks by stage.
        hat_config: of the maskers.
        block: which block.
        block_args: of the block.
        kwargs: of `ResNet_`.
    """

    def __init__(
        self,
        layers: Sequence[int],
        hat_config: HATConfig,
        block: Any = HATBasicBlock,
        block_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        block_args = (block_args or {}) | {"hat_config": hat_config}
        super().__init__(layers, block, block_args=block_args, **kwargs)
        convert_children_to_task_dependent_modules(self, **hat_config)
        self.drop_fc = nn.Dropout(self.drop_rate) if self.drop_rate else nn.Identity()

    def forward_features(self, x: HATPayload) -> HATPayload:
        """The payload in front of the pooling."""
        for part in (self.conv1, self.bn1, self.act1, self.maxpool):
            x = x.forward_by(part)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = _recomputed(block, x) if self._recomputes() else block(x)
        return x

    def _recomputes(self) -> bool:
        return bool(self.grad_checkpointing) and torch.is_grad_enabled()

    def forward_head(self, x: HATPayload, pre_logits: bool = False) -> HATPayload:
        """The logits; the pooled features with ``pre_logits``."""
        x = x.forward_by(self.global_pool).forward_by(self.drop_fc)
        return x if pre_logits else x.forward_by(self.fc)

    def forward(self, x: HATPayload) -> HATPayload:
        """The payload of the logits."""
        return self.forward_head(self.forward_features(x))


def _recomputed(module: nn.Module, pld: HATPayload) -> HATPayload:
    """``module(pld)`` that keeps its input alone and runs again in the backward."""
    behind: list[HATPayload] = []

    def run(data: torch.Tensor) -> torch.Tensor:
        found = module(pld.derive(data, mask_applied=pld.masker is not None))
        behind.append(found)
        return found.data

    data = checkpoint(run, pld.data, use_reentrant=False)
    return behind[0].derive(data, mask_applied=behind[0].masker is not None)


def _resnet(depth: int, small: bool, pretrained: bool, options: dict[str, Any]) -> Any:
    return build_model_with_cfg(
        ResNet_,
        f"resnet{depth}s",
        pretrained,
        block=BasicBlock,
        layers=_LAYERS[depth],
        reduced_conv1_kernel=small,
        **options,
    )


def _hat_resnet(depth: int, small: bool, pretrained: bool, options: dict[str, Any]) -> Any:
    return build_model_with_cfg(
        HATResNet,
        f"hat_resnet{depth}{'s' if small else ''}",
        pretrained,
        layers=_LAYERS[depth],
        reduced_conv1_kernel=small,
        **options,
    )


@register_model
def resnet18s(pretrained: bool = False, **kwargs: Any) -> Any:
    """ResNet-18 with a stem for small images, no masks."""
    return _resnet(18, True, pretrained, kwargs)


@register_model
def resnet34s(pretrained: bool = False, **kwargs: Any) -> Any:
    """ResNet-34 with a stem for small images, no masks."""
    return _resnet(34, True, pretrained, kwargs)


@register_model
def hat_resnet18(pretrained: bool = False, **kwargs: Any) -> Any:
    """HAT's ResNet-18; give ``hat_config``."""
    return _hat_resnet(18, False, pretrained, kwargs)


@register_model
def hat_resnet18s(pretrained: bool = False, **kwargs: Any) -> Any:
    """HAT's ResNet-18 with a stem for small images; give ``hat_config``."""
    return _hat_resnet(18, True, pretrained, kwargs)


@register_model
def hat_resnet34(pretrained: bool = False, **kwargs: Any) -> Any:
    """HAT's ResNet-34; give ``hat_config``."""
    return _hat_resnet(34, False, pretrained, kwargs)


@register_model
def hat_resnet34s(pretrained: bool = False, **kwargs: Any) -> Any:
    """HAT's ResNet-34 with a stem for small images; give ``hat_config``."""
    return _hat_resnet(34, True, pretrained, kwargs)
