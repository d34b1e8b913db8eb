"""Small ordinary models, each with one way in which units travel from layer to layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn import HATNetwork


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(12, 10),
        nn.ReLU(),
        nn.Linear(10, 3),
    )


def conv() -> nn.Module:
    """Batch norm behind a convolution, pooling, flatten, and a LeakyReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 2, padding=1),
        nn.LeakyReLU(0.2),
        nn.AdaptiveAvgPool2d(2),
        nn.Dropout2d(0.1),
        nn.Flatten(),
        nn.Linear(32, 10, bias=False),
        nn.BatchNorm1d(10),
        nn.Tanh(),
        nn.Linear(10, 3),
    )


class _Block(nn.Module):
    """A residual block as torchvision writes it: one ReLU used twice, += in place."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(_Block(6, 6), _Block(6, 8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.blocks(x)
        return self.fc(x.mean((2, 3)))


class PreNorm(nn.Module):
    """Residual branches that begin with a LayerNorm, and attention over the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.norm1 = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.norm2 = nn.LayerNorm(8)
        self.up = nn.Linear(8, 12)
        self.gelu = nn.GELU()
        self.down = nn.Linear(12, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1))
        n, rows, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, rows, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).reshape(n, rows, width))
        x = x + self.down(self.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x).mean(dim=1))


class Grouped(nn.Module):
    """GroupNorm, grouped and depthwise convolutions, channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.grouped = nn.Conv2d(8, 12, 1, groups=4)
        self.depthwise = nn.Conv2d(12, 12, 2, groups=12)
        self.point = nn.Conv2d(12, 6, 1)
        self.act = nn.SiLU()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = torch.tanh(self.grouped(x))
        n, c, h, w = x.size()
        x = x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)
        x = self.act(self.point(self.depthwise(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Concat(nn.Module):
    """Dense connections, a batch norm on the mixture, the network's input among it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.c = nn.Conv2d(10, 6, 3, padding=1)
        self.head = nn.Linear(15, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = F.elu(self.a(x))
        b = F.elu(self.b(a))
        c = F.elu(self.c(F.elu(self.norm(torch.cat([x, a, b], 1)))))
        low, high = torch.chunk(a, 2, dim=1)
        z = torch.cat([c, b, high - low, low * high], 1)[:, :15]
        return self.head(z.mean(dim=(-2, -1)))


class Excite(nn.Module):
    """Channels scaled by a sigmoid of a squeezed copy; mixing of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 1)
        self.squeeze = nn.Linear(8, 4)
        self.relu = nn.ReLU()
        self.expand = nn.Linear(4, 8)
        self.sigmoid = nn.Sigmoid()
        self.mix = nn.Linear(4, 6)
        self.point = nn.Linear(8, 5)
        self.gate = nn.Sigmoid()
        self.head = nn.Linear(30, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv(x.squeeze(1)))
        scale = self.sigmoid(self.expand(self.relu(self.squeeze(x.mean(-1)))))
        x = x * scale.unsqueeze(-1)
        x = torch.tanh(self.mix(x))
        x = self.gate(self.point(x.transpose(1, 2)))
        return self.head(torch.flatten(x, 1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "conv": conv,
    "residual": Residual,
    "prenorm": PreNorm,
    "grouped": Grouped,
    "concat": Concat,
    "excite": Excite,
}


def images(count: int, seed: int = 0) -> Tensor:
    """A batch that every model takes, [count, 1, 4, 4]."""
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_restores(net: HATNetwork, x: Tensor) -> None:
    """All that finished task 0 computes with is put back where every parameter has moved."""
    with net.task(0):
        before = net(x)
        saved = net.protection().snapshot()
        for parameter in net.protection().parameters:
            parameter.normal_()
        net.protection().restore_(saved)
        assert torch.equal(net(x), before)
