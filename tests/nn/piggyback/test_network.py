"""PiggybackNetwork: its tasks, its states, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl import ops
from maskcl.nn import (
    HATLinear,
    HATNetwork,
    PiggybackConv1d,
    PiggybackConv2d,
    PiggybackConv3d,
    PiggybackEmbedding,
    PiggybackLinear,
    PiggybackNetwork,
    TaskHeads,
    TaskLayerNorm,
    to_hat,
    to_piggyback,
)
from tests.nn.piggyback.zoo import FROZEN, SELECT, begin, frozen, logits, train
from tests.nn.zoo import MODELS, images

LEVELS = list(SELECT)


def mask_of(net: PiggybackNetwork, layer: nn.Module) -> Tensor:
    """The mask that the layer's scores give, dense and in plain torch."""
    s = layer.scores.detach()
    match net.levels:
        case "binary":
            return (s > 5e-3).float()
        case "ternary":
            return (s > 5e-3).float() - (s < 0).float()
        case "ternary_symmetric":
            return (s.abs() > 5e-3).float() * s.sign()
        case _:
            k = round(0.4 * s.numel())
            return (s.abs() >= s.abs().flatten().sort(descending=True).values[k - 1]).float()


# --- layers


CONVS = {
    "conv1d": (PiggybackConv1d, F.conv1d, (2, 4, 9), {"stride": 2, "groups": 2}),
    "conv2d": (PiggybackConv2d, F.conv2d, (2, 4, 6, 5), {"padding": 1, "dilation": 2}),
    "conv3d": (PiggybackConv3d, F.conv3d, (2, 4, 5, 4, 5), {"padding": "same", "groups": 4}),
}


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", list(CONVS))
def test_convolutions_use_the_masked_weight(name: str, levels: str) -> None:
    kind, function, shape, options = CONVS[name]
    layer = kind(4, 8, 3, num_tasks=1, levels=levels, **options)
    net, x = PiggybackNetwork(layer, 1, levels=levels), torch.randn(shape, requires_grad=True)
    begin(net, 0)
    weight = (layer.weight * mask_of(net, layer)).requires_grad_()
    wanted = function(x, weight, layer.bias, **options)
    grad = torch.randn_like(wanted)
    dx, dw = torch.autograd.grad(wanted, (x, weight), grad)
    with net.task(0):
        out = net(x)
        torch.testing.assert_close(out, wanted)
        found = torch.autograd.grad(out, (x, layer.scores), grad)
    torch.testing.assert_close(found, (dx, dw * layer.weight))
    net.finish_task(0)
    with net.task(0):
        out = net(x)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(torch.autograd.grad(out, x, grad)[0], dx)


def test_other_paddings_and_memory_orders() -> None:
    layer = PiggybackConv2d(4, 8, 3, padding=1, padding_mode="circular", num_tasks=1)
    net, x = PiggybackNetwork(layer, 1), torch.randn(2, 4, 6, 6)
    begin(net, 0)
    wanted = F.conv2d(
        F.pad(x, (1, 1, 1, 1), "circular"), layer.weight * mask_of(net, layer), layer.bias
    )
    for _ in range(2):
        with net.task(0):
            torch.testing.assert_close(net(x), wanted)
        net.to(memory_format=torch.channels_last)
        with net.task(0):
            torch.testing.assert_close(net(x), wanted)
        if net.training_task == 0:
            net.finish_task(0)


