"""The traps that other implementations of MAS fell into, one test each, named for what is
right."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl.importance import estimate
from tests.importance.zoo import assert_same, batches, make, one_by_one

# --- measuring importances


@pytest.mark.parametrize("name", ["mlp", "convs", "transformer", "lstm"])
def test_the_batch_size_does_not_change_the_importances(name):
    model, x, y = make(name)
    wanted = estimate(model, batches(x, y, 1))
    for size in (2, 7):
        assert_same(estimate(model, batches(x, y, size)), wanted)


def test_importances_are_means_of_absolute_gradients_not_absolutes_of_means():
    model, x, _ = make("mlp")
    found, wanted = estimate(model, [x]), one_by_one(model, x)
    assert_same(found, wanted)
    model.eval()(x).square().sum(1).mean().backward()
    of_mean = torch.cat([p.grad.abs().flatten() for p in model.parameters()]).sum()
    # They are not close: the gradients of samples cancel.
    assert of_mean < 0.9 * torch.cat([t.flatten() for t in found.values()]).sum()


def test_the_batch_version_does_depend_on_the_batches():
    """Which is why it has to be asked for."""
    model, x, y = make("mlp")
    one = estimate(model, batches(x, y, 1), reduction="batch")
    assert_same(one, estimate(model, batches(x, y, 4)))
    with pytest.raises(AssertionError):
        assert_same(estimate(model, batches(x, y, 7), reduction="batch"), one)


def test_the_pass_is_in_evaluation_mode():
    """No dropout, running statistics read and not moved, and training goes on as it did."""
    model, x, y = make("convs")
    assert model.training
    before = {key: t.clone() for key, t in model.state_dict().items()}
    wanted = one_by_one(model, x)  # in evaluation mode
    assert_same(estimate(model, batches(x, y, 4)), wanted)
    assert model.training and all(m.training for m in model.modules())
    for key, t in model.state_dict().items():
        assert torch.equal(t, before[key])


@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_the_last_partial_batch_weighs_by_its_samples(reduction):
    """Seven samples in batches of six and one; the last one's gradients are the largest."""
    model, x, _ = make("mlp")
    x[6] *= 10
    parts = [estimate(model, [part], reduction=reduction) for part in x.split(6)]
    wanted = {name: (6 * parts[0][name] + parts[1][name]) / 7 for name in parts[0]}
    found = estimate(model, list(x.split(6)), reduction=reduction)
    assert_same(found, wanted)
    of_batches = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    with pytest.raises(AssertionError):
        assert_same(found, of_batches, 0.1)


def test_samples_are_the_rows_of_the_outputs_not_the_length_of_a_mask():
    """Outputs of the chosen rows alone: their number is what the mean is over."""
    model, x, _ = make("mlp")
    mask = torch.tensor([True, False, True, True, False, False, True])
    chosen = estimate(model, [x], forward=lambda net, x: (net(x[mask]), None))
    assert_same(chosen, one_by_one(model, x[mask]))


class Masked(nn.Module):
    """Logits of classes that are not there are set to, or lowered by, a huge number."""

    def __init__(self, number, add):
        super().__init__()
        self.model = make("mlp")[0]
        self.number, self.add = number, add
        self.register_buffer("absent", torch.tensor([False, True, False, True]))

    def forward(self, x):
        logits = self.model(x)
        if self.add:
            return logits + torch.zeros_like(logits).masked_fill(self.absent, self.number)
        return logits.masked_fill(self.absent, self.number)


@pytest.mark.parametrize("add", [False, True], ids=["filled", "added"])
@pytest.mark.parametrize("number", [-torch.inf, torch.finfo(torch.float64).min])
def test_masked_logits_are_left_out_of_the_norm_and_of_the_softmax(number, add):
    model = Masked(number, add)
    _, x, _ = make("mlp")
    y = torch.tensor([0, 2, 2, 0, 0, 2, 0])

    def present(net, batch):
        return net.model(batch[0])[:, [0, 2]], batch[1] // 2

    for options in ({"norm": "sum"}, {"norm": "mean"}, {"kind": "fisher"}):
        found = estimate(model, batches(x, y, 3), **options)
        assert_same(found, estimate(model, batches(x, y, 3), forward=present, **options))
        assert all(t.isfinite().all() for t in found.values())
    with pytest.raises(ValueError, match="a class whose output is masked"):
        estimate(model, [(x, torch.ones_like(y))], kind="fisher")


def test_half_precision_counts_outputs_whose_square_it_cannot_hold():
    """300 squared is infinite in float16 and no mask; its lowest number is one."""
    model = nn.Linear(3, 3, bias=False)
    x = torch.eye(3) * 300

    def forward(net, x):
        return net(x).half(), None

    model.weight.data.copy_(torch.eye(3))
    assert estimate(model, [x], forward=forward)["weight"].diagonal().min() > 0

    def masked(net, x):
        out = net(x).half()
        return torch.cat([out[:, :2], out[:, 2:] * 0 + torch.finfo(torch.float16).min], 1), None

    assert estimate(model, [x], forward=masked)["weight"].diagonal()[2] == 0


def test_no_global_random_number_is_consumed():
    """Neither by the pass, nor by a model or data that draw: training goes on as without it."""

    class Drawing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 4)

        def forward(self, x):
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(3)
            return self.layer(x)

    data = torch.utils.data.TensorDataset(torch.randn(7, 5), torch.randint(0, 4, (7,)))
    loader = torch.utils.data.DataLoader(data, batch_size=3, shuffle=True)
    model = Drawing()

    def following():
        return torch.rand(2).tolist(), np.random.rand(), random.random()  # noqa: NPY002

    for options in ({}, {"kind": "fisher", "labels": "sampled"}, {"reduction": "batch"}):
        states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        wanted = following()
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
        estimate(model, loader, **options)
        assert following() == wanted


def test_importances_are_the_same_on_every_run():
    model, x, y = make("transformer", torch.float32)
    first = estimate(model, batches(x, y, 4))
    torch.rand(5)
    second = estimate(model, batches(x, y, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_gradient_of_zero_and_an_unused_parameter_count_as_zero():
    """Peers stop at a parameter without a gradient, or at a value that happens to be 0."""
    model, x, _ = make("shared")
    found = estimate(model, [x])
    assert found["unused.weight"].abs().sum() == 0
    silent = nn.Linear(5, 4)
    nn.init.zeros_(silent.weight), nn.init.zeros_(silent.bias)
    assert F.mse_loss(silent(x.float()), torch.zeros(7, 4)) == 0
    assert not any(t.any() for t in estimate(silent, [x.float()]).values())
