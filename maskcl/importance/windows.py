"""What each output position of a convolution reads, as the columns of a matrix."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d


def windows(conv: Conv, x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The inputs that each weight meets, [N, groups, C / groups * kernel, positions].

    Args:
        conv: any kernel, stride, padding, padding mode, dilation and groups.
        x: [N, C, *spatial].
        sizes: of the output, spatial.
    """
    pads = _pads(conv)
    if any(pads):
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, pads, mode=mode)
    samples, channels, *across = x.stride()
    view = x.as_strided(
        [*x.shape[:2], *conv.kernel_size, *sizes],
        [
            samples,
            channels,
            *(a * d for a, d in zip(across, conv.dilation, strict=True)),
            *(a * s for a, s in zip(across, conv.stride, strict=True)),
        ],
        x.storage_offset(),
    )
    groups, positions = conv.groups, 1
    for size in sizes:
        positions *= size
    return view.reshape(x.shape[0], groups, -1, positions)


def _pads(conv: Conv) -> list[int]:
    """What F.pad takes: two numbers a dimension, the last dimension first."""
    pads: list[int] = []
    for d in reversed(range(len(conv.kernel_size))):
        if conv.padding == "same":
            total = conv.dilation[d] * (conv.kernel_size[d] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [0 if isinstance(conv.padding, str) else conv.padding[d]] * 2
    return pads
