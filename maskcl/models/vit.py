"""Vision transformers with patches for large and for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.models.image_shape import image_shape

# Width and heads (Touvron et al. 2021, table 1); all have 12 blocks.
_SIZES = {"tiny": (192, 3), "small": (384, 6)}
_EPS = 1e-6


class ViT(nn.Module):
    """A vision transformer (Dosovitskiy et al. 2021); its ``state_dict`` has timm's names.

    Args:
        input_shape: (channels, height, width), both multiples of ``patch``.
        classes: outputs of the last layer.
        patch: side of a patch in pixels: 16 as in the paper, 4 for images such as CIFAR's.
        width: D, features of a token; a multiple of ``heads``.
        depth: number of blocks.
        heads: of the attention.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        classes: int,
        patch: int = 4,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
    ) -> None:
        super().__init__()
        channels, rows, columns = image_shape(input_shape, smallest=1, model="vit")
        if patch < 1 or rows % patch or columns % patch:
            raise ValueError(
                f"patch is {patch}, wanted a divisor of the image's sides {rows} and {columns}"
            )
        if heads < 1 or width % heads:
            raise ValueError(f"heads is {heads}, wanted a divisor of width {width}")
        tokens = (rows // patch) * (columns // patch) + 1
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * _EPS)
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, width) * 0.02)
        self.patch_embed = PatchEmbed(channels, width, patch)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, classes], from the class token."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return self.head(x[:, 0])


class PatchEmbed(nn.Module):
    """Patches, each flattened and mapped to a token by the same weights.

    Args:
        channels: of the image. width: D, features of a token. patch: side in pixels.
    """

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, (H / patch) (W / patch), D]."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to its input (eq. 2 and 3).

    Args:
        width: D. heads: of the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, D] -> [N, L, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values are one layer.

    Args:
        width: D. heads: their number, a divisor of D.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, D] -> [N, L, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = qkv.unbind(0)
        x = F.scaled_dot_product_attention(queries, keys, values)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, GELU, Linear.

    Args:
        width: of input and output. hidden: units between.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """[.., width] -> [.., width]."""
        return self.fc2(self.act(self.fc1(x)))


def vit_tiny(input_shape: Sequence[int], classes: int, patch: int = 4) -> ViT:
    """ViT-Tiny: width 192, 12 blocks, 3 heads; arguments as for ViT."""
    width, heads = _SIZES["tiny"]
    return ViT(input_shape, classes, patch, width, heads=heads)


def vit_small(input_shape: Sequence[int], classes: int, patch: int = 4) -> ViT:
    """ViT-Small: width 384, 12 blocks, 6 heads; arguments as for ViT."""
    width, heads = _SIZES["small"]
    return ViT(input_shape, classes, patch, width, heads=heads)
