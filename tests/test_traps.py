"""The traps that other implementations of HAT fell into, one test each, named for what is right."""

from __future__ import annotations

import copy
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl import ops
from maskcl.methods import HAT
from maskcl.problems import Vision
from maskcl.training.trainer import Trainer
from tests import tiny

METHOD = HAT(sparsity=0.05)


def trained(model: str = "mlp", tasks: int = 2, *, total: int = 3, optimizer: str = "adam"):
    """A network with that many of ``total`` tasks finished."""
    net = tiny.network(model, total)
    for task in range(tasks):
        tiny.train_task(net, METHOD, task, tiny.OPTIMIZERS[optimizer])
    return net


# --- learning the masks


@pytest.mark.parametrize("optimizer", list(tiny.OPTIMIZERS))
def test_embeddings_move_in_the_first_step(optimizer):
    """At s = 1 / s_max, where a plain gradient would be 400 times too small."""
    net = tiny.network()
    x, y = tiny.samples(0)
    state = METHOD.begin_task(net, 0)
    before = net.embeddings[0].detach().clone()
    step = tiny.OPTIMIZERS[optimizer](net.task_parameters(0))
    METHOD.before_step(net, state, 0.0)
    with net.task(0, state.scale):
        loss = F.cross_entropy(net(x), y) + METHOD.loss_term(net, state)
    loss.backward()
    step.step()
    assert float(state.scale) == pytest.approx(1 / METHOD.s_max)
    assert not (net.embeddings[0] == before).any()


def test_every_embedding_is_a_parameter_that_its_task_trains():
    net = tiny.network(tasks=3)
    parameters = {id(p) for p in net.parameters()}
    for task in range(3):
        ours = {id(p) for p in net.task_parameters(task)}
        assert id(net.embeddings[task]) in parameters
        for other in range(3):
            assert (id(net.embeddings[other]) in ours) == (other == task)


def test_masks_are_learned_at_s_max_too():
    """A constant scale of s_max: the compensated gradient still moves every embedding."""
    net = tiny.network()
    method = HAT(schedule="constant", compensation="exact", sparsity=0.3, embedding_clamp=6.0)
    state = method.begin_task(net, 0)
    with torch.no_grad():  # |s e| up to 40, where m (1 - m) rounds to 0 in float32
        net.embeddings[0].copy_(torch.linspace(-0.1, 0.1, len(net.embeddings[0])))
    x, y = tiny.samples(0)
    method.before_step(net, state, 0.5)
    with net.task(0, state.scale):
        (F.cross_entropy(net(x), y) + method.loss_term(net, state)).backward()
    gradient = net.embeddings[0].grad
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).all()


def test_embeddings_stay_within_the_clamp_after_each_step():
    net = tiny.network()
    method = HAT(sparsity=50.0, embedding_clamp=0.5)
    tiny.train_task(net, method, 0, lambda p: torch.optim.SGD(p, lr=10.0), steps=3, finish=False)
    assert float(net.embeddings[0].detach().abs().max()) == 0.5


# --- saved masks


def test_masks_are_in_the_state_dict_and_survive_a_new_process(tmp_path):
    nets = {model: trained(model, 2) for model in tiny.MODELS}
    tiny.assert_same_in_a_new_process(nets, "tiny.network(model, 3)", 3, tmp_path)


def test_protection_is_right_at_once_after_loading():
    """No forward pass is needed first, and nothing cached from before is used."""
    net, fresh = trained(), tiny.network(tasks=3)
    stale = fresh.protection().fraction()
    fresh.load_state_dict(net.state_dict())
    assert fresh.protection().fraction() == net.protection().fraction() != stale
    assert torch.equal(fresh.used(), net.used())


# --- what is protected


