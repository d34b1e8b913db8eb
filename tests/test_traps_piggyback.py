"""The traps that other implementations of Piggyback fell into, one test each, named for what is
right."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl import masks, ops
from maskcl.callback import Callback
from maskcl.methods import Piggyback
from maskcl.nn import PiggybackNetwork, to_piggyback
from maskcl.problems import Vision
from maskcl.training.trainer import Trainer
from tests import tiny

METHOD = Piggyback(lr=1e-2)


def trained(model: str = "mlp", tasks: int = 2, *, total: int = 3, optimizer: str = "adam"):
    """A network with that many of ``total`` tasks finished."""
    net = tiny.piggyback(model, total, norms="task")
    for task in range(tasks):
        tiny.train_task(net, METHOD, task, tiny.OPTIMIZERS[optimizer])
    return net


def backward(net: PiggybackNetwork, task: int) -> None:
    """One forward and backward of the task in training."""
    x, y = tiny.samples(task)
    with net.task(task):
        F.cross_entropy(net(x), y).backward()


# --- learning the masks


@pytest.mark.parametrize("optimizer", list(tiny.OPTIMIZERS))
@pytest.mark.parametrize("model", tiny.MODELS)
def test_scores_are_given_to_the_optimizer_and_move_in_the_first_step(model, optimizer):
    net = tiny.piggyback(model)
    METHOD.begin_task(net, 0)
    step = tiny.OPTIMIZERS[optimizer](METHOD.parameter_groups(net, 0))
    held = {id(p) for group in step.param_groups for p in group["params"]}
    assert len(net.scores()) == len(net.layers) >= 2
    before = [s.detach().clone() for s in net.scores()]
    net.train()
    backward(net, 0)
    step.step()
    for scores, start in zip(net.scores(), before, strict=True):
        assert id(scores) in held
        moving = scores.grad.abs() > 1e-6
        assert moving.any()
        assert (scores != start)[moving].all()


def test_the_trainers_optimizer_is_given_the_scores_too():
    class Moved(Callback):
        def on_step(self, task, epoch, batch, loss):
            assert all((s != METHOD.init).any() for s in trainer.net.scores())

    trainer = run(tiny.piggyback("conv", 2), callback=Moved())
    trainer.fit()
    assert trainer.net.differing(0, 1) > 0


def run(net: PiggybackNetwork, method: Piggyback = METHOD, optimizer="adam", **options) -> Trainer:
    make = tiny.OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    arguments = {"epochs": 2, "batch_size": 8, "device": "cpu"} | options
    return Trainer(net, method, Vision(), tiny.scenario(2), make, **arguments)


@pytest.mark.parametrize("optimizer", ["momentum", "adam-l2", "adamw"])
def test_weight_decay_never_reaches_scores(optimizer):
    """With a gradient of 0 a score stays where it is, and no bit flips; heads do decay."""
    net = tiny.piggyback()
    METHOD.begin_task(net, 0)
    step = tiny.OPTIMIZERS[optimizer](METHOD.parameter_groups(net, 0))
    heads = [p for p in net.task_parameters(0) if p.dim() == 2 and len(p) == tiny.CLASSES]
    before = [p.detach().clone() for p in heads]
    for _ in range(50):
        for p in net.task_parameters(0):
            p.grad = torch.zeros_like(p)
        step.step()
    assert all((s == METHOD.init).all() for s in net.scores())
    assert not any(torch.equal(p, b) for p, b in zip(heads, before, strict=True))
    assert set(net.off(0).values()) == {0.0}


def test_a_schedule_changes_the_rate_of_every_group():
    net, method = tiny.piggyback(), Piggyback(lr=1e-4, head_lr=1e-3)
    method.begin_task(net, 0)
    optimizer = torch.optim.Adam(method.parameter_groups(net, 0), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    optimizer.step()
    schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1e-5, 1e-4])


def test_a_resumed_run_keeps_the_rate_of_every_group(tmp_path):
    """Rates that the optimizer's own schedule has lowered, not those that it began with."""

    def make(groups) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(groups)

        def lower(*_) -> None:
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
            rates.append([group["lr"] for group in optimizer.param_groups])

        optimizer.register_step_post_hook(lower)
        return optimizer

    class Stop(Callback):
        def on_epoch_start(self, task, epoch, batches):
            if (task, epoch) == (1, 1):
                raise KeyboardInterrupt

    rates: list[list[float]] = []
    method = Piggyback(lr=2e-2, head_lr=1e-2)
    whole = run(tiny.piggyback("conv", 2), method, make)
    whole.fit()
    wanted, rates = rates, []
    with pytest.raises(KeyboardInterrupt):
        run(tiny.piggyback("conv", 2), method, make, directory=tmp_path, callback=Stop()).fit()
    second = run(tiny.piggyback("conv", 2), method, make, directory=tmp_path)
    second.fit(resume=True)
    assert rates == wanted
    assert wanted[0] == pytest.approx([2e-2 * 0.9, 1e-2 * 0.9])
    assert wanted[5] == pytest.approx([2e-2 * 0.9**6, 1e-2 * 0.9**6])


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adam-l2", "adamw"])
def test_gradient_masking_is_not_update_masking(optimizer):
    """50 steps of optimizers with momentum and weight decay on task 1."""
    net = trained("conv", 1)
    x, _ = tiny.samples(0, seed=1)
    before, base = tiny.logits(net, 0, x), net.base_hash()
    tiny.train_task(net, METHOD, 1, tiny.OPTIMIZERS[optimizer], steps=50)
    assert torch.equal(tiny.logits(net, 0, x), before)
    assert net.base_hash() == base


