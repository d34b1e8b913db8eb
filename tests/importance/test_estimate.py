"""estimate: the mean over samples of single samples' gradients, for every kind of layer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl import backends
from maskcl.importance import estimate, per_sample, rules
from maskcl.importance.exact import Exact
from tests.importance import zoo
from tests.importance.zoo import CLASSES, assert_same, batches, make, one_by_one


@pytest.fixture
def engines(monkeypatch):
    """Every Exact that is made, with ``rest()``: the parameters measured in the slow way."""
    made = []

    class Seen(Exact):
        def __init__(self, subject):
            super().__init__(subject)
            made.append(self)

        def slow(self):
            return {self.subject.names[p] for p in self.rest}

    monkeypatch.setattr("maskcl.importance.estimation.Exact", Seen)
    return made


# What a network's parameters with no rule are, and what only the comparison finds out.
SLOW = {
    "transformer": {
        "places.weight",
        *(
            f"middle.self_attn.{part}.{kind}"
            for part in ("out_proj",)
            for kind in ("weight", "bias")
        ),
        *(f"middle.self_attn.in_proj_{kind}" for kind in ("weight", "bias")),
    },
    "lstm": {
        "places.weight",
        *(f"middle.{kind}_{gate}_l0" for kind in ("weight", "bias") for gate in ("ih", "hh")),
    },
    "tied": {"words.weight", "places.weight"},
    "shared": {"scale", "past.weight"},
}
SLOW["gru"] = SLOW["lstm"]


@pytest.mark.parametrize("name", zoo.ZOO)
def test_equals_one_sample_at_a_time_whatever_the_batches(name, engines):
    model, x, y = make(name)
    wanted = one_by_one(model, x)
    for size in (1, 3, 7):
        assert_same(estimate(model, batches(x, y, size)), wanted)
    assert engines[-1].slow() == SLOW.get(name, set())


@pytest.mark.parametrize("name", ["mlp", "convs", "transformer", "lstm"])
def test_float32_is_within_a_millionth(name):
    model, x, y = make(name, torch.float32, samples=40)
    found = estimate(model, batches(x, y, 16))
    assert_same(found, one_by_one(model, x), 1e-6)
    assert {t.dtype for t in found.values()} == {torch.float32}


def test_a_gradient_that_is_zero_to_rounding_keeps_its_rule(engines):
    """As that of a bias in front of a norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.InstanceNorm1d(3), nn.Flatten(), nn.Linear(15, 2))
    estimate(model, [torch.randn(4, 2, 5)])
    assert engines[-1].slow() == set()


@pytest.mark.parametrize("name", ["mlp", "tied", "convs"])
def test_plain_torch_gives_the_same(name):
    model, x, y = make(name)
    with backends.use_backend("reference"):
        assert_same(estimate(model, batches(x, y, 4)), one_by_one(model, x))


@pytest.mark.parametrize("name", ["mlp", "lines", "shared"])
def test_fisher_of_the_datas_labels(name):
    model, x, y = make(name)
    assert_same(estimate(model, batches(x, y, 3), kind="fisher"), one_by_one(model, x, y))


def test_fisher_of_predicted_and_of_sampled_labels():
    model, x, _ = make("shared")
    predicted = copy.deepcopy(model).eval()(x).argmax(1)
    found = estimate(model, [x], kind="fisher", labels="predicted")
    assert_same(found, one_by_one(model, x, predicted))

    # Over many draws, the expectation under the model's own softmax.
    share = copy.deepcopy(model).eval()(x).softmax(1).detach()
    wanted = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(x)):
        for c in range(CLASSES):
            one = one_by_one(model, x[n : n + 1], torch.tensor([c]))
            for name, value in one.items():
                wanted[name] += share[n, c] * value / len(x)
    draws = 3000
    many = estimate(
        model,
        [x.repeat(draws, 1)],
        kind="fisher",
        labels="sampled",
        generator=torch.Generator().manual_seed(5),
        parameters=["first.weight"],
        check=False,
    )
    torch.testing.assert_close(many["first.weight"], wanted["first.weight"], rtol=0.05, atol=0.01)


def test_sampled_labels_do_not_depend_on_the_batches():
    model, x, y = make("mlp")
    found = [
        estimate(
            model,
            batches(x, y, size),
            kind="fisher",
            labels="sampled",
            generator=torch.Generator().manual_seed(5),
        )
        for size in (2, 7)
    ]
    assert_same(*found)


def test_the_mean_of_squares():
    model, x, _ = make("mlp")
    wanted = one_by_one(model, x, norm="mean")
    assert_same(estimate(model, x.split(3), norm="mean"), wanted)