@pytest.mark.parametrize("levels", LEVELS)
def test_linear_and_embedding_use_the_masked_weight(levels: str) -> None:
    linear = PiggybackLinear(7, 5, num_tasks=1, levels=levels)
    table = PiggybackEmbedding(11, 7, padding_idx=-1, num_tasks=1, levels=levels)
    net = PiggybackNetwork(nn.Sequential(table, linear), 1, levels=levels)
    with torch.no_grad():
        table.weight[10] = 1.0  # a padding row that is not 0 takes no gradient either
    begin(net, 0)
    x = torch.tensor([[0, 3, 10], [3, 10, 9]])
    rows = (table.weight * mask_of(net, table)).requires_grad_()
    weight = (linear.weight * mask_of(net, linear)).requires_grad_()
    wanted = F.linear(F.embedding(x, rows, padding_idx=10), weight, linear.bias)
    grad = torch.randn_like(wanted)
    drows, dweight = torch.autograd.grad(wanted, (rows, weight), grad)
    with net.task(0):
        out = net(x)
        out.backward(grad)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(table.scores.grad, drows * table.weight)
    torch.testing.assert_close(linear.scores.grad, dweight * linear.weight)
    assert not table.scores.grad[10].any() and bool(table.scores.grad[3].any())
    net.finish_task(0)
    with net.task(0):
        torch.testing.assert_close(net(x), wanted)


def test_a_model_built_by_hand_does_what_a_converted_one_does() -> None:
    converted = to_piggyback(
        nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)),
        2,
        classes=[2, 3],
        norms="task",
    )
    by_hand = PiggybackNetwork(
        nn.Sequential(
            PiggybackLinear(4, 6, num_tasks=2), TaskLayerNorm(6, 2), TaskHeads(6, [2, 3])
        ),
        2,
    )
    by_hand.load_state_dict(converted.state_dict())
    assert by_hand.base_hash() == converted.base_hash()
    x = torch.randn(5, 4)
    for net in (by_hand, converted):
        begin(net, 1)
    with by_hand.task(1), converted.task(1):
        assert torch.equal(by_hand(x), converted(x))


# --- tasks


def test_begin_task_lets_only_its_own_parameters_train() -> None:
    net = frozen("conv", norms="task")
    assert not any(p.requires_grad for p in net.parameters())
    for task in range(2):
        begin(net, task)
        assert net.training_task == task and all(p.grad is None for p in net.parameters())
        trainable = {n for n, p in net.named_parameters() if p.requires_grad}
        own = {f"model.{n}.norms.{task}.{k}" for n in ("1", "10") for k in ("weight", "bias")}
        own |= {f"model.12.heads.{task}.{k}" for k in ("weight", "bias")}
        assert trainable == own | {f"model.{name}.scores" for name in net.layers}
        with net.task(task):
            net(images(4)).sum().backward()
        net.finish_task(task)
        assert net.training_task is None and net.scores() == []
        assert not any(p.requires_grad for p in net.parameters())
        assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("spread", ["constant", "uniform"])
def test_scores_start_as_asked_and_the_same_from_the_same_generator(spread: str) -> None:
    starts = []
    for seed in (1, 1, 2):
        net = frozen("mlp")
        generator = torch.Generator().manual_seed(seed)
        net.begin_task(0, init=0.02, spread=spread, generator=generator)
        starts.append(torch.cat([s.detach().flatten() for s in net.scores()]))
    if spread == "constant":
        assert torch.equal(starts[0], torch.full_like(starts[0], 0.02))
        return
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert -0.02 <= float(starts[0].min()) < -0.015 < 0.015 < float(starts[0].max()) <= 0.02


def test_begin_task_again_starts_the_scores_anew() -> None:
    net = frozen("mlp")
    train(net, 0, finish=False)
    begin(net, 0)
    fresh = frozen("mlp")
    begin(fresh, 0)
    for ours, theirs in zip(net.scores(), fresh.scores()):
        assert torch.equal(ours, theirs)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("levels", LEVELS)