def test_a_mask_that_is_all_off_still_learns():
    """Straight through: a weight that is off has a gradient, so that it can come back."""
    net = tiny.piggyback()
    method = Piggyback(init=-1e-2, threshold=0.0, lr=5e-3)
    method.begin_task(net, 0)
    assert set(net.off(0).values()) == {1.0}
    net.train()
    backward(net, 0)
    # What is in front of a layer that is all off has no gradient yet; that layer has.
    last = net.scores()[-1].grad
    assert torch.isfinite(last).all()
    assert (last != 0).any()
    losses = tiny.train_task(net, method, 0, tiny.OPTIMIZERS["adam"], steps=20)
    assert losses[-1] < losses[0]
    assert max(net.off(0).values()) < 1.0


# --- which weights a mask keeps


@pytest.mark.parametrize("inclusive", [False, True])
def test_a_score_at_the_threshold_is_off_unless_inclusive(inclusive):
    """Above it by one unit in the last place is on, below it off, and at it as asked."""
    net = tiny.piggyback()
    method = Piggyback(threshold=0.25, inclusive=inclusive)
    method.begin_task(net, 0)
    at = torch.tensor(0.25)
    values = torch.stack([torch.nextafter(at, at * 0), at, torch.nextafter(at, at * 2)])
    with torch.no_grad():
        net.scores()[0].flatten()[:3] = values
    wanted = [0, int(inclusive), 1]
    net.eval()
    for finished in (False, True):
        if finished:
            net.finish_task(0)
        with net.task(0):
            kept = net.model[1].masked_weight().detach().flatten()[:3] != 0
        assert kept.int().tolist() == wanted
    assert [(int(net.words(0)["1"][0]) >> i) & 1 for i in range(3)] == wanted


def test_the_original_ternary_rule_turns_a_small_negative_score_and_the_symmetric_does_not():
    for levels, wanted in (("ternary", [-1, 0, 1, -1]), ("ternary_symmetric", [0, 0, 1, -1])):
        net = tiny.piggyback(levels=levels)
        method = Piggyback(levels=levels)
        method.begin_task(net, 0)
        with torch.no_grad():
            net.scores()[0].flatten()[:4] = torch.tensor([-1e-9, 4e-3, 6e-3, -6e-3])
        net.finish_task(0)
        layer = net.model[1]
        with net.task(0):
            signs = (layer.masked_weight() / layer.weight).flatten()[:4]
        assert signs.tolist() == wanted


