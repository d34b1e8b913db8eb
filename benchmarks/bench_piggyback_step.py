"""A training step through one Piggyback layer beside the ordinary layer's.

The layer is in the middle of a network: its input wants a gradient. Ordinary: weight trained by
SGD; the others: the scores. "BeGin's way" writes the masked weight over the weight and puts a copy
back after each step.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.bench_weight_mask import THRESHOLD, OriginalThreshold, StraightThrough
from benchmarks.conftest import device
from maskcl import nn as masked

RATE = 0.01
LAYERS = {
    "Linear 4096x4096, batch 64": (lambda: nn.Linear(4096, 4096), (64, 4096)),
    "Linear 4096x4096, batch 256": (lambda: nn.Linear(4096, 4096), (256, 4096)),
    "Conv2d 512x512x3x3, batch 16, 14x14": (
        lambda: nn.Conv2d(512, 512, 3, padding=1),
        (16, 512, 14, 14),
    ),
}
NAMES = [
    "maskcl",
    "no mask",
    "torch.compile of eager",
    "careful eager",
    "BeGin's way",
    "original's formula",
]


def apply(layer, x, weight):
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return layer._conv_forward(x, weight, layer.bias)


def written(layer, threshold):
    """Step through the formula, with scores of its own."""
    layer.requires_grad_(False)
    scores = nn.Parameter(torch.randn_like(layer.weight) * 0.01)
    optimizer = torch.optim.SGD([scores], lr=RATE)
    return optimizer, lambda x: apply(layer, x, layer.weight * threshold.apply(scores))


def in_place(layer):
    """BeGin's way: the weight is overwritten for the forward and restored after the step."""
    scores = nn.Parameter(torch.randn_like(layer.weight) * 0.01)
    optimizer = torch.optim.SGD([scores], lr=RATE)

    def step(x, grad):
        kept = copy.deepcopy(layer.weight.data)
        layer.zero_grad()
        layer.weight.data = layer.weight.data * (scores > THRESHOLD).float()
        layer(x).backward(grad)
        scores.grad = layer.weight.grad * kept
        optimizer.step()
        layer.weight.data = kept

    return step


def maskcl_layer(layer):
    """The Piggyback layer with the weights of an ordinary one, its first task begun."""
    net = masked.to_piggyback(nn.Sequential(layer), 1).to(device())
    net.begin_task(0, threshold=THRESHOLD, init=0.01, spread="uniform")
    optimizer = torch.optim.SGD(net.task_parameters(0), lr=RATE)

    def forward(x):
        with net.task(0):
            return net(x)

    return optimizer, forward


def step_of(name, build):
    """x, grad -> one step."""
    layer = build().to(device())
    match name:
        case "maskcl":
            optimizer, forward = maskcl_layer(layer)
        case "no mask":
            optimizer, forward = torch.optim.SGD(layer.parameters(), lr=RATE), layer
        case "original's formula":
            optimizer, forward = written(layer, OriginalThreshold)
        case "BeGin's way":
            return in_place(layer)
        case _:
            optimizer, forward = written(layer, StraightThrough)
    if name == "torch.compile of eager":
        forward = torch.compile(forward)

    def step(x, grad):
        optimizer.zero_grad()
        forward(x).backward(grad)
        optimizer.step()

    return step


def inputs(shape, build):
    """An input that wants its gradient, and a gradient of the output."""
    x = torch.randn(shape, device=device(), requires_grad=True)
    with torch.no_grad():
        return x, torch.randn_like(build().to(device())(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", LAYERS)
def test_step(timed, layer, name):
    torch.manual_seed(0)
    build, shape = LAYERS[layer]
    x, grad = inputs(shape, build)
    step = step_of(name, build)

    def run():
        x.grad = None
        step(x, grad)

    timed(f"training step, {layer}, SGD, float32", name, run)
