"""One training step of the original HAT, written out in plain torch, against ours.

The recipe is that of section 2 of Serra et al. 2018 in the order of the authors' code: backward,
clamp the weights' gradients, compensate the embeddings', clip, SGD, clamp the embeddings.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.methods import HAT
from maskcl.nn import to_hat
from maskcl.ops import hat_gate

S_MAX, COSH_CLAMP, EMBEDDING_CLAMP = 400.0, 50.0, 6.0
SPARSITY, CLIP, LR = 0.75, 10.0, 0.05
WIDTHS = (8, 7, 6)
CLASSES = (3, 2)


Gate = Callable[[Tensor], Tensor]


def unrounded_sigmoid(x: Tensor) -> Tensor:
    """sigmoid(x) with the gradient sigmoid(x) sigmoid(-x), not m (1 - m) from the rounded m.

    At x = 20 that rounding is 1e-16 of m and 5e-8 of 1 - m.
    """
    return torch.exp(F.logsigmoid(x))


def step_of_the_paper(
    parameters: dict[str, Tensor],
    used: list[Tensor],
    s: float,
    x: Tensor,
    y: Tensor,
    gate: Gate = torch.sigmoid,
) -> dict[str, Tensor]:
    """w0, b0, w1, b1, head, head_bias, e0, e1 after one step. ``used``: 0/1 by layer."""
    p = {name: t.clone().requires_grad_() for name, t in parameters.items()}
    gates = [gate(s * p["e0"]), gate(s * p["e1"])]
    h = F.relu(F.linear(x, p["w0"], p["b0"])) * gates[0]
    h = F.relu(F.linear(h, p["w1"], p["b1"])) * gates[1]
    loss = F.cross_entropy(F.linear(h, p["head"], p["head_bias"]), y)
    free = sum((1 - u).sum() for u in used)
    loss = loss + SPARSITY * sum((g * (1 - u)).sum() for g, u in zip(gates, used)) / free
    loss.backward()
    grads = {name: t.grad for name, t in p.items()}
    grads["w0"] = grads["w0"] * (1 - used[0])[:, None]
    grads["w1"] = grads["w1"] * (1 - torch.minimum(used[1][:, None], used[0][None, :]))
    grads["b0"] = grads["b0"] * (1 - used[0])
    grads["b1"] = grads["b1"] * (1 - used[1])
    for name in ("e0", "e1"):
        e = parameters[name]
        above = torch.cosh(torch.clamp(s * e, -COSH_CLAMP, COSH_CLAMP)) + 1
        grads[name] = grads[name] * (S_MAX / s) * above / (torch.cosh(e) + 1)
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
    factor = min(1.0, CLIP / (norm + 1e-6))
    after = {name: parameters[name] - LR * factor * g for name, g in grads.items()}
    for name in ("e0", "e1"):
        after[name] = after[name].clamp(-EMBEDDING_CLAMP, EMBEDDING_CLAMP)
    return after


class Ours:
    """The same network in maskcl, task 0 finished with some of its units, task 1 about to train."""

    def __init__(self, compensation: str, largest: float, first: bool) -> None:
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(WIDTHS[0], WIDTHS[1]),
            nn.ReLU(),
            nn.Linear(WIDTHS[1], WIDTHS[2]),
            nn.ReLU(),
            nn.Linear(WIDTHS[2], 4),
        )
        example = torch.zeros(2, WIDTHS[0], dtype=torch.float64)
        self.net = to_hat(model.double(), 2, example, classes=CLASSES).double()
        self.method = HAT(
            s_max=S_MAX,
            sparsity=SPARSITY,
            protection="min",
            compensation=compensation,
            cosh_clamp=COSH_CLAMP,
            embedding_clamp=EMBEDDING_CLAMP,
            clip=CLIP,
        )
        self.task = 0 if first else 1
        if not first:
            self.net.finish_task(0)
        self.state = self.method.begin_task(self.net, self.task)
        with torch.no_grad():
            # Embeddings as large as the case allows, both signs, the largest of each included.
            e = torch.linspace(-largest, largest, sum(WIDTHS[1:]), dtype=torch.float64)
            e = e[torch.randperm(len(e))]
            self.net.embeddings[self.task].copy_(e)

    def layers(self) -> list[slice]:
        return sorted(self.net.units.values(), key=lambda s: s.start)

    def parameters(self) -> dict[str, Tensor]:
        named = {id(p): name for name, p in self.net.named_parameters()}
        trained = self.net.task_parameters(self.task)
        by_shape = {tuple(p.shape): p.detach().clone() for p in trained if p.dim() == 2}
        assert len(named) > len(trained)
        shapes = {
            "w0": (WIDTHS[1], WIDTHS[0]),
            "w1": (WIDTHS[2], WIDTHS[1]),
            "head": (CLASSES[self.task], WIDTHS[2]),
        }
        biases = {
            "b0": WIDTHS[1],
            "b1": WIDTHS[2],
            "head_bias": CLASSES[self.task],
        }
        by_length = {len(p): p.detach().clone() for p in trained if p.dim() == 1}
        e = self.net.embeddings[self.task].detach()
        out = {name: by_shape[shape] for name, shape in shapes.items()}
        out |= {name: by_length[length] for name, length in biases.items()}
        return out | {f"e{i}": e[s].clone() for i, s in enumerate(self.layers())}

    def used(self) -> list[Tensor]:
        used = self.net.used().double()
        return [used[s] for s in self.layers()]

    def step(self, progress: float, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        net, method, state = self.net, self.method, self.state
        optimizer = torch.optim.SGD(net.task_parameters(self.task), lr=LR)
        method.before_step(net, state, progress)
        with net.task(self.task, state.scale):
            loss = F.cross_entropy(net(x), y) + method.loss_term(net, state)
        loss.backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)
        return self.parameters()


def compare(
    compensation: str, progress: float, largest: float, first: bool, gate: Gate = torch.sigmoid
) -> float:
    """The largest difference between our parameters after a step and the paper's."""
    ours = Ours(compensation, largest, first)
    x = torch.randn(16, WIDTHS[0], dtype=torch.float64)
    y = torch.randint(0, CLASSES[ours.task], (16,))
    s = (S_MAX - 1 / S_MAX) * progress + 1 / S_MAX
    before = ours.parameters()
    wanted = step_of_the_paper(before, ours.used(), s, x, y, gate)
    found = ours.step(progress, x, y)
    assert found.keys() == wanted.keys()
    if not first:
        assert 0 < float(torch.cat(ours.used()).mean()) < 1
    # Where s e is large the recipe's own rounding stops the embeddings.
    for name in ("w0", "w1", "head", *(("e0", "e1") if s * largest < 30 else ())):
        assert not torch.equal(found[name], before[name]), name
    return max(float((found[name] - wanted[name]).abs().max()) for name in wanted)


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("largest", [0.05, 1.5, 6.0])
@pytest.mark.parametrize("progress", [0.0, 0.01, 0.3, 1.0])
def test_recipe_is_the_papers_step(progress, largest, first):
    assert compare("recipe", progress, largest, first) < 1e-10


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize(
    ("progress", "largest"), [(0.0, 6.0), (0.003, 6.0), (0.02, 1.5), (0.3, 0.12), (1.0, 0.04)]
)
def test_exact_is_the_papers_step_where_no_gate_saturates(progress, largest, first):
    assert largest * ((S_MAX - 1 / S_MAX) * progress + 1 / S_MAX) <= 16
    assert compare("exact", progress, largest, first) < 1e-10


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize("largest", [0.05, 0.1, 0.12])
def test_exact_is_the_papers_step_without_its_rounding(largest, first):
    """s e up to 20 and on to 48, at s_max: the equation in float64, m (1 - m) not rounded."""
    assert compare("exact", 1.0, largest, first, unrounded_sigmoid) < 1e-10