def test_logits_at_every_position():
    """[N, C, T]: the log likelihoods of a sample's positions add up."""
    model, x, _ = make("lines")
    y = torch.randint(0, CLASSES, (7, 5))

    class Outputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = copy.deepcopy(model)

        def forward(self, x):
            return torch.stack([self.model(x + 0.1 * t) for t in range(5)], -1)

    whole = Outputs().eval()
    wanted = {name: torch.zeros_like(p) for name, p in whole.named_parameters()}
    for n in range(7):
        value = F.cross_entropy(whole(x[n : n + 1]), y[n : n + 1], reduction="sum")
        grads = torch.autograd.grad(value, list(whole.parameters()))
        for name, g in zip(wanted, grads, strict=True):
            wanted[name] += g.square() / 7
    assert_same(estimate(whole, batches(x, y, 4), kind="fisher"), wanted)


@pytest.mark.parametrize("kind", ["mas", "fisher"])
def test_the_batch_version_is_what_it_says(kind):
    model, x, y = make("convs")
    plain = copy.deepcopy(model).eval()
    wanted = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    for a, b in batches(x, y, 4):
        plain.zero_grad()
        value = plain(a).square().sum(1).mean() if kind == "mas" else F.cross_entropy(plain(a), b)
        value.backward()
        for name, p in plain.named_parameters():
            size = p.grad.abs() if kind == "mas" else p.grad.square()
            wanted[name] += len(a) * size / len(x)
    assert_same(estimate(model, batches(x, y, 4), kind=kind, reduction="batch"), wanted)


@pytest.mark.parametrize("name", ["convs", "transformer", "tied"])
def test_memory_cuts_the_work_and_changes_nothing(name, monkeypatch):
    """No product of samples and no chunk of gradients is larger than the bound."""
    model, x, y = make(name)
    seen = []
    for module in (rules, per_sample):
        plain = module.mas_accumulate_

        def accumulate(omegas, grads, *args, _plain=plain, **kwargs):
            sizes = [
                g.numel() * g.element_size()
                for omega, g in zip(omegas, grads, strict=True)
                if g.dim() > omega.dim() >= 2  # samples in front of a weight
            ]
            seen.append(sum(sizes))
            _plain(omegas, grads, *args, **kwargs)

        monkeypatch.setattr(module, "mas_accumulate_", accumulate)
    wanted = estimate(
        model, [(x, y)], check=False, parameters=sorted(zoo.exact_without_check(name))
    )
    whole = max(seen)
    seen.clear()
    bound = max(8 * 8 * 24, whole // 3)
    found = estimate(
        model, [(x, y)], check=False, memory=bound, parameters=sorted(zoo.exact_without_check(name))
    )
    assert_same(found, wanted)
    assert max(seen) <= bound < whole


def test_only_the_parameters_asked_for(engines):
    model, x, y = make("tied")
    wanted = one_by_one(model, x)
    wanted["head.weight"] = wanted["words.weight"]
    names = ["head.weight", "norm.weight"]
    assert_same(estimate(model, batches(x, y, 3), parameters=names), {n: wanted[n] for n in names})
    model.norm.weight.requires_grad_(False)
    assert "norm.weight" not in estimate(model, batches(x, y, 3))
    assert estimate(model, batches(x, y, 3), parameters=[]) == {}


def test_batches_of_dicts_and_outputs_in_a_part():
    model, x, y = make("shared")
    given = [{"x": a, "rest": {"y": b}, "shape": (1, "word")} for a, b in batches(x, y, 3)]

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, batch):
            return {"logits": self.model(batch["x"])}

    def forward(net, batch):
        return net(batch)["logits"], batch["rest"]["y"]

    found = estimate(Wrapped(), given, kind="fisher", forward=forward)
    wanted = one_by_one(model, x, y)
    assert_same(found, {f"model.{name}": value for name, value in wanted.items()})


def test_objects_that_cannot_be_taken_apart(engines):
    """Layers without a rule take one backward a sample, from the batch's own forward."""

    class Bag:
        def __init__(self, x):
            self.x = x

    model, x, _ = make("lstm")
    given = [Bag(a) for a in x.split(4)]
    found = estimate(model, given, forward=lambda net, bag: (net(bag.x), None))
    assert_same(found, one_by_one(model, x))
    assert engines[-1].per_sample.way == "within"


def test_a_layer_after_which_the_output_is_written_in_place():
    """Views (of a linear layer with positions) and tensors, first layer and later ones."""

    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, CLASSES)

        def forward(self, x):
            x = self.second(self.first(x).relu_()).mul_(2)
            x[:, 0] = 0
            return self.head(x.mean(1)).tanh_()

    torch.manual_seed(0)
    model, x = Written().double(), torch.randn(6, 4, 5, dtype=torch.float64)
    for check in (True, False):
        assert_same(estimate(model, [x], check=check), one_by_one(model, x))


def test_compiled_models_and_checkpoints():
    from torch.utils.checkpoint import checkpoint

    model, x, y = make("mlp")
    wanted = one_by_one(model, x)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    found = estimate(compiled, batches(x, y, 4))
    assert_same({name.removeprefix("_orig_mod."): t for name, t in found.items()}, wanted)

    def forward(net, batch):
        return checkpoint(net, batch[0], use_reentrant=False), None

    assert_same(estimate(model, batches(x, y, 4), forward=forward, check=False), wanted)
