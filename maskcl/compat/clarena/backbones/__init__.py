"""CLArena's backbones: ``clarena.backbones``."""

from maskcl.compat.clarena.backbones import (
    hat_mask_mlp,
    hat_mask_resnet,
    hatmask_mlp,
    hatmask_resnet,
    mlp,
    resnet,
)
from maskcl.compat.clarena.backbones.base import Backbone, CLBackbone, HATMaskBackbone
from maskcl.compat.clarena.backbones.hat_mask_mlp import HATMaskMLP
from maskcl.compat.clarena.backbones.hat_mask_resnet import (
    HATMaskResNet18,
    HATMaskResNet34,
    HATMaskResNet50,
    HATMaskResNet101,
    HATMaskResNet152,
)
from maskcl.compat.clarena.backbones.mlp import CLMLP, MLP
from maskcl.compat.clarena.backbones.resnet import (
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
)

__all__ = [
    "Backbone",
    "CLBackbone",
    "HATMaskBackbone",
    "MLP",
    "CLMLP",
    "HATMaskMLP",
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
    "HATMaskResNet18",
    "HATMaskResNet34",
    "HATMaskResNet50",
    "HATMaskResNet101",
    "HATMaskResNet152",
    "mlp",
    "hat_mask_mlp",
    "hatmask_mlp",
    "resnet",
    "hat_mask_resnet",
    "hatmask_resnet",
]
