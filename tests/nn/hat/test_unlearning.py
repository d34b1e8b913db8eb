"""Exact unlearning: what a forgotten task's data made is gone, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.models.vit import ViT
from maskcl.nn import HATNetwork, to_hat
from maskcl.nn.tasks.kept_bits import FinishedTasks
from tests import graph_zoo
from tests.nn.zoo import MODELS, images

CLASSES = [3, 2, 4]


def vit() -> nn.Module:
    return ViT((1, 4, 4), 3, patch=2, width=8, depth=1, heads=2)


def graph_inputs(encoder: str) -> Callable[[int], tuple[Any, ...]]:
    return lambda seed: graph_zoo.inputs("node", encoder, seed=seed)


def of_images(seed: int) -> tuple[Any, ...]:
    return (images(24, seed=seed),)


def start(name: str) -> tuple[HATNetwork, Callable[[int], tuple[Any, ...]]]:
    """The same network in every call, and inputs from a seed."""
    torch.manual_seed(3)
    if name in ("gcn", "gat"):
        pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
        inputs = graph_inputs(name)
        model = graph_zoo.model("node", name, norm=True, heads=2 if name == "gat" else 1)
    else:
        inputs, model = of_images, vit() if name == "vit" else MODELS[name]()
    return to_hat(model, 3, inputs(0), classes=CLASSES), inputs


def learn(net: HATNetwork, task: int, inputs: tuple[Any, ...], steps: int = 6) -> None:
    """Adam on labels drawn from the task, on these inputs; half the units stay closed."""
    generator = torch.Generator().manual_seed(task)
    net.reset_embedding(task, generator=generator)
    net.begin_task(task)
    parameters = net.task_parameters(task)
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    protection = net.protection()
    saved = protection.snapshot()
    net.train()
    torch.manual_seed(task)
    for step in range(steps):
        optimizer.zero_grad()
        with net.task(task, 1.0 + 10.0 * step):
            logits = net(*inputs)
            labels = torch.randint(CLASSES[task], (len(logits),), generator=generator)
            F.cross_entropy(logits, labels).backward()
        optimizer.step()
        protection.restore_(saved)
    net.finish_task(task)


@torch.no_grad()
def outputs(net: HATNetwork, task: int, inputs: tuple[Any, ...]) -> Tensor:
    net.eval()
    with net.task(task):
        return net(*inputs)


def differing(a: HATNetwork, b: HATNetwork) -> list[str]:
    one, other = a.state_dict(), b.state_dict()
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


KINDS = ["mlp", "conv", "residual", "prenorm", "excite", "vit", "gcn", "gat"]


@pytest.mark.parametrize("name", KINDS)
def test_two_runs_that_differ_in_the_last_tasks_data_are_equal_after_it_is_forgotten(
    name: str,
) -> None:
    nets = []
    for seed in (1, 2):
        net, inputs = start(name)
        learn(net, 0, inputs(10))
        learn(net, 1, inputs(seed))
        nets.append(net)
    known = outputs(nets[0], 0, inputs(77))
    changed = differing(*nets)
    assert any(n.startswith("model.") for n in changed)
    own = (".1.", "embeddings.1")
    assert any(part in n for n in changed for part in own)
    promised = [net.capacity().freed_by(1) for net in nets]
    before = nets[0].capacity()
    record = nets[0].forget_task(1, reset=True, seed=5)
    nets[1].forget_task(1, reset=True, seed=5)
    assert differing(*nets) == []
    assert torch.equal(outputs(nets[0], 0, inputs(77)), known)
    nets[0].check_kept()
    after = nets[0].capacity()
    freed = promised[0]
    assert sum(after.free_units.values()) - sum(before.free_units.values()) == freed.units > 0
    assert sum(after.free_weights.values()) - sum(before.free_weights.values()) == freed.weights > 0
    assert (sum(record.units.values()), sum(record.weights.values())) == tuple(freed)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_as_if_the_task_had_never_been(name: str) -> None:
    """Whatever was learned: equal to forgetting a task that never trained."""
    net, inputs = start(name)
    learn(net, 0, inputs(10))
    other, _ = start(name)
    learn(other, 0, inputs(10))
    learn(net, 1, inputs(1))
    net.forget_task(1, reset=True)
    other.forget_task(1, reset=True)
    assert differing(net, other) == []
    learn(net, 1, inputs(4))
    learn(other, 1, inputs(4))
    assert differing(net, other) == []


@pytest.mark.parametrize("name", KINDS)
def test_a_task_in_the_middle_goes_and_the_others_keep_their_bits(name: str) -> None:
    net, inputs = start(name)
    for task in range(3):
        learn(net, task, inputs(task))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    known = {task: outputs(net, task, inputs(50)) for task in (0, 2)}
    gone = outputs(net, 1, inputs(50))
    promised = net.capacity().freed_by(1)
    record = net.forget_task(1, reset=True)
    assert (sum(record.units.values()), sum(record.weights.values())) == tuple(promised)
    for task, wanted in known.items():
        assert torch.equal(outputs(net, task, inputs(50)), wanted)
    assert not torch.equal(outputs(net, 1, inputs(50)), gone)
    assert net.finished.tolist() == [True, False, True]
    assert not bool(((net.tasks >> 1) & 1).any())
    # What is protected is untouched, what is not is all other numbers.
    protection = net.protection()
    for name_, parameter, *ends in zip(
        protection.names,
        protection.parameters,
        protection.out_tasks,
        protection.in_tasks,
        strict=True,
    ):
        out, into = ends
        is_weight = parameter.dim() > 1
        kept = ((out[:, None] & into[None]) != 0).any(-1) if is_weight else out.any(-1)
        if is_weight:
            kept = kept.reshape(*kept.shape, *[1] * (parameter.dim() - 2))
        kept = kept.expand_as(parameter)
        same = parameter == before[name_]
        assert bool(same[kept].all())
        if bool((parameter != 0).all()):
            assert not bool(same[~kept].any())
        assert record.tensors[name_].numbers == int((~kept).sum())
    assert any(record.tensors[n].before != record.tensors[n].after for n in protection.names)


def test_units_that_other_tasks_share_stay() -> None:
    net = to_hat(MODELS["mlp"](), 3, images(2), classes=CLASSES)
    with torch.no_grad():
        net.embeddings[0].fill_(1.0)
    net.finish_task(0)
    net.finish_task(1)
    assert net.capacity().freed_by(1) == (0, 0)
    weights = [p.detach().clone() for p in net.protection().parameters]
    net.forget_task(1, reset=True)
    assert all(torch.equal(a, b) for a, b in zip(weights, net.protection().parameters, strict=True))
    assert net.capacity().freed_by(0) == (22, sum(net.capacity().weights.values()))
    assert net.capacity().freed_by(2) == (0, 0)
    with pytest.raises(ValueError, match="freed_by: task is 64"):
        net.capacity().freed_by(64)


def test_without_reset_nothing_is_drawn() -> None:
    net, inputs = start("conv")
    learn(net, 0, inputs(0))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    assert net.forget_task(0) is None
    changed = [k for k, v in net.state_dict().items() if not torch.equal(v, before[k])]
    assert sorted(changed) == ["finished", "tasks"]


def test_the_seed_decides_and_the_global_generator_stays() -> None:
    nets = [start("conv")[0] for _ in range(3)]
    torch.manual_seed(9)
    state = torch.get_rng_state()
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        torch.randn(3)
        rng = torch.get_rng_state()
        net.forget_task(0, reset=True, seed=seed)
        assert torch.equal(torch.get_rng_state(), rng)
    assert not torch.equal(torch.get_rng_state(), state)
    assert differing(nets[0], nets[1]) == []
    assert "model.0.weight" in differing(nets[0], nets[2])
    # Two layers of one shape are not drawn alike.
    layers = to_hat(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), 1, torch.ones(1, 4))
    layers.forget_task(0, reset=True)
    assert not torch.equal(layers.model[0].weight, layers.model[1].weight)


def test_weights_are_drawn_as_the_layers_own() -> None:
    net, _ = start("mlp")
    with torch.no_grad():
        for parameter in net.model.parameters():
            parameter.fill_(100.0)
    net.forget_task(0, reset=True)
    layer = net.model[1]
    assert bool((layer.weight.abs() <= layer.in_features**-0.5).all())
    assert float(layer.weight.std()) > 0.3 * layer.in_features**-0.5
    head = net.model[-1].heads
    assert bool((head[0].weight.abs() <= 1).all())
    assert bool((head[1].weight == 100.0).all())


def test_a_task_in_training_cannot_go_on_unaware() -> None:
    net, inputs = start("mlp")
    learn(net, 0, inputs(0))
    net.begin_task(1)
    begun = FinishedTasks(net, 1)
    with net.task(1, 2.0):
        net(*inputs(1)).sum().backward()
    net.forget_task(0, reset=True)
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(RuntimeError, match=r"tasks \[0\] were finished or forgotten"):
        begun.check("step", net)


def test_the_record_is_a_file_and_has_no_number_of_the_task(tmp_path: Path) -> None:
    net, inputs = start("conv")
    learn(net, 0, inputs(0))
    record = net.forget_task(0, reset=True, seed=4)
    record.write(tmp_path / "forgotten.json")
    found = json.loads((tmp_path / "forgotten.json").read_text())
    assert found == record.to_json()
    assert found["task"] == 0
    assert found["seed"] == 4
    names = set(net.state_dict())
    assert set(found["tensors"]) - names == {"tasks, bit 0"}
    assert {"model.1.norms.0.running_mean", "model.1.norms.0.num_batches_tracked"} < names
    assert "model.1.norms.0.running_mean" in found["tensors"]
    for removed in found["tensors"].values():
        assert len(removed["before"]) == len(removed["after"]) == 64
    assert "task 0 is forgotten: " in str(record)
    again = net.forget_task(0, reset=True, seed=4)
    assert all(r.before == r.after for r in again.tensors.values())
    with pytest.raises(FileNotFoundError):
        record.write(tmp_path / "none" / "forgotten.json")


def test_a_module_that_cannot_be_cleared_is_named_and_nothing_changes() -> None:
    net, inputs = start("mlp")
    learn(net, 0, inputs(0))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.model[-1].heads[0].reset_parameters = None
    with pytest.raises(RuntimeError, match=r".6.heads.0. \(Linear\) has no reset_param"):
        net.forget_task(0, reset=True)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    with pytest.raises(ValueError, match="forget_task: task is 3"):
        net.forget_task(3, reset=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    net = start("conv")[0].to(dtype)
    net.forget_task(0, reset=True)
    assert net.model[0].weight.dtype == dtype
    again = {k: v.clone() for k, v in net.state_dict().items()}
    net.forget_task(0, reset=True)
    assert all(torch.equal(v, again[k]) for k, v in net.state_dict().items())
