"""Parts of the HAT transformer."""

from maskcl.compat.hat_cl.timm_models.layers.mlp import HATMlp
from maskcl.compat.hat_cl.timm_models.layers.patch_embed import HATPatchEmbed

__all__ = ["HATMlp", "HATPatchEmbed"]
