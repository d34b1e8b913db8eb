"""Networks that are not a chain of layers on the samples of a batch, and numbers of few bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import nn

from maskcl.importance import estimate
from tests.importance.zoo import CLASSES, assert_same, batches, make, one_by_one


class Experts(nn.Module):
    """Each layer sees the samples that were sent to it, another number in every batch."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(5, 2)
        self.experts = nn.ModuleList([nn.Linear(5, CLASSES) for _ in range(2)])

    def forward(self, x):
        share = self.gate(x).softmax(-1)
        out = x.new_zeros(len(x), CLASSES)
        for k, expert in enumerate(self.experts):
            (rows,) = (share.argmax(-1) == k).nonzero(as_tuple=True)
            out = out.index_put((rows,), expert(x[rows]) * share[rows, k : k + 1])
        return out


class TimeFirst(nn.Module):
    """x is [T, N, 3]: the batch's first dimension is not the samples."""

    def __init__(self):
        super().__init__()
        self.middle, self.head = nn.LSTM(3, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.middle(x)[0][-1])


def parametrized():
    weight = parametrizations.weight_norm(nn.Linear(5, 6))
    return nn.Sequential(weight, nn.Tanh(), parametrizations.spectral_norm(nn.Linear(6, CLASSES)))


@pytest.mark.parametrize("build", [Experts, parametrized])
def test_samples_that_choose_their_layers_and_weights_that_are_computed(build):
    torch.manual_seed(0)
    model, x = build().double().eval(), torch.randn(9, 5, dtype=torch.float64)
    wanted = one_by_one(model, x)
    for size in (1, 4, 9):
        assert_same(estimate(model, x.split(size)), wanted)


def test_samples_in_the_second_dimension():
    torch.manual_seed(0)
    model, x = TimeFirst().double(), torch.randn(5, 6, 3, dtype=torch.float64)
    single = [estimate(model, [x[:, n : n + 1]], check=False) for n in range(6)]
    wanted = {name: sum(one[name] for one in single) / 6 for name in single[0]}
    value = model(x[:, :1]).square().sum()
    first = torch.autograd.grad(value, model.head.weight)[0].abs()
    torch.testing.assert_close(single[0]["head.weight"], first)
    assert_same(estimate(model, [x]), wanted)
    assert_same(estimate(model, x.split(4, dim=1)), wanted)


@pytest.mark.parametrize("name", ["mlp", "transformer", "tied"])
def test_few_bits(name):
    """A model in bfloat16, and one under autocast: importances are float32 and near the exact."""
    model, x, y = make(name, torch.float32)
    wanted = estimate(model, [(x, y)])

    def forward(net, batch):
        with torch.autocast("cpu", torch.bfloat16):
            return net(batch[0]), None

    assert_same(estimate(model, batches(x, y, 4), forward=forward), wanted, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(estimate(model, batches(x, y, 4)), wanted, 0.05)
    x = x.bfloat16() if x.is_floating_point() else x
    found = estimate(model.bfloat16(), batches(x, y, 4))
    assert_same(found, wanted, 0.05)
    assert {t.dtype for t in found.values()} == {torch.float32}
