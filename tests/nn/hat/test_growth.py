"""Growth: finished tasks keep their bits in wider layers, and new units are free."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskcl import models
from maskcl.checkpoint import CheckpointError, load_network
from maskcl.export import compact
from maskcl.models.vit import ViT
from maskcl.nn import ConversionError, HATNetwork, to_hat, to_plain
from maskcl.nn.tasks.narrow import numbers_of
from tests import graph_zoo
from tests.nn.hat.test_unlearning import learn
from tests.nn.zoo import MODELS, images

CLASSES = [3, 2, 4]
# Of "gat 2", two heads stand side by side.
KINDS = ["vit", "mlp", "conv", "residual", "gcn", "sage", "gin", "gat", "gat 2", "conv net"]


def start(name: str) -> tuple[HATNetwork, Any]:
    torch.manual_seed(3)
    if name in ("gcn", "sage", "gin", "gat", "gat 2"):
        pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
        name, _, heads = name.partition(" ")
        model = graph_zoo.model("node", name, norm=True, heads=int(heads or 1))
        example = graph_zoo.inputs("node", name)
        return to_hat(model, 3, example, classes=CLASSES), lambda seed: graph_zoo.inputs(
            "node", name, seed=seed
        )
    made = {
        "conv net": lambda: models.conv((1, 4, 4), 3, width=4, hidden=9),
        "vit": lambda: ViT((1, 4, 4), 3, patch=2, width=8, depth=2, heads=2),
        **MODELS,
    }
    model = made[name]()
    net = to_hat(model, 3, images(2), classes=CLASSES)
    return net, lambda seed: (images(24, seed=seed),)


def outputs(net: HATNetwork, task: int, inputs: Any) -> list[Tensor]:
    """With and without gradients, and, of images, in batches of several sizes."""
    net.eval()
    found = []
    sizes = (1, 7, 24) if len(inputs) == 1 else (None,)
    for size in sizes:
        batch = (inputs[0][:size],) if size else inputs
        with net.task(task):
            with torch.no_grad():
                found.append(net(*batch))
            with torch.inference_mode():
                found.append(net(*batch).clone())
            found.append(net(*batch).detach())
    return found


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def added(net: HATNetwork, layer: str, units: int) -> int:
    """What the layer gains: those of a ViT that are added to its positions nothing."""
    stream = layer.endswith(("patch_embed.proj", "attn.proj", "mlp.fc2"))
    return 0 if stream else units


def unseen(net: HATNetwork, task: int, layer: str) -> Tensor:
    """Units that came after the task was finished, bool."""
    found = torch.ones(net.capacity().units[layer], dtype=torch.bool)
    narrow = net._state.narrow[task][net.model.get_submodule(layer).place]
    found[numbers_of(narrow.out or ((0, len(found)),))] = False
    return found


@pytest.mark.parametrize("name", KINDS)
def test_old_tasks_keep_their_bits_through_growth_and_after(name: str) -> None:
    net, inputs = start(name)
    learn(net, 0, inputs(0))
    known, x = {0: outputs(net, 0, inputs(50))}, inputs(50)
    plain = to_plain(net, 0)(*x)
    before = net.capacity()
    net.grow(6, seed=1)
    after = net.capacity()
    assert all(after.units[n] == before.units[n] + added(net, n, 6) for n in before.units)
    assert all(after.free_units[n] == before.free_units[n] + added(net, n, 6) for n in before.units)
    assert equal(outputs(net, 0, x), known[0])
    assert torch.equal(to_plain(net, 0)(*x), plain)
    net.check_kept()
    weights = [p.detach().clone() for p in net.protection().parameters]
    learn(net, 1, inputs(1), steps=8)
    moved = zip(weights, net.protection().parameters, strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)
    new = torch.cat([net.hard_mask(1)[s] & unseen(net, 0, n) for n, s in net.units.items()])
    assert bool(new.any()), "the task uses none of the new units"
    known[1] = outputs(net, 1, x)
    assert equal(outputs(net, 0, x), known[0])
    # A second time, past two tasks of different widths.
    net.grow({name: 6 for name in net.units if added(net, name, 6)}, seed=2)
    learn(net, 2, inputs(2))
    for task in (0, 1):
        assert equal(outputs(net, task, x), known[task])
        wanted = to_plain(net, task)(*x)
        assert torch.allclose(wanted, known[task][0 if len(x) > 1 else -1], atol=1e-5)
        assert torch.allclose(compact(net, task, x)(*x), wanted, atol=1e-5)
    net.check_kept()


@pytest.mark.parametrize("name", KINDS)
def test_a_grown_state_loads_into_a_network_that_has_not_grown(name: str) -> None:
    net, inputs = start(name)
    learn(net, 0, inputs(0))
    net.grow(6)
    learn(net, 1, inputs(1))
    net.grow(12)
    other, _ = start(name)
    other.load_state_dict(net.state_dict())
    assert other.capacity().units == net.capacity().units
    for task in (0, 1, 2):
        assert equal(outputs(other, task, inputs(5)), outputs(net, task, inputs(5)))
    twin = copy.deepcopy(net)
    assert equal(outputs(twin, 0, inputs(5)), outputs(net, 0, inputs(5)))
    learn(net, 2, inputs(2))
    learn(other, 2, inputs(2))
    assert all(torch.equal(a, other.state_dict()[n]) for n, a in net.state_dict().items())


def test_a_checkpoint_of_a_grown_network_loads_too() -> None:
    net, inputs = start("conv")
    learn(net, 0, inputs(0))
    net.grow(2)
    other, _ = start("conv")
    state = {f"network.{name}": tensor for name, tensor in net.state_dict().items()}
    load_network(other, state)
    assert equal(outputs(other, 0, inputs(5)), outputs(net, 0, inputs(5)))
    third, _ = start("conv")
    third.grow(5)
    with pytest.raises(CheckpointError, match="the state is of a network that grew by"):
        load_network(third, state)


def test_a_state_of_another_growth_is_refused() -> None:
    net, _ = start("mlp")
    net.grow(2)
    other, _ = start("mlp")
    other.grow(3)
    with pytest.raises(RuntimeError, match="the state is of a network that grew by"):
        other.load_state_dict(net.state_dict())
    with pytest.raises(RuntimeError, match="the state is of a network that grew by"):
        other.load_state_dict(start("mlp")[0].state_dict())


def test_what_is_forgotten_past_a_growth_is_gone_and_the_others_stay() -> None:
    net, inputs = start("conv")
    learn(net, 0, inputs(0))
    learn(net, 1, inputs(1))
    net.grow(4)
    learn(net, 2, inputs(2))
    known = {task: outputs(net, task, inputs(9)) for task in (1, 2)}
    promised = net.capacity().freed_by(0)
    record = net.forget_task(0, reset=True)
    assert (sum(record.units.values()), sum(record.weights.values())) == tuple(promised)
    assert all(equal(outputs(net, task, inputs(9)), known[task]) for task in (1, 2))
    # It trains again with the widths that it had.
    learn(net, 0, inputs(3))
    assert not any(bool(net.hard_mask(0)[s][-4:].any()) for s in net.units.values())
    assert all(equal(outputs(net, task, inputs(9)), known[task]) for task in (1, 2))


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (0, "units of '1' is 0, wanted an int of at least 1"),
        (-3, "units of '1' is -3"),
        (1.5, "units of '1' is 1.5"),
        (True, "units of '1' is True"),
        ({}, "units names no layer"),
        ({"7": 2}, "units has '7', wanted masked layers: 1, 4"),
    ],
)
def test_bad_units_are_named(units: Any, message: str) -> None:
    net, _ = start("mlp")
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        net.grow(units)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_cannot_grow_is_refused_and_nothing_changes() -> None:
    for name, units, message in (
        ("residual", {"conv1": 2}, "would grow by different numbers"),
        ("gat 2", 3, "has 2 parts, which would not gain the same of 3 units"),
        ("grouped", 2, "has groups, and cannot grow|in an order or in parts|different numbers"),
        ("concat", 2, "cannot be traced"),
        ("prenorm", 6, "cannot be traced"),
    ):
        net, inputs = start(name)
        learn(net, 0, inputs(0))
        known = outputs(net, 0, inputs(5))
        before = {k: v.clone() for k, v in net.state_dict().items()}
        with pytest.raises(ConversionError, match=message):
            net.grow(units)
        after = net.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(v, before[k]) for k, v in after.items())
        assert equal(outputs(net, 0, inputs(5)), known)
    net, _ = start("mlp")
    for task in range(3):
        net.finish_task(task)
    with pytest.raises(RuntimeError, match="no task left that could use new units"):
        net.grow(2)


def test_a_vits_stream_keeps_its_width_and_says_why() -> None:
    net, _ = start("vit")
    with pytest.raises(ConversionError, match=r"added to what every task uses, so that it cannot"):
        net.grow({"patch_embed.proj": 2})
    with pytest.raises(ConversionError, match=r"attn.qkv' has 3 parts"):
        net.grow({"blocks.0.attn.qkv": 4})
    net.grow({"blocks.0.attn.qkv": 6})
    assert net.model.blocks[0].attn.qkv.weight.shape == (30, 8)
    assert net.model.blocks[0].attn.proj.weight.shape == (8, 10)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnets_grow(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8)
    net = to_hat(models.build(name, (3, 8, 8), 2), 2, x[:2], classes=[2, 2])
    net.finish_task(0)
    net.eval()
    with net.task(0), torch.no_grad():
        before = net(x)
        net.grow(4)
        assert torch.equal(net(x), before)
    with net.task(1), torch.no_grad():
        assert net(x).shape == (3, 2)


def test_an_optimizer_of_before_is_refused() -> None:
    net, inputs = start("mlp")
    learn(net, 0, inputs(0))
    net.begin_task(1)
    protection = net.protection()
    net.grow(2)
    with pytest.raises(RuntimeError, match="no longer the parameter that was there"):
        protection.check_parameters("step")


def test_all_is_drawn_from_the_seed() -> None:
    nets = [start("conv")[0] for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        torch.randn(4)
        net.grow(3, seed=seed)
    one, other, third = (net.state_dict() for net in nets)
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert not torch.equal(one["model.0.weight"], third["model.0.weight"])
    assert float(one["model.0.weight"][-3:].abs().min()) > 0


def test_an_ordinary_layer_in_the_middle_of_the_list_may_grow_alone() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)]
    net = to_hat(nn.Sequential(*layers), 2, torch.ones(2, 4))
    net.finish_task(0)
    x = torch.randn(9, 4)
    with net.task(0):
        before = net(x)
    net.grow({"2": 4})
    assert net.model[2].weight.shape == (9, 6)
    assert net.model[4].weight.shape == (2, 9)
    with net.task(0):
        assert torch.equal(net(x), before)
