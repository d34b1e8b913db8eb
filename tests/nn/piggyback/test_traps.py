"""Traps that other implementations of Piggyback fell into, each a test of what is right."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from maskcl.nn import PiggybackConv2d, PiggybackEmbedding, PiggybackLinear, PiggybackNetwork
from tests.nn.piggyback.zoo import FROZEN, OPTIMIZERS, begin, frozen, logits, train

ROOT = Path(__file__).parents[3]
LEVELS = ["binary", "ternary", "ternary_symmetric", "topk"]
LAYERS = {
    "linear": lambda **o: PiggybackLinear(5, 7, num_tasks=2, **o),
    "linear-no-bias": lambda **o: PiggybackLinear(5, 7, bias=False, num_tasks=2, **o),
    "conv": lambda **o: PiggybackConv2d(3, 4, 3, num_tasks=2, **o),
    "conv-no-bias": lambda **o: PiggybackConv2d(3, 4, 3, bias=False, num_tasks=2, **o),
    "embedding": lambda **o: PiggybackEmbedding(9, 6, padding_idx=1, num_tasks=2, **o),
}
INPUTS = {"linear": (3, 5), "conv": (2, 3, 6, 6)}


def network(name: str, levels: str = "binary", **options) -> PiggybackNetwork:
    """One layer of 35 (conv: 108, embedding: 54) weights as a network of two tasks."""
    return PiggybackNetwork(LAYERS[name](levels=levels, **options), 2, levels=levels)


def sample(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    if name == "embedding":
        return torch.tensor([[0, 1, 8], [3, 3, 2]])
    return torch.randn(INPUTS[name.split("-")[0]], dtype=dtype)


# --- scores learn


@pytest.mark.parametrize("name", ["mlp", "conv", "tokens"])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_score_is_a_parameter_and_moves_in_the_first_step(name, optimizer):
    net = frozen(name)
    begin(net, 1)
    before = [s.detach().clone() for s in net.scores()]
    listed = {id(p) for p in net.parameters()} & {id(p) for p in net.task_parameters(1)}
    assert len(before) == len(net.layers) > 1
    assert {id(s) for s in net.scores()} <= listed
    step = OPTIMIZERS[optimizer](net.task_parameters(1))
    with net.task(1):
        (net(FROZEN[name][1](64)).square().sum()).backward()
    step.step()
    for old, new in zip(before, net.scores()):
        assert (old != new).double().mean() > 0.8, new.shape


def test_scores_learn_where_their_weight_is_off_too():
    """Straight through: a weight that is off can come back."""
    net = network("linear")
    net.begin_task(0, init=0.0)
    with net.task(0):
        net(sample("linear")).sum().backward()
    assert net.off(0) == {"": 1.0}
    assert bool((net.model.scores.grad != 0).all())


# --- saved masks


def test_masks_are_in_the_state_dict_and_survive_a_new_process(tmp_path):
    """Two tasks finished and the third half trained: the same logits for all three."""
    nets = {}
    for name in ("mlp", "conv", "tokens"):
        for levels in LEVELS:
            net = nets[name, levels] = frozen(name, levels, "task")
            for task in range(3):
                train(net, task, FROZEN[name][1], finish=task < 2)
    saved, found = str(tmp_path / "nets.pt"), str(tmp_path / "logits.pt")
    torch.save({key: net.state_dict() for key, net in nets.items()}, saved)
    code = f"""
import torch
from tests.nn.piggyback.zoo import FROZEN, frozen, logits
torch.set_num_threads({torch.get_num_threads()})
found = dict()
for key, state in torch.load({saved!r}).items():
    net = frozen(*key, "task")
    print(net.load_state_dict(state))
    assert net.training_task == 2
    found[key] = [logits(net, task, FROZEN[key[0]][1](9, seed=7)) for task in range(3)]