def test_words_off_and_differing_say_what_the_masks_are(levels: str) -> None:
    net = frozen("conv", levels)
    masks = []
    for task in range(2):
        begin(net, task)
        masks.append({name: mask_of(net, layer) for name, layer in net.layers.items()})
        training = net.off(task)
        net.finish_task(task)
        assert net.off(task) == training
        for name, mask in masks[task].items():
            assert training[name] == pytest.approx(float((mask == 0).double().mean()))
            planes = levels.startswith("ternary")
            assert torch.equal(net.words(task)[name], ops.pack_mask(mask, ternary=planes))
    other = sum(int((masks[0][name] != masks[1][name]).sum()) for name in masks[0])
    total = sum(mask.numel() for mask in masks[0].values())
    assert 0.2 < net.differing(0, 1) == net.differing(1, 0) == pytest.approx(other / total)
    assert net.differing(0, 0) == 0.0


def test_words_of_one_network_serve_in_another() -> None:
    net, other, x = frozen("conv", norms="task"), frozen("conv", norms="task"), images(5)
    train(net, 0)
    assert net.base_hash() == other.base_hash()
    begin(other, 1)
    other.set_words(2, net.words(0))
    other.forget_task(1)
    assert other.finished.tolist() == [False, False, True]
    for ours, theirs in zip(other.own_state(0).values(), net.own_state(0).values(), strict=True):
        ours.copy_(theirs)
    other.set_words(0, net.words(0))
    assert torch.equal(logits(other, 0, x), logits(net, 0, x))
    names = [name.replace(".2.", ".0.") for name in net.own_state(2)]
    assert names == list(net.own_state(0)) and len(names) == 12
    assert set(names) < set(net.state_dict())


def test_forgetting_drops_the_bits_or_the_scores() -> None:
    net = frozen("mlp")
    train(net, 0)
    begin(net, 1)
    net.forget_task(1)
    assert net.training_task is None and net.scores() == []
    net.forget_task(0)
    assert not net.finished.any()
    assert not any(layer.words.any() for layer in net.layers.values())
    train(net, 0)
    assert net.finished.tolist() == [True, False, False]


def test_base_hash_tells_bases_apart_and_nothing_else() -> None:
    net = frozen("conv")
    base = net.base_hash()
    assert len(base) == 64 and base == frozen("conv").base_hash()
    train(net, 0)
    begin(net, 1)
    assert base == net.base_hash() == copy.deepcopy(net).base_hash()
    assert base == net.to(memory_format=torch.channels_last).base_hash()
    make = FROZEN["conv"][0]
    model = make()
    two, three = (to_piggyback(model, n, classes=[2] * n).base_hash() for n in (2, 3))
    assert two == three != base
    for name in ("0.weight", "4.bias", "1.running_var", "1.bias"):
        other = frozen("conv")
        with torch.no_grad():
            other.model.get_submodule(name[0]).__getattr__(name[2:]).flatten()[-1] += 1e-6
        assert other.base_hash() != base, name
    assert frozen("conv").double().base_hash() != base


# --- states


@pytest.mark.parametrize("assign", [False, True])
def test_scores_come_and_go_with_the_loaded_state(assign: bool) -> None:
    x = images(5)
    source, net = frozen("conv", "topk"), frozen("conv", "topk")
    before = copy.deepcopy(source.state_dict())
    train(source, 0)
    train(source, 1, finish=False)
    middle, wanted = copy.deepcopy(source.state_dict()), [logits(source, k, x) for k in (0, 1)]
    net.load_state_dict(middle, assign=assign)
    assert net.training_task == 1 and len(net.scores()) == len(net.layers)
    for task in (0, 1):
        assert torch.equal(logits(net, task, x), wanted[task])
    trained = [p.requires_grad for p in net.parameters()]
    assert trained == [p.requires_grad for p in source.parameters()] and any(trained)
    net.finish_task(1)
    source.finish_task(1)
    assert net.words(1).keys() == source.words(1).keys()
    for name, words in net.words(1).items():
        assert torch.equal(words, source.words(1)[name])
    assert set(net.state_dict()) == set(before)
    begin(net, 2)
    net.load_state_dict(before, assign=assign)
    assert net.training_task is None and net.scores() == [] and not net.finished.any()
    with net.task(0), pytest.raises(RuntimeError, match="task 0 is neither finished nor in"):
        net(x)


