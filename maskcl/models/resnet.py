"""ResNet-18 with a stem for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from maskcl.models._images import image_shape


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al. 2016, figure 2).

    Args:
        channels_in: channels of the input.
        channels: channels of the output.
        stride: of the first convolution; with a change of size or channels the shortcut is a
            1x1 convolution with BatchNorm.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        if stride == 1 and channels_in == channels:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] -> [N, channels, H / stride, W / stride]."""
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu2(y + self.shortcut(x))


def resnet18(input_shape: Sequence[int], classes: int, width: int = 64) -> nn.Sequential:
    """ResNet-18 as used for CIFAR: a 3x3 stem without pooling, then 4 stages of 2 blocks.

    Args:
        input_shape: (channels, height, width).
        classes: outputs of the last layer.
        width: channels of the first stage; the others are 2, 4 and 8 times that.
    """
    channels, _, _ = image_shape(input_shape, smallest=1, model="resnet18")
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    before = width
    for scale, stride in ((1, 1), (2, 2), (4, 2), (8, 2)):
        layers.append(BasicBlock(before, scale * width, stride))
        layers.append(BasicBlock(scale * width, scale * width, 1))
        before = scale * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))
