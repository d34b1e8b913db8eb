"""Scores of bfloat16: what they weigh, what they learn, and that finished tasks stay."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maskcl import optim
from maskcl.nn import PiggybackNetwork
from tests.nn.piggyback.zoo import CLASSES, FROZEN, SELECT, frozen, logits

BF16 = torch.bfloat16
OPTIMIZERS = {"SGD": {"lr": 0.5, "momentum": 0.9}, "Adam": {"lr": 5e-3}, "AdamW": {"lr": 5e-3}}


def begin(net: PiggybackNetwork, task: int, **options) -> None:
    net.begin_task(task, score_dtype=BF16, **SELECT[net.levels], **options)


def learn(net, task, inputs, optimizer, steps=range(4)) -> None:
    dtype = next(net.parameters()).dtype
    for step in steps:
        x = inputs(8, seed=step)
        torch.manual_seed(step)
        with net.task(task):
            output = net(x.to(dtype) if x.is_floating_point() else x)
        target = torch.arange(8) % output.shape[-1]
        optimizer.zero_grad()
        F.cross_entropy(output.float(), target).backward()
        optimizer.step()


@torch.no_grad()
def masked(net, task) -> list[torch.Tensor]:
    with net.task(task):
        return [layer.masked_weight() for layer in net.layers.values()]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def made(net, task, kind="Adam"):
    options = {**OPTIMIZERS[kind], "rounding": "stochastic", "seed": task}
    return getattr(optim, kind)(net.task_parameters(task), **options)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
@pytest.mark.parametrize("name", FROZEN)
def test_tasks_learn_and_finished_ones_keep_their_bits(name, dtype):
    inputs = FROZEN[name][1]
    net = frozen(name).to(dtype)
    kept = []
    for task, kind in enumerate(OPTIMIZERS):
        begin(net, task)
        assert {p.dtype for p in net.scores()} == {BF16}
        before = [p.detach().clone() for p in net.scores()]
        learn(net, task, inputs, made(net, task, kind))
        assert any((p != b).any() for p, b in zip(net.scores(), before, strict=True))
        x = inputs(4, seed=9)
        x = x.to(dtype) if x.is_floating_point() else x
        learned = masked(net, task)
        net.finish_task(task)
        assert same(masked(net, task), learned), "the bits are the scores' mask"
        kept.append((x, logits(net, task, x)))
        for earlier, (x, wanted) in enumerate(kept):
            assert torch.equal(logits(net, earlier, x), wanted)


@pytest.mark.parametrize("levels", SELECT)
def test_a_score_at_the_threshold_is_on_one_side_for_all(levels):
    """bfloat16 has no 5e-3: the nearest number is what scores are compared with, in every op."""
    near = torch.tensor(5e-3).to(BF16)
    up = torch.nextafter(near, torch.ones_like(near))
    down = torch.nextafter(near, torch.zeros_like(near))
    net = frozen("mlp", levels)
    begin(net, 0)
    with torch.no_grad():
        for p in net.scores():
            count = p.numel()
            p.copy_(
                torch.stack([near, up, down, -near, -up]).repeat(-(-count // 5))[:count].view_as(p)
            )
    found = masked(net, 0)
    assert all(bool((w == 0).any() and (w != 0).any()) for w in found)
    x = FROZEN["mlp"][1](4)
    outputs = {}
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            outputs[dtype] = logits(net, 0, x)
    net.finish_task(0)
    assert same(masked(net, 0), found)
    for dtype, wanted in outputs.items():
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(logits(net, 0, x), wanted, rtol=1e-2, atol=1e-2)


def test_a_loaded_threshold_is_rounded_as_the_scores_are():
    """A state of float32 scores has 5e-3 itself, which scores cast to float32 would be above."""
    wide, net = frozen("mlp"), frozen("mlp")
    wide.begin_task(0)
    begin(net, 0)
    threshold = net.get_extra_state()[1]
    with torch.no_grad():
        for p in wide.scores():
            p.fill_(float(threshold))
    assert wide.get_extra_state()[1] < threshold
    net.load_state_dict(wide.state_dict())
    assert net.scores()[0].dtype is BF16
    assert net.get_extra_state()[1] == threshold
    net.float()
    assert all((w == 0).all() for w in masked(net, 0))


def test_gradients_are_the_float32_scores_rounded():
    nets = [frozen("mlp") for _ in range(2)]
    nets[0].begin_task(0, init=2.0**-6)
    begin(nets[1], 0, init=2.0**-6)
    x = FROZEN["mlp"][1](8)
    for net in nets:
        torch.manual_seed(0)  # dropout
        with net.task(0):
            F.cross_entropy(net(x), torch.arange(8) % CLASSES[0]).backward()
    for wide, half in zip(nets[0].scores(), nets[1].scores(), strict=True):
        assert half.grad.dtype is BF16
        assert torch.equal(wide.grad.to(BF16), half.grad)


def test_a_resumed_task_has_the_bits_of_an_uninterrupted_one():
    inputs = FROZEN["mlp"][1]
    whole = frozen("mlp").to(BF16)
    begin(whole, 0)
    learn(whole, 0, inputs, made(whole, 0), range(6))

    first = frozen("mlp").to(BF16)
    begin(first, 0)
    optimizer = made(first, 0)
    learn(first, 0, inputs, optimizer, range(3))
    saved = copy.deepcopy((first.state_dict(), optimizer.state_dict()))

    resumed = frozen("mlp").to(BF16)
    resumed.load_state_dict(saved[0])
    assert {p.dtype for p in resumed.scores()} == {BF16}
    optimizer = made(resumed, 0)
    optimizer.load_state_dict(saved[1])
    learn(resumed, 0, inputs, optimizer, range(3, 6))
    wanted = whole.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in resumed.state_dict().items())


def test_conversions_leave_scores_of_two_bytes_as_they_are():
    net = frozen("mlp")
    begin(net, 0)
    values = [p.clone() for p in net.scores()]
    for change in (nn.Module.half, nn.Module.bfloat16):
        change(net)
        assert all(p.dtype is BF16 for p in net.scores())
        assert all(torch.equal(p, v) for p, v in zip(net.scores(), values, strict=True))
    net.float()
    assert all(p.dtype is torch.float32 for p in net.scores())


def test_uniform_scores_are_float32s_rounded():
    nets = [frozen("mlp") for _ in range(2)]
    for net, dtype in zip(nets, (None, BF16), strict=True):
        generator = torch.Generator().manual_seed(3)
        net.begin_task(0, spread="uniform", generator=generator, score_dtype=dtype)
    for wide, half in zip(nets[0].scores(), nets[1].scores(), strict=True):
        assert torch.equal(wide.to(BF16), half)


def test_an_optimizer_that_rounds_to_nearest_is_told_of_once():
    net, other = frozen("mlp"), nn.Parameter(torch.ones(2))
    inputs = FROZEN["mlp"][1]
    begin(net, 0)
    bystander = torch.optim.SGD([other], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bystander.step()
    optimizer = torch.optim.RMSprop(net.task_parameters(0), lr=1e-3)
    with pytest.warns(
        UserWarning, match=r"RMSprop.step: scores are bfloat16.*rounding='stochastic'"
    ):
        learn(net, 0, inputs, optimizer, range(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn(net, 0, inputs, optimizer, range(1))
        begin(net, 0)
        learn(net, 0, inputs, made(net, 0))
        net.begin_task(0)  # float32
        learn(net, 0, inputs, torch.optim.SGD(net.task_parameters(0), lr=0.1))


def test_other_dtypes_are_refused_before_anything_changes():
    net = frozen("mlp")
    for wrong in (torch.float16, torch.int32, "bfloat16"):
        with pytest.raises(
            ValueError, match=r"begin_task: score_dtype is .*, wanted torch\.float32"
        ):
            net.begin_task(0, score_dtype=wrong)
    assert net.training_task is None and net.scores() == []
