"""Fisher information under each likelihood beside autograd, one sample after the other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl.importance import estimate
from tests.importance.zoo import CLASSES, assert_same, batches, make


def log_likelihood(kind, out, y):
    if kind == "gaussian":
        return torch.distributions.Normal(out, 1.0).log_prob(y).sum()
    return torch.distributions.Bernoulli(logits=out).log_prob(y).sum()


def one_by_one(model, x, y, kind):
    model = copy.deepcopy(model).eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(x)):
        model.zero_grad(set_to_none=True)
        log_likelihood(kind, model(x[n : n + 1]), y[n : n + 1]).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad.square() / len(x)
    return total


def targets(kind, count):
    y = torch.randn(count, CLASSES, dtype=torch.float64)
    return y if kind == "gaussian" else (y > 0).long()


KINDS = ["gaussian", "bernoulli"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "convs", "transformer", "lstm", "shared"])
def test_the_datas_targets_whatever_the_batches(name, kind):
    """By the layers' rules, by vmap and one sample at a time."""
    model, x, _ = make(name)
    y = targets(kind, len(x))
    wanted = one_by_one(model, x, y.double(), kind)
    for size in (1, 3, 7):
        found = estimate(model, batches(x, y, size), kind="fisher", likelihood=kind)
        assert_same(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batchs_mean_gradient(kind):
    model, x, _ = make("mlp")
    y = targets(kind, len(x))
    clone = copy.deepcopy(model).eval()
    (log_likelihood(kind, clone(x), y.double()) / len(x)).backward()
    wanted = {name: p.grad.square() for name, p in clone.named_parameters()}
    found = estimate(model, [(x, y)], kind="fisher", likelihood=kind, reduction="batch")
    assert_same(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_targets_have_the_fisher_information_as_their_mean(kind):
    """Sum over outputs of (df/dW)^2, times the variance of a label: p (1 - p)."""
    model, x, _ = make("shared")
    clone = copy.deepcopy(model).eval()
    wanted = torch.zeros_like(clone.first.weight)
    for n in range(len(x)):
        for value in clone(x[n : n + 1])[0]:
            (gradient,) = torch.autograd.grad(value, clone.first.weight, retain_graph=True)
            p = torch.sigmoid(value.detach())
            variance = 1.0 if kind == "gaussian" else p * (1 - p)
            wanted += gradient.square() * variance / len(x)
    found = estimate(
        model,
        [x.repeat(3000, 1)],
        kind="fisher",
        labels="sampled",
        likelihood=kind,
        generator=torch.Generator().manual_seed(5),
        parameters=["first.weight"],
        check=False,
    )
    torch.testing.assert_close(found["first.weight"], wanted, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_do_not_depend_on_the_batches(kind):
    model, x, _ = make("mlp")
    found = [
        estimate(
            model,
            x.split(size),
            kind="fisher",
            labels="sampled",
            likelihood=kind,
            generator=torch.Generator().manual_seed(5),
        )
        for size in (2, 7)
    ]
    assert_same(*found)
    assert any(bool(value.any()) for value in found[0].values())


def test_predicted_labels_are_those_with_a_logit_above_0():
    model, x, _ = make("mlp")
    predicted = (copy.deepcopy(model).eval()(x) > 0).double().detach()
    found = estimate(model, [x], kind="fisher", labels="predicted", likelihood="bernoulli")
    assert_same(found, one_by_one(model, x, predicted, "bernoulli"))


def test_predicted_values_are_refused():
    model, x, _ = make("mlp")
    with pytest.raises(ValueError, match='"predicted", at which the gradient of a Gaussian'):
        estimate(model, [x], kind="fisher", labels="predicted", likelihood="gaussian")


def test_one_logit_is_the_same_question_to_both():
    """A sigmoid is a softmax of two: the categorical of one logit, and a label alone."""
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1).double(), torch.randn(5, 3).double()
    y = torch.tensor([0, 1, 1, 0, 1])
    one = estimate(model, [(x, y)], kind="fisher")
    other = estimate(model, [(x, y)], kind="fisher", likelihood="bernoulli")
    assert_same(one, other)


def test_targets_of_one_value_may_have_one_dimension():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 1).double(), torch.randn(5, 3).double(), torch.randn(5).double()
    flat = estimate(model, [(x, y)], kind="fisher", likelihood="gaussian")
    assert_same(flat, estimate(model, [(x, y[:, None])], kind="fisher", likelihood="gaussian"))
    assert_same(flat, one_by_one(model, x, y[:, None], "gaussian"))


def test_masked_outputs_are_left_out():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            out = self.layer(x)
            return torch.cat([out, torch.full_like(out[:, :1], -torch.inf)], 1)

    torch.manual_seed(0)
    model, x = Masked().double(), torch.randn(5, 3).double()
    for kind in KINDS:
        y = targets(kind, 5)[:, :3]
        found = estimate(model, [(x, y)], kind="fisher", likelihood=kind)
        own = one_by_one(model.layer, x, y[:, :2].double(), kind)
        assert_same(found, {f"layer.{name}": value for name, value in own.items()})


@pytest.mark.parametrize(
    ("kind", "y", "error", "text"),
    [
        ("gaussian", torch.zeros(7, 3), ValueError, r"shape \[7, 3\], wanted \[7, 4\]"),
        ("gaussian", torch.zeros(7), ValueError, r"shape \[7\], wanted \[7, 4\]"),
        ("gaussian", torch.zeros(7, 4, dtype=torch.cfloat), TypeError, "complex64"),
        ("bernoulli", torch.full((7, 4), 0.5), ValueError, "hold 0.5, wanted 0 or 1"),
        ("bernoulli", torch.full((7, 4), 2), ValueError, "hold 2, wanted 0 or 1"),
        ("gaussian", None, ValueError, "wants the targets, found none"),
        ("poisson", torch.zeros(7, 4), ValueError, "likelihood is 'poisson'"),
    ],
)
def test_bad_targets_get_a_sentence(kind, y, error, text):
    model, x, _ = make("mlp")
    with pytest.raises(error, match=text):
        estimate(model, [x if y is None else (x, y)], kind="fisher", likelihood=kind)


def test_likelihood_is_of_fisher_alone():
    model, x, _ = make("mlp")
    with pytest.raises(ValueError, match="likelihood is 'gaussian', which kind 'mas' has not"):
        estimate(model, [x], likelihood="gaussian")


def test_a_gaussians_gradient_is_that_of_half_the_squared_error():
    torch.manual_seed(0)
    model, x, y = nn.Linear(3, 2).double(), torch.randn(1, 3).double(), torch.randn(1, 2).double()
    (F.mse_loss(model(x), y, reduction="sum") / 2).backward()
    wanted = {name: p.grad.square() for name, p in model.named_parameters()}
    assert_same(estimate(model, [(x, y)], kind="fisher", likelihood="gaussian"), wanted)