def test_biases_are_never_masked():
    net = tiny.piggyback()
    Piggyback(init=0.0).begin_task(net, 0)  # below the threshold: every weight is off
    net.eval()
    with net.task(0):
        out = net.model[1](torch.randn(3, 36))
    assert torch.equal(out, net.model[1].bias.expand(3, -1))


def test_the_mask_at_test_is_the_mask_that_trains():
    net = tiny.piggyback("conv", norms="task")
    tiny.train_task(net, METHOD, 0, tiny.OPTIMIZERS["adam"], finish=False)
    x, _ = tiny.samples(0, seed=1)
    wanted = {
        name: ops.pack_scores(layer.scores, METHOD.threshold) for name, layer in net.layers.items()
    }
    unfinished = tiny.logits(net, 0, x)
    net.finish_task(0)
    torch.testing.assert_close(tiny.logits(net, 0, x), unfinished)
    for name, words in net.words(0).items():
        assert torch.equal(words, wanted[name])


# --- what is kept


def test_masks_are_in_the_state_dict_and_survive_a_new_process(tmp_path):
    nets = {model: trained(model, 2) for model in tiny.MODELS}
    tiny.assert_same_in_a_new_process(nets, 'tiny.piggyback(model, 3, norms="task")', 2, tmp_path)


def test_masks_head_and_norms_are_restored_together():
    """A best epoch's state brings all three back, in the middle of a task and after it."""
    net = tiny.piggyback("conv", 3, norms="task")
    x, _ = tiny.samples(0, seed=1)
    tiny.train_task(net, METHOD, 0, tiny.OPTIMIZERS["adam"], steps=4, finish=False)
    best = copy.deepcopy(net.state_dict())
    wanted, off = tiny.logits(net, 0, x), net.off(0)
    optimizer = torch.optim.Adam(METHOD.parameter_groups(net, 0), lr=0.02)
    net.train()
    for _ in range(5):
        backward(net, 0)
        optimizer.step()
    assert net.off(0) != off
    net.load_state_dict(best)
    assert torch.equal(tiny.logits(net, 0, x), wanted)
    assert net.off(0) == off
    net.finish_task(0)
    finished = tiny.logits(net, 0, x)
    net.load_state_dict(best)  # a task that has ended is in training again, with its scores
    assert net.training_task == 0
    assert torch.equal(tiny.logits(net, 0, x), wanted)
    net.finish_task(0)
    assert torch.equal(tiny.logits(net, 0, x), finished)


def test_a_finished_task_is_one_bit_a_weight_everywhere(tmp_path):
    """In memory, in the state_dict, in its file: no score of it is left anywhere."""
    net = trained("mlp", 2, total=2)
    weights = sum(layer.weight.numel() for layer in net.layers.values())
    assert net.scores() == []
    state = net.state_dict()
    bits = sum(8 * t.numel() * t.element_size() for n, t in state.items() if n.endswith(".words"))
    assert bits == 2 * weights  # 576 and 192 are whole words
    assert not any("scores" in name for name in state)
    masks.export_masks(net, 0, tmp_path / "m")
    assert 8 * masks.read_masks(tmp_path / "m").words_bytes == weights
    assert all(p.grad is None for p in net.parameters())


def test_a_tasks_words_never_alias():
    net = tiny.piggyback(tasks=3)
    kept = []
    for task in range(3):
        tiny.train_task(net, METHOD, task, tiny.OPTIMIZERS["adam"])
        kept.append(net.words(task))
    x, _ = tiny.samples(0)
    for task in range(3):
        tiny.logits(net, task, x)
    for task, words in enumerate(kept):
        now = net.words(task)
        assert all(torch.equal(now[name], w) for name, w in words.items())
    for a, b in itertools.combinations(kept, 2):
        assert not all(torch.equal(a[name], b[name]) for name in a)
    before = net.words(0)
    for words in kept[0].values():
        words.fill_(-1)  # the caller's copy
    assert all(torch.equal(w, before[name]) for name, w in net.words(0).items())


