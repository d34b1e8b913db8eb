"""Operations that users put between two layers: followed where 0 stays 0, refused in words else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn import ConversionError, HATNetwork, to_hat
from tests.nn.zoo import assert_restores, images

Operation = Callable[[Tensor], Tensor]

FOLLOWED: dict[str, Operation] = {
    "zero padding": nn.ZeroPad2d(1),
    "zeros by F.pad": lambda x: F.pad(x, (1, 1)),
    "reflections": nn.ReflectionPad2d(1),
    "replicas by F.pad": lambda x: F.pad(x, (1, 1, 1, 1), "replicate"),
    "upsampling": nn.Upsample(scale_factor=2),
    "interpolation": lambda x: F.interpolate(x, scale_factor=2.0),
    "pooling": nn.AvgPool2d(2),
    "adaptive pooling": nn.AdaptiveMaxPool2d(2),
    "instance norm": nn.InstanceNorm2d(6),
    "a clamp around 0": lambda x: x.clamp(-1.0, 2.0),
    "a clamp by name": lambda x: torch.clamp(x, max=0.5),
    "hardtanh": nn.Hardtanh(-0.5, 0.5),
    "a product of two": lambda x: x * x.sigmoid(),
    "a difference": lambda x: x - 0.5 * x,
    "addcmul": lambda x: torch.addcmul(x, x, x, value=0.5),
    "type_as": lambda x: x.type_as(x),
    "view_as": lambda x: x.reshape(-1).view_as(x),
    "expand_as": lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
    "a power": lambda x: x.pow(2),
    "flips and rolls": lambda x: x.flip(2).roll(1, 3),
    "a softsign": F.softsign,
}
REFUSED: dict[str, Operation] = {
    "a clamp above 0": lambda x: x.clamp(min=0.5),
    "a sigmoid": torch.sigmoid,
    "a cosine": torch.cos,
    "ones around": lambda x: F.pad(x, (1, 1), value=1.0),
    "a sum with 1": lambda x: x + 1.0,
    "a sort over channels": lambda x: x.sort(1).values,
}


class Between(nn.Module):
    """Two convolutions and what is between them."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 4, 2)
        self.head = nn.Linear(4, 3)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        x = self.operation(self.first(x))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def close_every_other_unit(net: HATNetwork) -> None:
    with torch.no_grad():
        net.embeddings[0].fill_(6.0)[::2] = -6.0
    net.finish_task(0)


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_finished_task_is_kept(name: str) -> None:
    torch.manual_seed(0)
    net = to_hat(Between(FOLLOWED[name]), 2, images(2)).eval()
    close_every_other_unit(net)
    assert_restores(net, images(5))
    fraction = net.protection().fraction()
    assert fraction["model.second.weight"] == 0.25, "by pairs of units, not all of a layer"


@pytest.mark.parametrize("name", REFUSED)
def test_what_opens_closed_units_is_refused_or_all_is_protected(name: str) -> None:
    torch.manual_seed(0)
    net, problem = None, ""
    try:
        net = to_hat(Between(REFUSED[name]), 2, images(2)).eval()
    except ConversionError as error:
        problem = str(error)
    if net is None:
        assert "second" in problem
        return
    close_every_other_unit(net)
    assert_restores(net, images(5))
