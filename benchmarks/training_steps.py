"""Training steps whose launches are counted and timed: three methods on three networks.

Each network learns its second task, the first having half of its units. AdamW, fused, because
moments and decay are what protection has most to do for; the methods protect its steps, which then
are one op of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl import HAT, MAS, Piggyback, models
from maskcl.nn import to_hat, to_importance, to_piggyback

METHODS = ("HAT", "Piggyback", "MAS")
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP 784-2000-2000-10": (lambda: models.mlp((784,), 10, hidden=(2000, 2000)), (784,)),
    "ResNet-18, 3x32x32": (lambda: models.resnet18((3, 32, 32), 10), (3, 32, 32)),
    "ViT-Tiny, 3x32x32": (lambda: models.vit_tiny((3, 32, 32), 10), (3, 32, 32)),
}
RATE = 1e-3
Step = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class Setting:
    """One step to measure: the network's name, where it runs, and its batch."""

    network: str
    device: str = "cpu"
    batch: int = 2
    capturable: bool = False  # for CUDA graphs: the optimizer's step count is on the device
    compiled: bool = False  # the network, not the optimizer

    def data(self) -> tuple[Tensor, Tensor]:
        """Images and labels of classes 0 to 9."""
        shape = NETWORKS[self.network][1]
        x = torch.rand(self.batch, *shape, device=self.device)
        return x, torch.arange(self.batch, device=self.device) % 10

    def model(self) -> nn.Module:
        return NETWORKS[self.network][0]().to(self.device).train()

    def optimizer(self, groups) -> torch.optim.Optimizer:
        # The plain loop of torch's optimizers would be hundreds of launches on a GPU.
        return torch.optim.AdamW(groups, lr=RATE, fused=True, capturable=self.capturable)


def unmasked(setting: Setting) -> Step:
    """The ordinary network's step, all of its weights trained."""
    model = setting.model()
    optimizer = setting.optimizer(model.parameters())
    if setting.compiled:
        model.compile()

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def masked(name: str, setting: Setting) -> Step:
    """The step of a method's second task."""
    if name == "HAT":
        return _hat(setting)
    if name == "Piggyback":
        net = to_piggyback(setting.model(), 2, classes=[10, 10]).to(setting.device)
        return _step(Piggyback(), net, setting)
    return _mas(setting)


def _hat(setting: Setting) -> Step:
    x, _ = setting.data()
    net = to_hat(setting.model(), 2, x, classes=[10, 10]).to(setting.device).train()
    net.finish_task(0)
    return _step(HAT(), net, setting)


def _mas(setting: Setting) -> Step:
    net = to_importance(setting.model(), 2, classes=[10, 10]).to(setting.device).train()
    names = net.names()
    found = dict(net.model.named_parameters())
    net.consolidate(0, {name: torch.rand_like(found[name]) for name in names})
    net.finish_task(0)
    return _step(MAS(), net, setting)


def _step(method, net, setting: Setting) -> Step:
    state = method.begin_task(net, 1)
    optimizer = setting.optimizer(method.parameter_groups(net, 1))
    method.protect(optimizer, net, state)
    if setting.compiled:
        net.compile()

    def step(x: Tensor, y: Tensor) -> None:
        method.before_step(net, state, 0.5)
        optimizer.zero_grad()
        with net.task(1, scale=state.scale):
            loss = F.cross_entropy(net(x), y)
            term = method.loss_term(net, state)
            (loss + term if isinstance(term, Tensor) else loss).backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)

    return step
