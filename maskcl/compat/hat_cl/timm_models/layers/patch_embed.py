"""Images to the tokens of a HAT transformer."""

from __future__ import annotations

from typing import Any

from timm.layers import to_2tuple
from torch import nn

from maskcl.compat.hat_cl._base import HATPayloadCarrierMixin
from maskcl.compat.hat_cl.layout import Layout
from maskcl.compat.hat_cl.modules import HATConv2d
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.types_ import HATConfig


class HATPatchEmbed(HATPayloadCarrierMixin):
    """A HATConv2d over patches.

    Args:
        hat_config: of the masker.
        img_size, patch_size: in pixels, a number or a pair.
        in_chans, embed_dim: channels of images and tokens.
        norm_layer: makes a task indexed norm of embed_dim, or None.
        flatten: [N, C, H, W] -> [N, H W, C].
        bias: of the convolution.
    """

    def __init__(
        self,
        hat_config: HATConfig,
        img_size: Any = 224,
        patch_size: Any = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        norm_layer: Any = None,
        flatten: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.img_size = to_2tuple(img_size)
        self.patch_size = to_2tuple(patch_size)
        rows, columns = (i // p for i, p in zip(self.img_size, self.patch_size, strict=True))
        self.grid_size = (rows, columns)
        self.num_patches = rows * columns
        self.flatten = flatten
        size = {"kernel_size": self.patch_size, "stride": self.patch_size}
        self.proj = HATConv2d(in_chans, embed_dim, hat_config=hat_config, bias=bias, **size)
        self.norm = nn.Identity() if norm_layer is None else norm_layer(embed_dim)

    def forward(self, pld: HATPayload) -> HATPayload:
        """A payload of [N, in_chans, H, W] -> of [N, patches, embed_dim].

        Raises:
            ValueError: the images have another size.
        """
        if tuple(pld.data.shape[-2:]) != self.img_size:
            raise ValueError(
                f"HATPatchEmbed: images are {list(pld.data.shape[-2:])}, wanted"
                f" {list(self.img_size)}"
            )
        pld = self.proj(pld)
        if self.flatten:
            data = pld.original_data.flatten(2).transpose(1, 2)
            pld = pld.derive(data, layout=Layout(2, tuple(data.shape)), exposed=True)
        return pld.forward_by(self.norm)
