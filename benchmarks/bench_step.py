"""A whole HAT training step, second task, beside the same network's step without any mask.

The networks are the HAT paper's (Serra et al. 2018, appendix): MLP 784-2000-2000-10 and the conv
net on 32x32x3, batch 64, SGD. The eager rows are the paper's recipe written with torch's own ops:
"careful" builds the dense gradient masks once a task, "on the fly" at every step, as the peers do.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.conftest import device
from maskcl import HAT, models
from maskcl.nn import to_hat

BATCH, SCALE, SPARSITY, RATE = 64, 200.0, 0.75, 0.05
NETWORKS = {
    "MLP 784-2000-2000-10": (
        lambda: models.mlp((784,), 10, hidden=(2000, 2000), dropout=0.0),
        (784,),
    ),
    "HAT paper's conv net, 3x32x32": (lambda: models.conv((3, 32, 32), 10), (3, 32, 32)),
}


class EagerHAT:
    """The recipe on an ordinary network; each layer but the last is gated behind its ReLU."""

    def __init__(self, model: nn.Module, careful: bool) -> None:
        self.model, self.careful = model, careful
        self.layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        gated = self.layers[:-1]
        self.embeddings = [
            nn.Parameter(torch.randn(m.weight.shape[0], device=device())) for m in gated
        ]
        self.used = [(torch.rand_like(e) < 0.3).float() for e in self.embeddings]
        relus = [m for m in model.modules() if isinstance(m, nn.ReLU)]
        for index, relu in enumerate(relus):
            relu.register_forward_hook(lambda _m, _x, y, i=index: self.gate(i, y))
        self.masks: list[torch.Tensor] = []
        parameters = [*model.parameters(), *self.embeddings]
        self.optimizer = torch.optim.SGD(parameters, lr=RATE)
        self.frozen = [self.factor(i) for i in range(len(self.layers))] if careful else None

    def gate(self, index, y):
        mask = torch.sigmoid(SCALE * self.embeddings[index])
        self.masks.append(mask)
        return y * mask.view(1, -1, *[1] * (y.dim() - 2))

    def factor(self, index):
        weight = self.layers[index].weight
        ones = [1] * (weight.dim() - 2)
        a = (
            self.used[index]
            if index < len(self.used)
            else torch.ones(weight.shape[0], device=device())
        )
        b = self.used[index - 1] if index else torch.ones(weight.shape[1], device=device())
        b = b.repeat_interleave(weight.shape[1] // b.numel())
        return 1 - torch.min(
            a.view(-1, 1, *ones).expand_as(weight), b.view(1, -1, *ones).expand_as(weight)
        )

    def step(self, x, y):
        self.masks = []
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(x), y)
        taken = sum((m * (1 - u)).sum() for m, u in zip(self.masks, self.used, strict=True))
        free = sum((1 - u).sum() for u in self.used)
        (loss + SPARSITY * taken / free).backward()
        with torch.no_grad():
            for e in self.embeddings:
                top = torch.cosh((SCALE * e).clamp(-50, 50)) + 1
                e.grad *= 400.0 / SCALE * top / (torch.cosh(e) + 1)
            for index, layer in enumerate(self.layers):
                layer.weight.grad *= self.frozen[index] if self.frozen else self.factor(index)
                if index < len(self.used):
                    layer.bias.grad *= 1 - self.used[index]
            self.optimizer.step()
            for e in self.embeddings:
                e.clamp_(-6, 6)


def plain_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step(x, y):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def maskcl_step(model, example):
    """The second task of HAT, the first having closed 70 % of the units."""
    net = to_hat(model, 2, example, classes=[10, 10]).to(device()).train()
    with torch.no_grad():
        net.embeddings[0].copy_(torch.where(torch.rand_like(net.embeddings[0]) < 0.3, 6.0, -6.0))
    net.finish_task(0)
    method = HAT(sparsity=SPARSITY)
    state = method.begin_task(net, 1)
    optimizer = torch.optim.SGD(net.task_parameters(1), lr=RATE)

    def step(x, y):
        method.before_step(net, state, 0.5)
        optimizer.zero_grad()
        with net.task(1, scale=state.scale):
            loss = F.cross_entropy(net(x), y) + method.loss_term(net, state)
            loss.backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)

    return step


@pytest.mark.parametrize("name", ["maskcl", "no mask", "careful eager", "masks on the fly"])
@pytest.mark.parametrize("network", NETWORKS)
def test_step(timed, network, name):
    torch.manual_seed(0)
    build, shape = NETWORKS[network]
    model = build().to(device()).train()
    x, y = (
        torch.rand(BATCH, *shape, device=device()),
        torch.randint(0, 10, (BATCH,), device=device()),
    )
    if name == "maskcl":
        step = maskcl_step(model, x)
    elif name == "no mask":
        step = plain_step(model)
    else:
        step = EagerHAT(model, careful=name == "careful eager").step
    timed(f"training step, {network}, batch {BATCH}, SGD", name, lambda: step(x, y))
