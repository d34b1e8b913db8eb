"""``clarena.backbones.hatmask_mlp``: ``hat_mask_mlp`` in versions between 1.0 and 1.1."""

from maskcl.compat.clarena.backbones.hat_mask_mlp import HATMaskMLP

__all__ = ["HATMaskMLP"]
