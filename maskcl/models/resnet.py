"""Residual networks with stems for large and for small images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from maskcl.models.image_shape import image_shape

STEMS = ("imagenet", "small")
# Blocks of each of the four stages (He et al. 2016, table 1).
_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
DEPTHS = tuple(_BLOCKS)
_BOTTLENECK_FROM = 50


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut (He et al. 2016, figure 5, left).

    Args:
        channels_in: channels of the input.
        channels: channels of the output.
        stride: of the first convolution; with a change of size or channels the shortcut is a
            1x1 convolution with BatchNorm.
    """

    expansion = 1

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] -> [N, channels, H / stride, W / stride]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution with BatchNorm and a shortcut (figure 5, right).

    The stride is the 3x3 convolution's, as torchvision has it (the paper's is the first's).

    Args:
        channels_in: channels of the input.
        channels: channels of the output, 4 times those within.
        stride: of the second convolution.
    """

    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        inner = channels // self.expansion
        self.conv1 = nn.Conv2d(channels_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.relu3 = nn.ReLU()
        self.downsample = _shortcut(channels_in, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels_in, H, W] -> [N, channels, H / stride, W / stride]."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + self.downsample(x))


class ResNet(nn.Module):
    """A residual network; its ``state_dict`` has torchvision's names and shapes.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        input_shape: (channels, height, width).
        classes: outputs of the last layer.
        width: channels within the first stage; the others are 2, 4 and 8 times that.
        stem: "imagenet", a 7x7 convolution of stride 2 and a 3x3 max pooling of stride 2; "small",
            a 3x3 convolution alone, as used for CIFAR.

    Raises:
        ValueError: an argument is not as above.
    """

    def __init__(
        self,
        depth: int,
        input_shape: Sequence[int],
        classes: int,
        width: int = 64,
        stem: str = "small",
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"depth is {depth!r}, wanted one of {', '.join(map(str, DEPTHS))}")
        if stem not in STEMS:
            raise ValueError(f"stem is {stem!r}, wanted one of {', '.join(STEMS)}")
        channels, _, _ = image_shape(input_shape, smallest=1, model=f"resnet{depth}")
        is_small = stem == "small"
        if is_small:
            self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if is_small else nn.MaxPool2d(3, stride=2, padding=1)
        block = Bottleneck if depth >= _BOTTLENECK_FROM else BasicBlock
        before = width
        stages: list[nn.Module] = []
        for stage, count in enumerate(_BLOCKS[depth]):
            after = width * 2**stage * block.expansion
            blocks = [block(before, after, stride=1 if stage == 0 else 2)]
            blocks += [block(after, after, stride=1) for _ in range(count - 1)]
            stages.append(nn.Sequential(*blocks))
            before = after
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.flatten(self.avgpool(x)))


def _shortcut(channels_in: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
    )


def _of_depth(depth: int) -> Callable[..., ResNet]:
    def resnet(
        input_shape: Sequence[int], classes: int, width: int = 64, stem: str = "small"
    ) -> ResNet:
        return ResNet(depth, input_shape, classes, width, stem)

    resnet.__name__ = resnet.__qualname__ = f"resnet{depth}"
    resnet.__doc__ = f"""ResNet-{depth}; arguments as for ResNet."""
    return resnet


resnet18 = _of_depth(18)
resnet34 = _of_depth(34)
resnet50 = _of_depth(50)
resnet101 = _of_depth(101)
resnet152 = _of_depth(152)