# --- the frozen network


def test_weights_are_never_overwritten_even_inside_a_step():
    """So that a step may be left by an exception and another task's forward may come between."""
    net = trained(tasks=1)
    METHOD.begin_task(net, 1)
    layer = net.model[1]
    before, seen = layer.weight.detach().clone(), []
    net.model[4].register_forward_pre_hook(lambda *_: seen.append(layer.weight.detach().clone()))
    x, y = tiny.samples(1)
    first = tiny.logits(net, 0, x)
    net.train()
    with net.task(1):
        loss = F.cross_entropy(net(x), y)
        assert torch.equal(tiny.logits(net, 0, x), first)
    loss.backward()
    with pytest.raises(ValueError, match="x's"), net.task(1):
        net(torch.zeros(2, 1, 5, 5))
    assert all(torch.equal(w, before) for w in [*seen, layer.weight])
    assert torch.equal(tiny.logits(net, 0, x), first)


def test_frozen_weights_are_in_the_state_dict_and_take_no_gradient():
    net = trained()
    names = dict(net.named_parameters())
    for name in net.layers:
        for part in ("weight", "bias"):
            assert f"model.{name}.{part}" in net.state_dict()
            assert not names[f"model.{name}.{part}"].requires_grad


@pytest.mark.parametrize("norms", ["frozen", "task"])
def test_norms_do_not_move_under_another_task(norms):
    """Statistics neither, in training mode on inputs from far away."""
    net = tiny.piggyback("conv", 3, norms=norms)
    tiny.train_task(net, METHOD, 0, tiny.OPTIMIZERS["adamw"])
    x, _ = tiny.samples(0, seed=1)
    before = tiny.logits(net, 0, x)
    tiny.train_task(net, METHOD, 1, tiny.OPTIMIZERS["adamw"], steps=20, finish=False)
    net.train()
    far, _ = tiny.samples(1)
    with net.task(1):
        net(100 * far + 50)
    assert torch.equal(tiny.logits(net, 0, x), before)


def test_layers_without_bias_train_and_move():
    """``to`` and its kin return the module; a vector is never asked whether it is true."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8, bias=False), nn.ReLU(), nn.Linear(8, 2))
    net = to_piggyback(model, 2, classes=[2, 2])
    layer = net.model[1]
    assert layer.to(torch.float64) is layer
    assert layer.float() is layer
    assert layer.cpu() is layer
    assert net.to("cpu") is net
    tiny.train_task(net, METHOD, 0, tiny.OPTIMIZERS["adam"], steps=3)
    x, _ = tiny.samples(0)
    twin = copy.deepcopy(net)
    assert torch.equal(tiny.logits(twin, 0, x), tiny.logits(net, 0, x))


def test_two_forwards_before_one_backward():
    x, y = tiny.samples(0)
    grads = []
    for parts in ((x,), (x[:12], x[12:])):
        net = tiny.piggyback()
        METHOD.begin_task(net, 0)
        with net.task(0):
            out = torch.cat([net(part) for part in parts])
            F.cross_entropy(out, y).backward()
        grads.append([p.grad.clone() for p in net.task_parameters(0)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_a_task_without_a_mask_says_so():
    net = trained(tasks=1)
    x, _ = tiny.samples(0)
    with pytest.raises(RuntimeError, match="task 1 is neither finished nor in training"):
        tiny.logits(net, 1, x)
    with pytest.raises(RuntimeError, match="task 0 is finished"):
        METHOD.begin_task(net, 0)


def test_nothing_that_is_saved_needs_pickle():
    net = trained()
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True).keys() == net.state_dict().keys()
