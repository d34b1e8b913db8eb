"""What estimate refuses, with which sentence, and that it leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl.importance import estimate
from tests.importance.zoo import assert_same, batches, make, one_by_one


class Mixing(nn.Module):
    """Attention across the batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x):
        y = self.layer(x)
        return (y @ y.T).softmax(-1) @ y


class MessagePassing(nn.Module):
    """Of the name that graph layers inherit from."""


class GraphLayer(MessagePassing):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, x):
        return self.layer(x)


def test_rows_that_mix():
    with pytest.raises(RuntimeError, match=r"rows of a batch mix.*reduction=\"batch\""):
        estimate(Mixing(), [torch.randn(6, 5)])
    assert estimate(Mixing(), [torch.randn(6, 5)], reduction="batch")["layer.weight"].any()


def test_statistics_of_the_batch():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(RuntimeError, match=r"1 \(BatchNorm1d\) normalises.*reduction=\"batch\""):
        estimate(model, [torch.randn(6, 5)], check=False)
    assert len(estimate(model, [torch.randn(6, 5)], reduction="batch")) == 4


def test_messages_between_rows():
    with pytest.raises(RuntimeError, match=r"the model \(GraphLayer\) passes.*reduction=\"batch\""):
        estimate(GraphLayer(), [torch.randn(6, 5)], check=False)


def test_an_input_written_after_it_was_read():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 5)

        def forward(self, x):
            x = x.clone()
            y = self.layer(x)
            x.zero_()
            return y

    with pytest.raises(RuntimeError, match=r"owns layer.weight was changed in place"):
        estimate(Written(), [torch.randn(3, 5)], check=False)
    assert estimate(Written(), [torch.randn(3, 5)], check=False, parameters=["layer.bias"])


def test_an_importance_that_is_not_finite():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    x = torch.randn(3, 5)
    x[1, 2] = float("nan")
    with pytest.raises(RuntimeError, match=r"the importance of 0.weight is not finite"):
        estimate(model, [x])


ARGUMENTS = {
    "kind is 'ewc', wanted 'mas' or 'fisher'": {"kind": "ewc"},
    "labels is 'true'": {"kind": "fisher", "labels": "true"},
    "labels is 'predicted', which kind 'mas' has not": {"labels": "predicted"},
    "norm is 'mean', which kind 'fisher' has not": {"kind": "fisher", "norm": "mean"},
    "memory is 0": {"memory": 0},
    "parameters hold '1.heavy'": {"parameters": ["1.heavy"]},
    'labels "data".* wants the targets': {"kind": "fisher"},
    r"forward returned torch.float32, wanted \(outputs": {"forward": lambda net, x: net(x)},
    "the outputs are list": {"forward": lambda net, x: ([net(x)], None)},
    r"outputs have shape \[\]": {"forward": lambda net, x: (net(x).sum(), None)},
}


@pytest.mark.parametrize("sentence", ARGUMENTS)
def test_arguments(sentence):
    with pytest.raises((TypeError, ValueError), match=f"estimate: .*{sentence}"):
        estimate(nn.Linear(5, 4), [torch.randn(3, 5)], **ARGUMENTS[sentence])


def test_targets_and_samples():
    model, x = nn.Linear(5, 4), torch.randn(3, 5)
    for y, sentence in (
        (torch.tensor([0, 4, 1]), "targets hold 4, wanted 0 to 3"),
        (torch.tensor([0, -1, 1]), "targets hold -1, wanted 0 to 3"),
        (torch.zeros(3), "targets are torch.float32, wanted integers"),
        (torch.zeros(2, dtype=torch.long), r"targets have shape \[2\], wanted \[3\]"),
    ):
        with pytest.raises((TypeError, ValueError), match=sentence):
            estimate(model, [(x, y)], kind="fisher")
    with pytest.raises(ValueError, match="batches hold no sample"):
        estimate(model, [x[:0]])
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        estimate(nn.Linear(5, 4).requires_grad_(False), [x])


def state(model):
    """All that a pass has to leave alone."""
    return {
        "modes": [m.training for m in model.modules()],
        "grads": [p.requires_grad for p in model.parameters()],
        "grad": [p.grad for p in model.parameters()],
        "hooks": [len(m._forward_hooks) for m in model.modules()],
        "switches": [torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()],
    }


@pytest.mark.parametrize("name", ["convs", "transformer", "lstm"])
@pytest.mark.parametrize("reduction", ["sample", "batch"])
def test_the_model_is_as_it_was_even_after_an_exception(name, reduction):
    model, x, y = make(name)
    list(model.modules())[2].eval()
    next(iter(model.parameters())).requires_grad_(False)
    F.cross_entropy(model(x), y).backward()
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    values = {key: t.clone() for key, t in model.state_dict().items()}
    before = state(model)

    def failing():
        yield from batches(x, y, 4)
        raise KeyError("no more data")

    with torch.no_grad():
        with pytest.raises(KeyError, match="no more data"):
            estimate(model, failing(), reduction=reduction)
        assert not torch.is_grad_enabled()
    found = estimate(model, batches(x, y, 4), reduction=reduction)
    after = state(model)
    assert all(a is b for a, b in zip(after.pop("grad"), before.pop("grad"), strict=True))
    assert after == before
    assert not before["modes"][2] and before["modes"][0]
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert p.grad is None if grad is None else torch.equal(p.grad, grad)
    for key, t in model.state_dict().items():
        assert torch.equal(t, values[key])
    assert not any(t.requires_grad for t in found.values())


def test_the_comparison_can_be_left_out():
    """Then what only it finds is wrong: the test of the test above."""
    model, x, _ = make("shared")
    wanted = one_by_one(model, x)
    assert_same(estimate(model, [x]), wanted)
    with pytest.raises(AssertionError, match=r"past.weight"):
        assert_same(estimate(model, [x], check=False), wanted)