def test_loading_fills_the_scores_that_an_optimizer_holds() -> None:
    net, other = frozen("mlp"), frozen("mlp")
    train(other, 0, finish=False)
    begin(net, 0)
    held = net.scores()
    net.load_state_dict(other.state_dict())
    assert all(a is b for a, b in zip(held, net.scores(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(held, other.scores(), strict=True))


def test_loading_a_base_alone_keeps_the_masks() -> None:
    net, x = frozen("mlp"), images(5)
    train(net, 0)
    begin(net, 1)
    base = {n: t for n, t in net.state_dict().items() if n.endswith(("weight", "bias"))}
    wanted = [logits(net, task, x) for task in (0, 1)]
    net.load_state_dict(base, strict=False)
    assert net.training_task == 1
    for task in (0, 1):
        assert torch.equal(logits(net, task, x), wanted[task])


def test_a_state_whose_scores_are_of_no_task_is_refused() -> None:
    net = frozen("mlp")
    begin(net, 0)
    state = net.state_dict()
    del state["_extra_state"]
    with pytest.raises(RuntimeError, match=r"has scores for 2 layers, wanted 0 .*\(None\)"):
        frozen("mlp").load_state_dict(state, strict=False)


def test_deepcopy_is_independent_and_keeps_what_it_knows() -> None:
    net, x = frozen("conv", norms="task"), images(5)
    train(net, 0)
    begin(net, 1)
    wanted = [logits(net, task, x) for task in (0, 1)]
    with net.task(0):
        twin = copy.deepcopy(net)
    with pytest.raises(RuntimeError, match="PiggybackNetwork: no task is active"):
        twin(x)
    assert twin.training_task == 1
    for task in (0, 1):
        assert torch.equal(logits(twin, task, x), wanted[task])
    train(twin, 1)
    twin.forget_task(0)
    for task in (0, 1):
        assert torch.equal(logits(net, task, x), wanted[task])
    assert net.training_task == 1 and net.finished.tolist() == [True, False, False]
    twin.train()
    before = net.model[1].norms[0].running_mean.clone()
    begin(twin, 0)
    with twin.task(0):
        twin(3 * x)
    assert torch.equal(net.model[1].norms[0].running_mean, before)


# --- refusals


def test_forward_without_a_mask_says_how() -> None:
    net, x = frozen("mlp"), images(2)
    with pytest.raises(RuntimeError, match=r"no task is active here: call the network in"):
        net(x)
    with net.task(1), pytest.raises(RuntimeError, match=r"task 1 is neither .* net\.begin_task\(1"):
        net(x)
    begin(net, 0)
    with net.task(1), pytest.raises(RuntimeError, match="task 1 is neither finished nor in train"):
        net(x)
    with pytest.raises(ValueError, match=r"PiggybackNetwork\.task: task is 3, wanted an int from"):
        net.task(3).__enter__()
    with pytest.raises(ValueError, match=r"task: scale is 2\.0, wanted None"):
        net.task(0, 2.0).__enter__()
    with pytest.raises(RuntimeError, match=r"PiggybackLinear belongs to no network: .*Piggyback"):
        PiggybackLinear(2, 2, num_tasks=1)(torch.randn(1, 2))


def test_tasks_out_of_order_say_what_to_do() -> None:
    net = frozen("mlp")
    with pytest.raises(RuntimeError, match=r"finish_task: task 0 is not in training; net\.begin"):
        net.finish_task(0)
    for call in (net.off, net.words):
        with pytest.raises(RuntimeError, match="task 0 is n"):
            call(0)
    begin(net, 0)
    with pytest.raises(RuntimeError, match=r"task 0 is in training; net\.finish_task\(0\) or net"):
        net.begin_task(1)
    with pytest.raises(RuntimeError, match=r"finish_task: task 1 is not in training"):
        net.finish_task(1)
    with pytest.raises(RuntimeError, match=r"set_words: task 0 is in training"):
        net.set_words(0, {})
    with pytest.raises(RuntimeError, match=r"words: task 0 is not finished"):
        net.words(0)
    net.finish_task(0)
    for call in (net.begin_task, net.finish_task, lambda k: net.set_words(k, {})):
        with pytest.raises(RuntimeError, match="task 0 is finished; task 1 is the first that is"):
            call(0)
    with pytest.raises(ValueError, match="forget_task: task is -1, wanted an int from 0 to 2"):
        net.forget_task(-1)


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ("binary", {"threshold": float("nan")}, "threshold is nan, wanted a finite number"),
        ("binary", {"density": 0.5}, "density is 0.5, wanted None for levels 'binary'"),
        ("binary", {"init": float("inf")}, "init is inf, wanted a finite number for 'constant'"),
        ("binary", {"spread": "normal"}, "spread is 'normal', wanted one of constant, uniform"),
        ("binary", {"spread": "uniform", "init": 0.0}, "init is 0.0, wanted .* above 0"),
        ("ternary", {"threshold": -1.0}, "threshold is -1.0, wanted at least 0"),
        ("ternary", {"inclusive": True}, "inclusive belongs to levels 'binary'"),
        ("topk", {}, r"density is None, wanted a number in \(0, 1\]"),
        ("topk", {"density": 1.5}, r"density is 1.5, wanted a number in \(0, 1\]"),
    ],
)
def test_begin_task_refuses_before_it_changes_anything(levels, options, message) -> None:
    net = frozen("mlp", levels)
    with pytest.raises(ValueError, match=r"PiggybackNetwork\.begin_task: " + message):
        net.begin_task(0, **options)
    assert net.training_task is None and net.scores() == []


