"""HAT networks by timm's names; importing this registers them.

Example:
    import timm
    import maskcl.compat.hat_cl.timm_models
    from maskcl.compat.hat_cl import HATConfig

    net = timm.create_model("hat_resnet18", hat_config=HATConfig(num_tasks=10))
"""

from maskcl.compat.hat_cl.timm_models.resnet import (
    HATBasicBlock,
    HATResNet,
    ResNet_,
    hat_resnet18,
    hat_resnet18s,
    hat_resnet34,
    hat_resnet34s,
    resnet18s,
    resnet34s,
)
from maskcl.compat.hat_cl.timm_models.vision_transformer import (
    HATAttention,
    HATBlock,
    HATVisionTransformer,
    TaskIndexedLayerScale,
    hat_vit_base_patch16_224,
    hat_vit_tiny_patch16_224,
    hat_vit_tiny_patch16_224_in21k,
)

__all__ = [
    "HATAttention",
    "HATBasicBlock",
    "HATBlock",
    "HATResNet",
    "HATVisionTransformer",
    "ResNet_",
    "TaskIndexedLayerScale",
    "hat_resnet18",
    "hat_resnet18s",
    "hat_resnet34",
    "hat_resnet34s",
    "hat_vit_base_patch16_224",
    "hat_vit_tiny_patch16_224",
    "hat_vit_tiny_patch16_224_in21k",
    "resnet18s",
    "resnet34s",
]
