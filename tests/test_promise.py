"""The promise: whatever is learned later, an earlier task's outputs stay the same, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from maskcl.callback import Callback
from maskcl.methods import HAT, Piggyback
from maskcl.problems import Vision
from maskcl.training.trainer import Trainer
from tests import tiny

TASKS = 5


class Watch(Callback):
    """Records each task's logits as it ends, and how far later tasks have moved them."""

    def __init__(self, net) -> None:
        self.net = net
        self.inputs = [tiny.samples(t, seed=1)[0] for t in range(TASKS)]
        self.logits: list[torch.Tensor] = []
        self.moved: list[tuple[int, int]] = []

    def on_task_end(self, task: int, scores: np.ndarray) -> None:
        self.logits.append(tiny.logits(self.net, task, self.inputs[task]))
        for old in range(task):
            now = tiny.logits(self.net, old, self.inputs[old])
            if not torch.equal(now, self.logits[old]):
                self.moved.append((old, task))


def depends_on_input(logits: torch.Tensor) -> bool:
    """A task whose mask closed every path would keep its outputs for nothing."""
    return bool((logits.std(0) > 0).any())


def run(net, method, optimizer: str, *, setting: str = "task") -> tuple[Watch, np.ndarray]:
    watch = Watch(net)
    trainer = Trainer(
        net,
        method,
        Vision(),
        tiny.scenario(TASKS, setting=setting),
        tiny.OPTIMIZERS[optimizer],
        epochs=2,
        batch_size=8,
        device="cpu",
        callback=watch,
    )
    return watch, trainer.fit().matrix


@pytest.mark.parametrize("protection", ["exact", "min"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "adamw"])
@pytest.mark.parametrize("model", tiny.MODELS)
def test_earlier_logits_are_equal_after_each_task(model, optimizer, protection):
    net = tiny.network(model, TASKS)
    before = {name: p.detach().clone() for name, p in net.model.named_parameters()}
    watch, matrix = run(net, HAT(protection=protection, sparsity=0.05), optimizer)
    assert watch.moved == []
    assert len(watch.logits) == TASKS
    for old in range(TASKS):
        assert (matrix[old:, old] == matrix[old, old]).all()
    assert all(depends_on_input(out) for out in watch.logits)
    assert any(not torch.equal(p, before[name]) for name, p in net.model.named_parameters())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_shared_head_keeps_earlier_domains(optimizer):
    net = tiny.network("mlp", TASKS, shared=True)
    watch, matrix = run(net, HAT(sparsity=0.05), optimizer, setting="domain")
    assert watch.moved == []
    assert all(depends_on_input(out) for out in watch.logits)
    assert not np.isnan(matrix).any()


def test_later_tasks_do_move_weights():
    """Or the promise would be kept by learning nothing."""
    net = tiny.network("mlp", TASKS)
    method = HAT(sparsity=0.05)
    tiny.train_task(net, method, 0, tiny.OPTIMIZERS["adamw"])
    before = [p.detach().clone() for p in net.protection().parameters]
    tiny.train_task(net, method, 1, tiny.OPTIMIZERS["adamw"])
    assert any(not torch.equal(p, b) for p, b in zip(net.protection().parameters, before))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rule_const_forgets(optimizer):
    """This test file can fail: with protected gradients only halved, every check above would."""
    net = tiny.network("mlp", TASKS)
    watch, _ = run(net, HAT(rule="const", rule_value=0.5, sparsity=0.05), optimizer)
    assert (0, TASKS - 1) in watch.moved


@pytest.mark.parametrize("optimizer", ["momentum", "adam-l2", "adamw"])
def test_without_the_guard_weight_decay_forgets_and_is_noticed(optimizer):
    net = tiny.network("mlp", TASKS)
    method, make = HAT(sparsity=0.05), tiny.OPTIMIZERS[optimizer]
    x, _ = tiny.samples(0, seed=1)
    tiny.train_task(net, method, 0, make)
    before = tiny.logits(net, 0, x)
    assert depends_on_input(before)
    with pytest.raises(RuntimeError, match=r"HAT\.end_task: what finished tasks need has changed"):
        tiny.train_task(net, method, 1, make, protect=False)
    assert not torch.equal(tiny.logits(net, 0, x), before)
    assert not net.finished[1]