def test_the_comparison_sees_another_step():
    """A step without compensation is not the paper's."""
    assert compare("none", 0.3, 1.5, False) > 1e-6


def fifty_digits(e: float, s: float) -> mpmath.mpf:
    """s_max sigmoid'(e) min(1, sigmoid'(s e) / sigmoid'(k)) with nothing rounded."""
    with mpmath.workdps(50):

        def slope(x):
            return 1 / (2 * (mpmath.cosh(x) + 1))

        e, s = mpmath.mpf(e), mpmath.mpf(s)
        q = s * slope(s * e)
        clipped = max(-mpmath.mpf(COSH_CLAMP), min(mpmath.mpf(COSH_CLAMP), s * e))
        return q * (mpmath.mpf(S_MAX) / s) * (mpmath.cosh(clipped) + 1) / (mpmath.cosh(e) + 1)


@pytest.mark.parametrize("s", [1 / S_MAX, 1.0, 20.0, 100.0, S_MAX])
def test_exact_gradient_against_fifty_digits(s):
    """Also where m rounds to 1 and the recipe's gradient is lost."""
    values = [-6.0, -3.1, -0.7, -0.2, -0.13, -0.05, 0.0, 0.05, 0.1, 0.13, 0.2, 0.7, 3.1, 6.0]
    e = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(s, dtype=torch.float64)
    hat_gate(e, scale, max_scale=S_MAX, cosh_clamp=COSH_CLAMP).sum().backward()
    for value, found in zip(values, e.grad.tolist()):
        wanted = fifty_digits(value, s)
        assert mpmath.isfinite(found)
        assert abs(found - wanted) <= mpmath.mpf(1e-12) * abs(wanted) + mpmath.mpf("1e-300"), value


def test_an_open_gate_can_close_with_exact_and_not_with_recipe():
    gradients = {}
    for compensation in ("exact", "recipe"):
        e = torch.tensor([0.12], dtype=torch.float64, requires_grad=True)
        hat_gate(e, S_MAX, max_scale=S_MAX, compensation=compensation).sum().backward()
        gradients[compensation] = float(e.grad)
    assert gradients["exact"] > 1
    assert gradients["recipe"] == 0