def test_cumulative_bits_never_alias():
    """Task 1's units stay used after task 2, and no forward changes them."""
    net = tiny.network(tasks=3)
    used = []
    for task in range(3):
        tiny.train_task(net, METHOD, task, tiny.OPTIMIZERS["adam"])
        used.append(net.used().clone())
        mask = net.hard_mask(task)
        assert torch.equal(net.used(), used[-1])
        assert bool((mask <= used[-1]).all())
    for before, after in itertools.pairwise(used):
        assert bool((before <= after).all())
    tasks = net.tasks.clone()
    x, _ = tiny.samples(0)
    for task in range(3):
        tiny.logits(net, task, x)
    mask = net.hard_mask(0)
    mask.fill_(True)  # the caller's copy
    assert torch.equal(net.tasks, tasks)
    assert torch.equal(net.used(), used[-1])


def test_the_protection_of_a_task_does_not_change_under_it():
    """Protection taken before a task is not a view that its own mask enters."""
    net = trained(tasks=1)
    protection = net.protection()
    before = protection.fraction()
    net.finish_task(1)
    assert net.protection().fraction() != before
    assert protection.fraction() == before


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adam-l2", "adamw"])
def test_gradient_masking_is_not_update_masking(optimizer):
    """50 steps of optimizers with momentum and weight decay on task 1."""
    net = trained(tasks=1)
    x, _ = tiny.samples(0, seed=1)
    before = tiny.logits(net, 0, x)
    saved = net.protection().snapshot()
    protection = net.protection()
    tiny.train_task(net, METHOD, 1, tiny.OPTIMIZERS[optimizer], steps=50)
    assert torch.equal(tiny.logits(net, 0, x), before)
    moved = [not torch.equal(p, s) for p, s in zip(protection.parameters, saved)]
    protection.restore_(saved)  # puts back nothing: all of it was in place
    assert any(moved)
    assert moved == [not torch.equal(p, s) for p, s in zip(protection.parameters, saved)]


def test_the_mask_at_test_is_the_mask_that_is_protected():
    """Hard in both places: no unit passes a little without being locked."""
    net = tiny.network(tasks=3)
    tiny.train_task(net, METHOD, 0, tiny.OPTIMIZERS["adam"], finish=False)
    with torch.no_grad():
        net.embeddings[0][:4] = torch.tensor([-0.005, -1e-8, 0.0, 0.005])
    net.eval()
    x, _ = tiny.samples(0)
    unfinished = tiny.logits(net, 0, x)
    net.finish_task(0)
    assert torch.equal(tiny.logits(net, 0, x), unfinished)
    assert net.hard_mask(0)[:4].tolist() == [False, False, False, True]
    assert torch.equal(net.hard_mask(0), net.used())
    assert torch.equal(net.used(), (net.tasks & 1).flatten().bool())


def test_a_finished_embedding_is_frozen_and_no_longer_matters():
    net = trained(tasks=1)
    x, _ = tiny.samples(0)
    before, mask = tiny.logits(net, 0, x), net.hard_mask(0).clone()
    with torch.no_grad():
        net.embeddings[0].neg_()
    assert torch.equal(net.hard_mask(0), mask)
    assert torch.equal(tiny.logits(net, 0, x), before)
    with pytest.raises(RuntimeError, match="task 0 is finished"):
        METHOD.begin_task(net, 0)


def test_batchnorm_statistics_and_affine_are_each_tasks_own():
    net = trained("conv", 1)
    x, _ = tiny.samples(0, seed=1)
    before = tiny.logits(net, 0, x)
    tiny.train_task(net, METHOD, 1, tiny.OPTIMIZERS["adamw"], steps=20)
    net.train()
    far, _ = tiny.samples(1)
    with net.task(1):
        net(100 * far + 50)  # another distribution through the running statistics
    assert torch.equal(tiny.logits(net, 0, x), before)