@pytest.mark.parametrize("optimizer", list(tiny.OPTIMIZERS))
@pytest.mark.parametrize("model", tiny.MODELS)
def test_the_hooks_alone_keep_the_promise(model, optimizer):
    """The same through a loop of one's own, with clipping."""
    net = tiny.network(model, TASKS)
    method = HAT(sparsity=0.05, clip=1.0)
    inputs = [tiny.samples(t, seed=1)[0] for t in range(TASKS)]
    kept: list[torch.Tensor] = []
    for task in range(TASKS):
        tiny.train_task(net, method, task, tiny.OPTIMIZERS[optimizer], steps=5)
        kept.append(tiny.logits(net, task, inputs[task]))
        assert depends_on_input(kept[task])
        for old in range(task):
            assert torch.equal(tiny.logits(net, old, inputs[old]), kept[old]), (old, task)


# --- Piggyback: nothing that an earlier task reads is trained at all


# Scores that start on both sides of the threshold: every task has another mask.
PIGGYBACK = Piggyback(spread="uniform", lr=0.02)


@pytest.mark.filterwarnings("ignore::maskcl.methods.PlanWarning")  # SGD's few steps are short
@pytest.mark.parametrize("optimizer", list(tiny.OPTIMIZERS))
@pytest.mark.parametrize(
    ("model", "norms"),
    [(name, "frozen") for name in tiny.MODELS]
    + [(name, "task") for name in ("conv", "residual", "layernorm")],  # the others have no norm
)
def test_piggybacks_earlier_logits_are_equal_after_each_task(model, optimizer, norms):
    net = tiny.piggyback(model, TASKS, norms=norms)
    base = net.base_hash()
    watch, matrix = run(net, PIGGYBACK, optimizer)
    assert watch.moved == []
    assert len(watch.logits) == TASKS
    for old in range(TASKS):
        assert (matrix[old:, old] == matrix[old, old]).all()
    assert all(depends_on_input(out) for out in watch.logits)
    assert net.base_hash() == base
    assert min(net.differing(0, task) for task in range(1, TASKS)) > 0.1


@pytest.mark.parametrize("levels", ["ternary", "ternary_symmetric", "topk"])
def test_piggybacks_other_levels_keep_it_too(levels):
    net = tiny.piggyback("residual", TASKS, levels=levels)
    method = Piggyback(
        levels=levels, spread="uniform", lr=0.02, density=0.5 if levels == "topk" else None
    )
    watch, _ = run(net, method, "adamw")
    assert watch.moved == []
    assert all(depends_on_input(out) for out in watch.logits)


def test_it_holds_on_two_threads(two_threads):
    for net, method in (
        (tiny.network("conv", TASKS), HAT(sparsity=0.05)),
        (tiny.piggyback("conv", TASKS, norms="task"), PIGGYBACK),
    ):
        watch, _ = run(net, method, "adamw")
        assert watch.moved == []
        assert all(depends_on_input(out) for out in watch.logits)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_piggybacks_domains_have_a_mask_and_a_head_each(optimizer):
    net = tiny.piggyback("mlp", TASKS)
    watch, matrix = run(net, PIGGYBACK, optimizer, setting="domain")
    assert watch.moved == []
    below = np.tril(np.ones((TASKS, TASKS), dtype=bool))
    assert np.isfinite(matrix[below]).all()
    assert np.isnan(matrix[~below]).all()


class Leaking(Piggyback):
    """A step that also moves one layer's frozen biases, by a little."""

    def after_step(self, net, state):
        with torch.no_grad():
            net.layers["1"].bias += 1e-3


def test_a_base_that_moves_is_noticed_when_the_next_task_ends():
    net = tiny.piggyback("mlp", TASKS)
    with pytest.raises(RuntimeError, match=r"Piggyback\.end_task: what .* model\.1\.bias\."):
        run(net, Leaking(spread="uniform", lr=0.02), "adam")
    assert net.finished.tolist() == [True] + [False] * (TASKS - 1)


@pytest.mark.parametrize("optimizer", list(tiny.OPTIMIZERS))
def test_piggybacks_hooks_alone_keep_the_promise(optimizer):
    net = tiny.piggyback("conv", TASKS, norms="task")
    inputs = [tiny.samples(t, seed=1)[0] for t in range(TASKS)]
    kept: list[torch.Tensor] = []
    for task in range(TASKS):
        tiny.train_task(net, PIGGYBACK, task, tiny.OPTIMIZERS[optimizer], steps=5)
        kept.append(tiny.logits(net, task, inputs[task]))
        for old in range(task):
            assert torch.equal(tiny.logits(net, old, inputs[old]), kept[old]), (old, task)
