"""``clarena.backbones.resnet``: the ResNets, with masks too, as in versions 1.0 and 1.1."""

from maskcl.compat.clarena.backbones.hat_mask_resnet import (
    HATMaskResNet18,
    HATMaskResNet34,
    HATMaskResNet50,
    HATMaskResNet101,
    HATMaskResNet152,
    HATMaskResNetBase,
    HATMaskResNetBlockLarge,
    HATMaskResNetBlockSmall,
)
from maskcl.compat.clarena.backbones.plain_resnet import (
    CLResNet18,
    CLResNet34,
    CLResNet50,
    CLResNet101,
    CLResNet152,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    ResNetBase,
)
from maskcl.compat.clarena.backbones.resnet_blocks import ResNetBlockLarge, ResNetBlockSmall

__all__ = [
    "ResNetBlockSmall",
    "ResNetBlockLarge",
    "ResNetBase",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "ResNet101",
    "ResNet152",
    "CLResNet18",
    "CLResNet34",
    "CLResNet50",
    "CLResNet101",
    "CLResNet152",
    "HATMaskResNetBlockSmall",
    "HATMaskResNetBlockLarge",
    "HATMaskResNetBase",
    "HATMaskResNet18",
    "HATMaskResNet34",
    "HATMaskResNet50",
    "HATMaskResNet101",
    "HATMaskResNet152",
]
