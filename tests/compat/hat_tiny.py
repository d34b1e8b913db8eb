"""Small networks on hat-cl's surface, and the steps that its own tests take with them."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

import maskcl.compat.hat_cl as hat
from maskcl.compat.hat_cl.modules import (
    HATConv2d,
    HATLinear,
    TaskIndexedBatchNorm1d,
    TaskIndexedBatchNorm2d,
)

TASKS = 3
SCALE = 3.0
OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.9),
}


def config(**options):
    return hat.HATConfig(num_tasks=TASKS, **options)


class Flatten(nn.Module):
    """A conv net whose images are flattened in front of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = HATConv2d(2, 6, 3, config(), padding=1)
        self.depthwise = HATConv2d(6, 6, 3, config(), padding=1, groups=6)
        self.norm = TaskIndexedBatchNorm2d(TASKS, 6)
        self.relu = nn.ReLU(inplace=True)
        self.linear = HATLinear(6 * 4 * 4, 5, config())

    def forward(self, pld):
        pld = self.conv(pld).forward_by(self.relu)
        pld = self.depthwise(pld).forward_by(self.norm).forward_by(self.relu)
        return self.linear(pld.reshape(pld.data.shape[0], -1))


def mlp():
    return nn.Sequential(
        HATLinear(7, 12, config()),
        TaskIndexedBatchNorm1d(TASKS, 12),
        nn.ReLU(),
        nn.Dropout(0.2),
        HATLinear(12, 9, config()),
        nn.ReLU(),
        HATLinear(9, 4, config()),
    )


NETWORKS = {
    "one layer": (lambda: HATLinear(7, 6, config()), (7,)),
    "mlp": (mlp, (7,)),
    "conv, flatten, linear": (Flatten, (2, 4, 4)),
}


def payload(shape, task, scale=SCALE, batch=4, **options):
    return hat.HATPayload(torch.rand(batch, *shape), task_id=task, mask_scale=scale, **options)


def train(net, shape, task, optimizer, steps=2, **options):
    """Steps of a task through any module."""
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        payload(shape, task, **options).forward_by(net).data.square().sum().backward()
        optimizer.step()


@torch.no_grad()
def outputs(net, x, tasks):
    """By task, what the network makes of ``x`` in evaluation."""
    net.eval()
    return {k: hat.HATPayload(x, task_id=k).forward_by(net).data.clone() for k in tasks}


def same(before, after):
    return all(torch.equal(before[k], after[k]) for k in before)


def trained(name, tasks=TASKS):
    """A network that has trained some tasks, and its input's shape."""
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    net = build()
    for task in range(tasks):
        train(net, shape, task, torch.optim.SGD(net.parameters(), lr=0.05))
    return net, shape
