"""HATNetwork: tasks, masks, bits and what is shared."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from maskcl import ops
from maskcl.nn import (
    HATConv2d,
    HATLinear,
    HATNetwork,
    TaskBatchNorm2d,
    TaskGroupNorm,
    TaskHeads,
    TaskLayerNorm,
    to_hat,
)
from tests.nn.zoo import MODELS, images


def small(tasks: int = 3, **options: object) -> HATNetwork:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    return to_hat(model, tasks, torch.randn(2, 4), **options)


def test_embeddings_bits_and_layers_share_one_order() -> None:
    net = small()
    assert net.units == {"0": slice(0, 6), "2": slice(6, 11)}
    assert [tuple(e.shape) for e in net.embeddings] == [(11,)] * 3
    assert net.tasks.shape == (11, 1)
    assert all(e.dtype == torch.float32 for e in net.embeddings)


def test_forward_multiplies_each_hidden_layer_by_its_slice_of_the_gate() -> None:
    net, x = small(), torch.randn(7, 4)
    mask = ops.hat_gate(net.embeddings[1], 3.0)
    h = torch.relu(x @ net.model[0].weight.t() + net.model[0].bias) * mask[:6]
    h = torch.relu(h @ net.model[2].weight.t() + net.model[2].bias) * mask[6:]
    wanted = h @ net.model[4].weight.t() + net.model[4].bias
    with net.task(1, 3.0):
        torch.testing.assert_close(net(x), wanted)
        torch.testing.assert_close(net.sparsity(), mask.mean())


def test_hard_masks_are_exactly_zero_or_one() -> None:
    net = small()
    seen = []
    net.model[0].register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        net.model[0].bias.fill_(10.0)
    with net.task(0):
        net(torch.randn(3, 4))
    open_units = net.embeddings[0][:6] > 0
    assert torch.equal((seen[0] != 0).all(0), open_units)
    assert torch.equal((seen[0] == 0).all(0), ~open_units)


def test_gradients_reach_the_active_embedding_alone() -> None:
    net = small()
    net.configure_gate(max_scale=400.0)
    with net.task(1, 1 / 400):
        (net(torch.randn(64, 4)).square().sum() + net.sparsity()).backward()
    grad = net.embeddings[1].grad
    assert grad is not None
    assert bool((grad != 0).all())
    assert net.embeddings[0].grad is None
    assert net.embeddings[2].grad is None


def test_configured_gate_compensates_the_gradient() -> None:
    net, x = small(), torch.randn(16, 4)
    grads = []
    for max_scale in (None, 400.0):
        net.configure_gate(max_scale=max_scale)
        net.zero_grad()
        with net.task(0, 2.0):
            net(x).square().sum().backward()
        grads.append(net.embeddings[0].grad.clone())
    assert not torch.allclose(*grads)
    embedding = net.embeddings[0].detach().clone().requires_grad_()
    ratio = []
    for max_scale in (None, 400.0):
        (ratio_grad,) = torch.autograd.grad(
            ops.hat_gate(embedding, 2.0, max_scale=max_scale).sum(), embedding
        )
        ratio.append(ratio_grad)
    torch.testing.assert_close(grads[1] * ratio[0], grads[0] * ratio[1])


def test_every_learned_tensor_is_a_parameter_and_every_mask_is_in_the_state() -> None:
    net = to_hat(MODELS["conv"](), 2, images(2), classes=[2, 2])
    listed = {id(p) for p in net.parameters()}
    assert len(listed) == len(list(net.parameters()))
    with net.task(0, 1.0):
        (net(images(8)).square().sum() + net.sparsity()).backward()
    trained = net.task_parameters(0)
    assert all(p.grad is not None and id(p) in listed for p in trained)
    others = listed - {id(p) for p in trained}
    assert others == {id(p) for p in net.task_parameters(1)} - {id(p) for p in trained}
    assert {"tasks", "finished", "embeddings.0", "embeddings.1"} <= set(net.state_dict())


def test_begin_task_lets_only_its_own_parameters_train() -> None:
    net = to_hat(MODELS["conv"](), 3, images(2), classes=[2, 2, 2])
    for task in (0, 1):
        net.begin_task(task)
        trainable = {id(p) for p in net.parameters() if p.requires_grad}
        assert trainable == {id(p) for p in net.task_parameters(task)}
        with net.task(task, 5.0):
            net(images(4)).sum().backward()
        net.finish_task(task)
        assert not net.embeddings[task].requires_grad
    net.begin_task(2)
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(RuntimeError, match="task 1 is finished"):
        net.begin_task(1)
    with pytest.raises(RuntimeError, match="finish_task: task 1 is finished"):
        net.finish_task(1)
    with pytest.raises(RuntimeError, match="reset_embedding: task 1 is finished"):
        net.reset_embedding(1)


def test_forward_without_a_task_says_how() -> None:
    with pytest.raises(RuntimeError, match=r"with net\.task\(k\):"):
        small()(torch.randn(1, 4))


def test_layer_outside_of_a_network_says_how() -> None:
    for layer in (HATLinear(2, 2), TaskLayerNorm(2, 1), TaskHeads(2, [2])):
        with pytest.raises(RuntimeError, match="belongs to no network"):
            layer(torch.randn(1, 2))


def test_calling_a_part_of_the_network_says_to_call_the_network() -> None:
    net = small()
    with net.task(0), pytest.raises(RuntimeError, match="call the network, not a part"):
        net.model(torch.randn(1, 4))


def test_task_nests_and_returns_to_what_was_active_even_on_errors() -> None:
    net, x = small(), torch.randn(2, 4)
    with net.task(0, 2.0):
        outer = net(x)
        sparsity = net.sparsity()
        with pytest.raises(ValueError, match="weight has shape"), net.task(1):
            net(torch.ones(2, 2))
        assert torch.equal(net.sparsity(), sparsity)
        assert torch.equal(net(x), outer)
    with pytest.raises(RuntimeError, match="no forward yet"):
        net.sparsity()


@pytest.mark.parametrize(
    ("index", "scale", "message"),
    [
        (3, None, "task is 3, wanted an int from 0 to 2"),
        (-1, None, "task is -1"),
        (0, 0.0, "scale is 0.0, wanted a finite number above 0"),
        (0, float("nan"), "scale is nan"),
        (0, torch.ones(2), r"scale has shape \[2\], wanted a 0-d tensor"),
    ],
)
def test_wrong_task_or_scale_is_refused(index: int, scale: object, message: str) -> None:
    net = small()
    with pytest.raises(ValueError, match=message), net.task(index, scale):
        pass


def test_scale_tensor_may_be_annealed_in_place() -> None:
    net, x, scale = small(), torch.randn(2, 4), torch.tensor(1.0)
    with net.task(0, scale):
        first = net(x)
        scale.fill_(50.0)
        second = net(x)
    with net.task(0, 50.0):
        assert torch.equal(net(x), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("task", [0, 62, 63, 64, 69])
def test_bits_of_more_than_64_tasks(task: int) -> None:
    net = small(70)
    assert net.tasks.shape == (11, 2)
    before = net.hard_mask(task)
    assert torch.equal(before, net.embeddings[task] > 0)
    net.finish_task(task)
    with torch.no_grad():
        net.embeddings[task].neg_()
    assert torch.equal(net.hard_mask(task), before)
    assert torch.equal(net.used(), before)
    assert net.finished.nonzero().tolist() == [[task]]
    fraction = net.protection().fraction()["model.0.weight"]
    assert fraction == pytest.approx(float(before[:6].double().mean()))
    net.forget_task(task)
    assert not net.used().any()
    assert net.protection().empty


def test_recorded_bits_never_alias_and_only_grow() -> None:
    net, x = small(), torch.randn(2, 4)
    net.finish_task(0)
    recorded, used = net.tasks.clone(), net.used().clone()
    with net.task(1, 2.0):
        net(x)
    assert torch.equal(net.tasks, recorded)
    kept = net.protection()
    saved = [t.clone() for t in kept.out_tasks]
    net.finish_task(1)
    assert bool((net.used() | ~used).all())
    assert all(torch.equal(a, b) for a, b in zip(kept.out_tasks, saved, strict=True))
    assert net.protection() is not kept
    assert net.protection() is net.protection()


def test_forgetting_one_task_frees_only_what_no_other_uses() -> None:
    net = small()
    for k, units in enumerate([range(5), range(3, 8)]):
        with torch.no_grad():
            net.embeddings[k].copy_(torch.tensor([1.0 if u in units else -1.0 for u in range(11)]))
        net.finish_task(k)
    net.forget_task(0)
    assert net.used().nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    assert net.capacity() == {"0": 0.5, "2": 0.4}


def test_sparsity_counts_free_units_and_is_zero_when_none_is_left() -> None:
    net, x = small(), torch.randn(2, 4)
    with torch.no_grad():
        net.embeddings[0].fill_(1.0)
    net.finish_task(0)
    assert set(net.capacity().values()) == {1.0}
    with net.task(1, 2.0):
        loss = net(x).sum() + net.sparsity()
        assert net.sparsity().item() == 0
    loss.backward()
    assert bool(torch.isfinite(net.embeddings[1].grad).all())
    fractions = net.protection().fraction()
    assert set(fractions.values()) == {1.0}


def test_nothing_is_protected_before_a_task_is_finished() -> None:
    net = small()
    with net.task(0, 1.0):
        net(torch.randn(4, 4)).sum().backward()
    before = [p.grad.clone() for p in net.protection().parameters]
    net.protection().clamp_()
    assert all(
        torch.equal(a, p.grad) for a, p in zip(before, net.protection().parameters, strict=True)
    )
    assert set(net.protection().fraction().values()) == {0.0}


def test_shared_output_layer_is_protected_where_a_finished_task_reads() -> None:
    net = small()
    with torch.no_grad():
        net.embeddings[0].copy_(torch.tensor([1.0] * 6 + [1, 1, -1, -1, -1]))
    net.finish_task(0)
    fraction = net.protection().fraction()
    assert fraction["model.4.weight"] == 0.4
    assert fraction["model.4.bias"] == 1.0


def test_clamp_skips_parameters_without_gradients_and_checks_values() -> None:
    net = small()
    with torch.no_grad():
        net.embeddings[0].fill_(1.0)
    net.finish_task(0)
    protection = net.protection()
    protection.clamp_()
    net.model[2].weight.grad = torch.ones_like(net.model[2].weight)
    protection.clamp_("const", values=0.25)
    assert torch.equal(net.model[2].weight.grad, torch.full((5, 6), 0.25))
    numbers = [0.5 if name == "model.2.weight" else 9.0 for name in protection.names]
    protection.clamp_("const", values=numbers)
    assert torch.equal(net.model[2].weight.grad, torch.full((5, 6), 0.125))
    protection.clamp_()
    assert not net.model[2].weight.grad.any()
    with pytest.raises(ValueError, match="values has 1 entries, wanted 6"):
        protection.clamp_("const", values=[0.5])
    with pytest.raises(ValueError, match="saved has shapes"):
        protection.restore_([])


@pytest.mark.parametrize(
    ("init", "low", "high"), [("normal", -4, 4), ("uniform", 0, 2), ("dense", 1, 1)]
)
def test_inits(init: str, low: float, high: float) -> None:
    model = nn.Sequential(nn.Linear(4, 3000), nn.Linear(3000, 2))
    net = to_hat(model, 1, torch.randn(2, 4), init=init)
    embedding = net.embeddings[0].detach()
    assert (
        low <= float(embedding.min()) <= float(embedding.max()) <= high + 0.5 * (init == "normal")
    )
    wanted = {"normal": 0.0, "uniform": 1.0, "dense": 1.0}[init]
    assert float(embedding.mean()) == pytest.approx(wanted, abs=0.06)


def test_reset_embedding_follows_its_generator() -> None:
    net = small()
    for k in (0, 1):
        net.reset_embedding(k, "normal", generator=torch.Generator().manual_seed(5))
    assert torch.equal(net.embeddings[0], net.embeddings[1])
    with pytest.raises(ValueError, match="init is 'zeros', wanted one of normal, uniform, dense"):
        net.reset_embedding(0, "zeros")


def test_modules_written_by_hand_work_as_converted_ones_do() -> None:
    torch.manual_seed(1)
    plain = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1),
        nn.GroupNorm(2, 6), nn.Sigmoid(), nn.Flatten(), nn.Linear(24, 5), nn.Tanh(),
        nn.Linear(5, 3),
    )  # fmt: skip
    converted = to_hat(plain, 2, images(2), classes=[3, 3])
    by_hand = HATNetwork(
        nn.Sequential(
            HATConv2d(1, 4, 3, bias=False),
            TaskBatchNorm2d(4, 2, activation="relu"),
            HATConv2d(4, 6, 1),
            TaskGroupNorm(2, 6, 2, activation="sigmoid"),
            nn.Flatten(),
            HATLinear(24, 5, activation="tanh"),
            TaskHeads(5, [3, 3]),
        ),
        2,
        images(2),
    )
    ours, theirs = by_hand.state_dict(), converted.state_dict()
    by_hand.load_state_dict(dict(zip(ours, theirs.values(), strict=True)))
    for mode in (True, False):
        for net in (by_hand.train(mode), converted.train(mode)):
            net.zero_grad()
        for k, scale in ((0, 2.0), (1, None)):
            outs = []
            for net in (by_hand, converted):
                with net.task(k, scale):
                    outs.append(net(images(6)))
            assert torch.equal(*outs)
            for out in outs:
                out.square().sum().backward()
        grads = [[p.grad for p in net.parameters()] for net in (by_hand, converted)]
        for a, b in zip(*grads, strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


def test_deepcopy_is_independent_and_keeps_its_own_state() -> None:
    net, x = small(), torch.randn(3, 4)
    with net.task(0, 2.0):
        wanted = net(x)
        twin = copy.deepcopy(net)
    with pytest.raises(RuntimeError, match="no task is active"):
        twin(x)
    with twin.task(0, 2.0):
        assert torch.equal(twin(x), wanted)
        with torch.no_grad():
            twin.embeddings[0].neg_()
            twin.model[0].weight.zero_()
        assert not torch.equal(twin(x), wanted)
    with net.task(0, 2.0):
        assert torch.equal(net(x), wanted)
    twin.finish_task(0)
    assert not net.finished.any()
    assert twin.protection().parameters[0] is twin.model[0].weight


def test_wrong_numbers_of_tasks_are_refused() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="num_tasks is 0"):
        small(0)
    with pytest.raises(ValueError, match="module '1' is for 2 tasks, wanted 3"):
        HATNetwork(nn.Sequential(HATLinear(4, 4), TaskLayerNorm(4, 2), TaskHeads(4, [2] * 3)), 3, x)
    model = nn.Sequential(HATLinear(4, 4), TaskHeads(4, [2, 2]))
    HATNetwork(model, 2, x)
    with pytest.raises(ValueError, match="belongs to another network"):
        HATNetwork(model, 2, x)
    with pytest.raises(ValueError, match="classes has 2 entries, wanted 3"):
        small(classes=[2, 2])
    with pytest.raises(ValueError, match="activation is 'elu', wanted one of identity"):
        HATLinear(2, 2, activation="elu")


def test_protection_follows_loaded_and_moved_bits() -> None:
    net, other = small(), small()
    other.finish_task(0)
    assert net.protection().empty
    net.load_state_dict(other.state_dict())
    assert not net.protection().empty
    before = net.protection()
    net.load_state_dict({k: v.clone() for k, v in other.state_dict().items()}, assign=True)
    assert net.protection() is not before
    assert net.protection().parameters[0] is net.model[0].weight


def test_what_inference_mode_asked_for_first_can_train_later() -> None:
    net = to_hat(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), 2, torch.randn(1, 4))
    net.finish_task(0)
    with torch.inference_mode(), net.task(1, 10.0):
        net(torch.randn(2, 4))
        net.sparsity()
    net.begin_task(1)
    with net.task(1, 10.0):
        (net(torch.randn(2, 4)).sum() + net.sparsity()).backward()
    assert net.embeddings[1].grad is not None