torch.save(found, {found!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for key, outs in torch.load(found).items():
        for task, out in enumerate(outs):
            wanted = logits(nets[key], task, FROZEN[key[0]][1](9, seed=7))
            assert torch.equal(out, wanted), (key, task)


def test_an_earlier_state_brings_back_masks_and_heads_together():
    net = frozen("conv", norms="task")
    train(net, 0, finish=False)
    best, wanted = copy.deepcopy(net.state_dict()), logits(net, 0, FROZEN["conv"][1](9))
    off = net.off(0)
    train(net, 0)
    assert not torch.equal(logits(net, 0, FROZEN["conv"][1](9)), wanted)
    net.load_state_dict(best)
    assert net.training_task == 0 and not net.finished.any()
    assert torch.equal(logits(net, 0, FROZEN["conv"][1](9)), wanted)
    assert net.off(0) == off


@pytest.mark.parametrize("levels", LEVELS)
def test_a_finished_mask_takes_one_bit_a_weight(levels):
    """Two for the ternary levels; no real-valued mask stays behind."""
    net = frozen("conv", levels)
    train(net, 0)
    planes = 2 if levels.startswith("ternary") else 1
    for layer in net.layers.values():
        bits = 8 * layer.words[0].numel() * layer.words.element_size()
        assert layer.words.dtype == torch.int32
        assert bits < planes * (layer.weight.numel() + 32)
        assert layer.scores is None
    floats = sum(p.numel() for p in net.parameters())
    assert floats == sum(p.numel() for p in frozen("conv", levels).parameters())


# --- what is kept


@pytest.mark.parametrize("norms", ["frozen", "task"])
@pytest.mark.parametrize("name", ["mlp", "conv", "prenorm", "tokens"])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_finished_tasks_keep_their_logits_bit_for_bit(name, optimizer, norms):
    """20 steps each with momentum and decay over all parameters, zeroed gradients kept."""
    net, inputs = frozen(name, norms=norms), FROZEN[name][1]
    base, wanted = net.base_hash(), []
    for task in range(3):
        train(net, task, inputs, optimizer=optimizer, steps=20, everything=True, set_to_none=False)
        wanted.append(logits(net, task, inputs(9, seed=5)))
        for old, out in enumerate(wanted):
            assert torch.equal(logits(net, old, inputs(9, seed=5)), out), (task, old)
    assert net.base_hash() == base
    assert not torch.equal(wanted[0][:, :2], wanted[1][:, :2])


def test_an_optimizer_that_outlives_its_task_moves_nothing():
    net, x = frozen("conv", norms="task"), FROZEN["conv"][1](9)
    old = train(net, 0, everything=True)
    wanted, base = logits(net, 0, x), net.base_hash()
    begin(net, 1)
    for _ in range(5):
        old.zero_grad(set_to_none=False)
        with net.task(1):
            net(x).square().sum().backward()
        old.step()
    assert torch.equal(logits(net, 0, x), wanted)
    assert net.base_hash() == base


def test_gradients_asked_of_everything_still_reach_no_base_weight():
    """A training script's requires_grad_(True) does not thaw the layers' weights and biases."""
    net = frozen("conv")
    begin(net, 0)
    net.requires_grad_(True)
    with net.task(0):
        net(FROZEN["conv"][1](9)).square().sum().backward()
    for layer in net.layers.values():
        assert layer.weight.grad is None and layer.scores.grad is not None
        assert layer._parameters["bias"] is None or layer._parameters["bias"].grad is None


def test_masks_of_tasks_never_alias():
    net = frozen("mlp")
    train(net, 0)
    first = {name: words.clone() for name, words in net.words(0).items()}
    for words in net.words(0).values():
        words.fill_(-1)
    train(net, 1)
    net.forget_task(1)
    train(net, 2)
    for name, words in net.words(0).items():
        assert torch.equal(words, first[name])


def test_weights_are_never_overwritten_not_even_for_a_while():
    net = frozen("conv")
    weights = [layer.weight for layer in net.layers.values()]
    versions = [weight._version for weight in weights]
    train(net, 0)
    logits(net, 0, FROZEN["conv"][1](3))
    assert [weight._version for weight in weights] == versions


def test_the_mask_that_trained_is_the_mask_that_serves():
    """No soft mask in training: finishing changes no output."""
    for levels in LEVELS:
        net, x = frozen("conv", levels), FROZEN["conv"][1](9)
        train(net, 0, finish=False)
        wanted, off = logits(net, 0, x), net.off(0)
        net.finish_task(0)
        torch.testing.assert_close(logits(net, 0, x), wanted, rtol=1e-5, atol=1e-6)
        assert net.off(0) == off


# --- norms


@pytest.mark.parametrize("mode", ["net", "model", "module"])
def test_frozen_norms_keep_their_statistics_in_training_mode(mode):
    net, x = frozen("conv"), FROZEN["conv"][1](16)
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
    before = [copy.deepcopy(m.state_dict()) for m in norms]
    assert len(norms) == 2 and all(float(b["running_mean"].abs().sum()) > 0 for b in before)
    begin(net, 0)
    match mode:
        case "net":
            net.train()
        case "model":
            net.model.train()
        case "module":
            for norm in norms:
                norm.train()
    with net.task(0):
        out = net(3 * x + 1)
    for norm, state in zip(norms, before):
        assert not norm.training
        for key, value in norm.state_dict().items():
            assert torch.equal(value, state[key]), key
    # Each sample's output is its own: no batch statistics were used either. (Dropout2d is off.)
    net.eval()
    with net.task(0), torch.no_grad():
        torch.testing.assert_close(net(3 * x + 1)[:4], net(3 * x[:4] + 1))
    assert out.shape == (16, 2)


def test_task_norms_learn_and_stop_when_their_task_is_finished():
    net, x = frozen("conv", norms="task"), FROZEN["conv"][1](16)
    norm = net.model[1]
    start = copy.deepcopy(norm.state_dict())
    train(net, 0)
    after = copy.deepcopy(norm.state_dict())
    assert not torch.equal(start["norms.0.running_mean"], after["norms.0.running_mean"])
    assert not torch.equal(start["norms.0.weight"], after["norms.0.weight"])
    net.train()
    with net.task(0):
        net(3 * x + 1)
    train(net, 1)
    for key, value in norm.state_dict().items():
        if "norms.0" in key:
            assert torch.equal(value, after[key]), key
        if "norms.2" in key:
            assert torch.equal(value, start[key]), key
    net.forget_task(0)
    train(net, 0)
    assert not torch.equal(norm.norms[0].running_mean, after["norms.0.running_mean"])


# --- what a mask is


def test_the_threshold_itself_is_off_unless_inclusive():
    for inclusive, off in ((False, 1.0), (True, 0.0)):
        net = network("linear")
        net.begin_task(0, threshold=0.01, init=0.01, inclusive=inclusive)
        assert net.off(0) == {"": off}
        net.finish_task(0)
        assert net.off(0) == {"": off}


def test_biases_carry_no_mask():
    for name in ("linear", "conv"):
        net, x = network(name), sample(name)
        net.begin_task(0, init=-1.0)
        bias = net.model.bias
        wanted = bias if name == "linear" else bias[None, :, None, None]
        for _ in range(2):
            with net.task(0):
                out = net(x)
            assert torch.equal(out, wanted.expand_as(out))
            if net.training_task == 0:
                net.finish_task(0)


def test_ternary_signs_are_the_originals_or_symmetric_and_survive_packing():
    scores = torch.tensor([-0.5, -1e-9, 0.0, 5e-3, 6e-3])
    wanted = {"ternary": [-1, -1, 0, 0, 1], "ternary_symmetric": [-1, 0, 0, 0, 1]}
    for levels, mask in wanted.items():
        net = network("linear", levels)
        net.begin_task(0)
        with torch.no_grad():
            net.model.scores.copy_(scores.expand(7, 5))
        weight = net.model.weight * torch.tensor(mask)
        for _ in range(2):
            with net.task(0):
                found = net.model.masked_weight()
                out = net(torch.eye(5))
            assert torch.equal(found, weight)
            torch.testing.assert_close(out, weight.t() + net.model.bias)
            if net.training_task == 0:
                net.finish_task(0)


def test_topk_is_a_share_of_each_layer_whatever_rows_are_read():
    for name in ("linear", "conv", "embedding"):
        net, x = network(name, "topk"), sample(name)
        begin(net, 0, density=0.25)
        with torch.no_grad():
            net.model.scores.copy_(torch.randn(net.model.scores.shape))
            with net.task(0):
                before = net(x)
        n = net.model.weight.numel()
        assert net.off(0)[""] == pytest.approx(1 - round(0.25 * n) / n)
        net.finish_task(0)
        with net.task(0):
            torch.testing.assert_close(net(x), before)


# --- layers are ordinary modules


@pytest.mark.parametrize("name", list(LAYERS))
def test_conversions_return_the_layer_with_all_that_it_holds(name):
    net = network(name)
    train_words = torch.randint(0, 2**31 - 1, net.model.words_of(0).shape, dtype=torch.int32)
    net.model.words_of(0).copy_(train_words)
    net.begin_task(1, spread="uniform")
    layer, scores = net.model, net.model.scores
    start = scores.detach().clone()
    for convert in ("half", "bfloat16", "float", "cpu"):
        assert getattr(layer, convert)() is layer
        assert layer.scores is scores and scores.dtype == torch.float32
        assert torch.equal(scores, start)
        assert torch.equal(layer.words_of(0), train_words)
    assert layer.to(dtype=torch.float64) is layer
    assert layer.scores.dtype == layer.weight.dtype == torch.float64
    x = sample(name, torch.float64)
    with net.task(1):
        net(x).sum().backward()
    assert layer.scores.grad is not None
    assert layer.half() is layer and layer.scores.dtype == layer.scores.grad.dtype == torch.float32
    assert layer.to("meta") is layer
    assert all(t.is_meta for t in (layer.weight, layer.scores, layer.words))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", list(LAYERS))
def test_cuda_returns_the_layer_with_all_that_it_holds(name):
    net, x = network(name), sample(name)
    begin(net, 0)
    net.finish_task(0)
    begin(net, 1)
    wanted = [logits(net, task, x) for task in range(2)]
    scores = net.model.scores
    assert net.model.cuda() is net.model
    net.cuda()
    assert net.model.scores is scores
    assert all(t.is_cuda for t in (*net.parameters(), *net.buffers()))
    for task in range(2):
        torch.testing.assert_close(logits(net, task, x.cuda()).cpu(), wanted[task])


@pytest.mark.parametrize("name", list(LAYERS))
def test_everything_is_a_parameter_or_a_buffer(name):
    net = network(name)
    net.begin_task(0)
    layer, bias = net.model, "embedding" not in name and "no-bias" not in name
    wanted = {"weight", "scores"} | ({"bias"} if bias else set())
    assert set(dict(layer.named_parameters())) == wanted
    assert set(dict(layer.named_buffers())) == {"words"}
    assert set(layer.state_dict()) == wanted | {"words"}
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["scores"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mlp", "conv", "tokens"])
def test_a_half_precision_copy_serves_and_learns_with_float32_scores(name, dtype):
    net, inputs = frozen(name), FROZEN[name][1]
    train(net, 0, inputs)
    begin(net, 1)
    twin = copy.deepcopy(net).to(dtype)
    x = inputs(9)
    half = x.to(dtype) if x.is_floating_point() else x
    for task in range(2):
        found, wanted = logits(twin, task, half), logits(net, task, x)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), wanted, rtol=0.1, atol=0.1)
    with twin.task(1):
        twin(half).float().square().sum().backward()
    for ours, theirs in zip(twin.scores(), net.scores()):
        assert ours.dtype == ours.grad.dtype == torch.float32
        assert torch.equal(ours, theirs) and ours is not theirs
        assert theirs.grad is None


def test_words_that_are_no_mask_raise_and_change_nothing():
    net = network("linear", "ternary")
    good = {"": torch.zeros(2, 2, dtype=torch.int32)}
    spare, sign = good[""].clone(), good[""].clone()
    spare[0, 1] = 1 << 3  # weight 35 of 35
    sign[1, 0] = 1
    cases = [
        ({}, ValueError, "'' in only one"),
        ({**good, "x": good[""]}, ValueError, "'x' in only one"),
        ({"": good[""].long()}, TypeError, "torch.int64, wanted torch.int32"),
        ({"": good[""][0]}, ValueError, r"has shape \[2\], wanted \[2, 2\]"),
        ({"": spare}, ValueError, "bits past the weight's end"),
        ({"": sign}, ValueError, "signs where its mask is 0"),
    ]
    state = copy.deepcopy(net.state_dict())
    for words, kind, message in cases:
        with pytest.raises(kind, match=message):
            net.set_words(0, words)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key])
    net.set_words(0, good)
    assert net.finished.tolist() == [True, False]
