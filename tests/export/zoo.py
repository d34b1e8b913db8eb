"""Ordinary models whose forwards do what can go wrong where channels are missing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn import HATNetwork, to_hat
from tests.nn.zoo import MODELS as NN_MODELS
from tests.nn.zoo import images


class Spelled(nn.Module):
    """Sizes written as numbers, and sizes read off a tensor and computed with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.fc = nn.Linear(96, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        x = x / x.shape[1] ** 0.5
        x = x.view(-1, 96)
        x = torch.tanh(self.fc(x))
        return self.out(x * x.size(1))


class Twice(nn.Module):
    """One layer called twice, on values of different units."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(16, 8)
        self.both = nn.Linear(8, 6)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.out(self.both(self.a(x).relu()).relu() + self.both(self.b(x).relu()).relu())


class Gated(nn.Module):
    """Halves of one layer multiplied, a softmax and a mean over channels, the input added."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 12)
        self.down = nn.Linear(6, 4)
        self.mix = nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.squeeze(1)
        left, right = self.up(x).chunk(2, dim=-1)
        x = x + self.down(F.silu(left) * right)
        h = self.mix(x)
        h = h.softmax(-1) * h + h.mean(-1, keepdim=True)
        return self.out(h.sum(1))


class Picks(nn.Module):
    """Slices, single channels, stacks, sums over channels, a frozen scale and table."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.linspace(0.5, 2, 8).view(8, 1, 1), requires_grad=False)
        self.register_buffer("shift", torch.tensor([0.0, 1.0, 0.0, 2.0]).view(4, 1, 1))
        self.point = nn.Conv2d(4, 4, 1)
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu() * self.scale
        first, rest = x[:, 1:5], x.narrow(1, 4, 4)
        y = self.point(first + self.shift).relu() * rest
        extra = torch.stack([x[:, 3], x.select(1, -1)], dim=1)
        y = torch.cat([y, extra], dim=1)
        return self.out(torch.cat([y.amax((2, 3)), x.sum(1).mean((1, 2)).unsqueeze(1)], 1))


class Unknown(nn.Module):
    """An operation that no rule knows, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(16, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cumsum(self.a(x.flatten(1)).relu(), 1)
        return self.c(self.b(x).relu())


class Saturated(nn.Module):
    """Activations that do not keep 0, each directly behind its layer, and a norm without affine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, affine=False)
        self.act1, self.act2 = nn.Sigmoid(), nn.Softplus()
        self.fc, self.out = nn.Linear(24, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm(self.conv(x)))
        return self.out(self.act2(self.fc(torch.flatten(x, 1))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    **NN_MODELS,
    "spelled": Spelled,
    "twice": Twice,
    "gated": Gated,
    "picks": Picks,
    "saturated": Saturated,
    "unknown": Unknown,
}
# What an operation gives that the analysis of a HATNetwork cannot follow: it is told so.
SOURCES: dict[str, dict[str, list[str] | None]] = {
    "gated": {"mix": None, "out": None},
    "picks": {"point": None, "out": None},
    "saturated": {"out": None},
    "unknown": {"b": None},
}


@torch.no_grad()
def network(
    make: Callable[[], nn.Module] | str, share: float, *, seed: int = 0, shared: bool = False
) -> HATNetwork:
    """A float64 network of two tasks that each use about ``share`` of the units; 1 is finished."""
    torch.manual_seed(seed)
    sources = SOURCES.get(make) if isinstance(make, str) else None
    model = MODELS[make]() if isinstance(make, str) else make()
    # A head of its own needs no telling; one that all share is a layer like others.
    sources = {k: v for k, v in (sources or {}).items() if shared or k != "out"}
    classes = None if shared else [2, 3]
    net = to_hat(model, 2, images(2), classes=classes, sources=sources).double().train()
    for parameter in net.model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.1)
    for k, embedding in enumerate(net.embeddings):
        embedding.copy_((torch.rand_like(embedding) < share) * 2.0 - 1)
        with net.task(k):  # statistics of its own
            net(images(16, seed=k).double())
    net.finish_task(1)
    return net.eval()


def count(model: nn.Module) -> int:
    """Parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def outputs(net: HATNetwork, task: int, x: Tensor) -> Tensor:
    """Logits of a task by the network itself."""
    with net.task(task):
        return net(x)


def used(net: HATNetwork, task: int) -> dict[str, int]:
    """How many units of each layer a task uses."""
    return {name: int(net.hard_mask(task)[span].sum()) for name, span in net.units.items()}