def test_a_networks_last_unit_used_up_gives_a_finite_loss_and_no_gradient():
    net = tiny.network(tasks=3)
    with torch.no_grad():
        net.embeddings[0].fill_(1.0)
    net.finish_task(0)
    assert bool(net.used().all())
    x, y = tiny.samples(1)
    state = METHOD.begin_task(net, 1)
    METHOD.before_step(net, state, 0.0)
    with net.task(1, state.scale):
        out = net(x)
        term = METHOD.loss_term(net, state)
        assert float(term.detach()) == 0.0
        (gradient,) = torch.autograd.grad(term, net.embeddings[1], retain_graph=True)
        assert bool((gradient == 0).all())
        loss = F.cross_entropy(out, y) + term
    loss.backward()
    METHOD.after_backward(net, state)
    assert bool(torch.isfinite(loss))
    assert all(
        bool(torch.isfinite(p.grad).all()) for p in net.task_parameters(1) if p.grad is not None
    )
    # And training goes on: the head and the mask of the new task still learn.
    losses = tiny.train_task(net, METHOD, 1, tiny.OPTIMIZERS["adam"], steps=40)
    assert losses[-1] < losses[0]


def test_nan_in_a_protected_gradient_does_not_reach_the_weight():
    net = trained(tasks=1)
    state = METHOD.begin_task(net, 1)
    for p in net.task_parameters(1):
        p.grad = torch.full_like(p, float("nan"))
    METHOD.after_backward(net, state)
    protection = state.protection
    clean = {
        n: float((p.grad == 0).double().mean())
        for n, p in zip(protection.names, protection.parameters)
    }
    assert clean == pytest.approx(protection.fraction())
    assert any(share > 0 for share in clean.values())


# --- the schedule


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential"])
def test_the_schedule_ends_at_one_over_s_max_and_s_max(schedule):
    for batches in (2, 3, 10, 469):
        scales = [
            ops.hat_scale(ops.epoch_progress(b, batches), 400.0, schedule) for b in range(batches)
        ]
        assert scales[0] == pytest.approx(1 / 400, rel=1e-12)
        assert scales[-1] == 400
        assert min(scales) > 0
        assert max(scales) == 400
        assert scales == sorted(scales)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "exponential", "constant"])
def test_one_batch_an_epoch_gives_s_max(schedule):
    assert ops.hat_scale(ops.epoch_progress(0, 1), 400.0, schedule) == 400


class Scales(HAT):
    """HAT that notes each step's scale."""

    seen: list[float] = []  # noqa: RUF012 (one test at a time)

    def before_step(self, net, state, progress):
        super().before_step(net, state, progress)
        self.seen.append(float(state.scale))


@pytest.mark.parametrize(("batch_size", "batches"), [(2, 12), (5, 5), (8, 3), (24, 1), (23, 1)])
def test_the_trainer_sets_every_batchs_scale(batch_size, batches, monkeypatch):
    """0-based; from the start in each epoch (task, where an epoch is short) to s_max exactly."""
    monkeypatch.setattr(Scales, "seen", [])
    method = Scales(s_max=100.0)
    Trainer(
        tiny.network(tasks=2),
        method,
        Vision(),
        tiny.scenario(2),
        tiny.OPTIMIZERS["sgd"],
        epochs=2,
        batch_size=batch_size,
        device="cpu",
    ).fit()
    assert len(method.seen) == 2 * 2 * batches
    sweeps, steps = (4, batches) if batches >= 4 else (2, 2 * batches)
    wanted = [0.01 * (1 - b / (steps - 1)) + 100 * b / (steps - 1) for b in range(steps)]
    assert method.seen == pytest.approx(wanted * sweeps, rel=1e-6)


def test_the_scale_is_one_tensor_filled_in_place():
    net = tiny.network()
    state = METHOD.begin_task(net, 0)
    scale = state.scale
    assert scale.dim() == 0
    for progress in (0.0, 0.5, 1.0):
        METHOD.before_step(net, state, progress)
        assert state.scale is scale
    assert float(scale) == METHOD.s_max


# --- task ids and their neighbours