def test_networks_refuse_what_they_cannot_hold() -> None:
    def linear(tasks: int = 2, levels: str = "binary") -> PiggybackLinear:
        return PiggybackLinear(4, 4, num_tasks=tasks, levels=levels)

    cases = [
        (lambda: PiggybackNetwork(linear(), 0), "num_tasks is 0, wanted at least 1"),
        (lambda: PiggybackNetwork(linear(), 2, levels="soft"), "levels is 'soft', wanted one of"),
        (lambda: PiggybackNetwork(linear(3), 2), "module '' is for 3 tasks, wanted 2"),
        (lambda: PiggybackNetwork(nn.Linear(2, 2), 2), "no piggyback layer"),
        (
            lambda: PiggybackNetwork(nn.Sequential(linear(2, "topk")), 2),
            "module '0' has levels 'topk', wanted 'binary'",
        ),
        (
            lambda: PiggybackNetwork(nn.Sequential(linear(), TaskHeads(4, [2] * 3)), 2),
            "module '1' is for 3 tasks, wanted 2",
        ),
        (
            lambda: PiggybackNetwork(nn.Sequential(linear(), HATLinear(4, 4)), 2),
            "module '1' is a HATLinear, which wants a HATNetwork",
        ),
        (
            lambda: HATNetwork(nn.Sequential(linear(), HATLinear(4, 4)), 2, torch.randn(1, 4)),
            "HATNetwork: module '0' is a PiggybackLinear, which wants a PiggybackNetwork",
        ),
        (
            lambda: PiggybackNetwork(to_hat(MODELS["mlp"](), 2, images(1)), 2),
            "belongs to another network",
        ),
        (lambda: linear(levels="soft"), "PiggybackLinear: levels is 'soft', wanted one of binary"),
        (lambda: PiggybackConv2d(1, 1, 1, num_tasks=0), "PiggybackConv2d: num_tasks is 0"),
    ]
    for make, message in cases:
        with pytest.raises(ValueError, match=message):
            make()
    model = nn.Sequential(linear(), nn.Linear(4, 2))
    PiggybackNetwork(model, 2)
    with pytest.raises(ValueError, match="module '0' belongs to another network"):
        PiggybackNetwork(model, 2)
