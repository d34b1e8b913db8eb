"""``clarena.backbones.mlp``: the MLPs, with masks too, as in versions 1.0 and 1.1."""

from maskcl.compat.clarena.backbones.hat_mask_mlp import HATMaskMLP
from maskcl.compat.clarena.backbones.plain_mlp import CLMLP, MLP

__all__ = ["MLP", "CLMLP", "HATMaskMLP"]