def test_task_zero_is_a_task():
    """Index 0 is a value, not the absence of one, and so is a scale close to 0."""
    net = trained(tasks=2)
    x, _ = tiny.samples(0)
    assert not torch.equal(tiny.logits(net, 0, x), tiny.logits(net, 1, x))
    with pytest.raises(RuntimeError, match=r"with net\.task"):
        net(x)
    with net.task(0, 1e-30):
        net(x)
        half = net.sparsity()
    assert float(half.detach()) == pytest.approx(0.5)


def test_adam_does_not_move_the_embeddings_of_other_tasks():
    net = tiny.network(tasks=3)
    others = [net.embeddings[t].detach().clone() for t in (0, 2)]
    tiny.train_task(net, METHOD, 1, tiny.OPTIMIZERS["adamw"], steps=20)
    for task, before in zip((0, 2), others):
        assert torch.equal(net.embeddings[task], before)
        assert net.embeddings[task].grad is None


def test_norms_and_heads_of_other_tasks_do_not_move():
    net = tiny.network("conv", tasks=3)
    shared = {id(p) for p in net.protection().parameters}
    own = {id(p) for p in net.task_parameters(1)}
    rest = [p for p in net.parameters() if id(p) not in shared | own]
    before = [p.detach().clone() for p in rest]
    assert len(rest) > 4
    tiny.train_task(net, METHOD, 1, tiny.OPTIMIZERS["adamw"])
    assert all(torch.equal(p, b) for p, b in zip(rest, before))


def test_two_forwards_before_one_backward():
    """Gradients of both, each with its own inputs; hooks of the one do not replace the other's."""
    x, y = tiny.samples(0)
    grads = []
    for parts in ((x,), (x[:12], x[12:])):
        net = tiny.network()
        state = METHOD.begin_task(net, 0)
        METHOD.before_step(net, state, 0.3)
        with net.task(0, state.scale):
            out = torch.cat([net(part) for part in parts])
            F.cross_entropy(out, y).backward()
        METHOD.after_backward(net, state)
        grads.append([p.grad.clone() for p in net.task_parameters(0)])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_two_networks_do_not_share_their_task():
    one, two = tiny.network(), tiny.network()
    x, _ = tiny.samples(0)
    with one.task(0), pytest.raises(RuntimeError, match=r"with net\.task"):
        two(x)
    twin = copy.deepcopy(one)
    with twin.task(1):
        twin(x)
        with pytest.raises(RuntimeError, match=r"with net\.task"):
            one(x)


def test_every_run_begins_with_the_same_embeddings():
    """From (seed, task) alone: not from what ran before, nor from another task's."""

    def start(seed: int, task: int) -> torch.Tensor:
        net = tiny.network()
        torch.rand(seed + 1)
        METHOD.begin_task(net, task, seed=seed)
        return net.embeddings[task].detach().clone()

    assert torch.equal(start(3, 1), start(3, 1))
    assert not torch.equal(start(3, 1), start(4, 1))
    assert not torch.equal(start(3, 1), start(3, 2))
    assert not torch.equal(start(3, 1), start(2, 2))


# --- where it runs


def test_everything_runs_on_the_cpu_and_saves_without_pickle_of_modules():
    net = trained()
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True).keys() == net.state_dict().keys()


def test_a_single_output_unit_keeps_its_dimension():
    net = tiny.network(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 1), nn.ReLU(), nn.Linear(1, 2))
    )
    tiny.train_task(net, METHOD, 0, tiny.OPTIMIZERS["adam"], steps=3)
    assert net.hard_mask(0).shape == (1,)


def test_parameters_without_a_gradient_are_skipped():
    """A frozen layer, as in fine-tuning, has no .grad; the clamp passes it by."""
    net = trained(tasks=1)
    state = METHOD.begin_task(net, 1)
    for p in state.protection.parameters[1:]:
        p.grad = None
    state.protection.parameters[0].grad = torch.ones_like(state.protection.parameters[0])
    METHOD.after_backward(net, state)
    share = float((state.protection.parameters[0].grad == 0).double().mean())
    assert share == pytest.approx(state.protection.fraction()[state.protection.names[0]])
