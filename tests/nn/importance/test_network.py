"""Networks with importances: what is whose, what is kept and where, and what a task sees."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import Tensor, nn

from maskcl.nn import (
    ConversionError,
    ConversionWarning,
    GrowingHead,
    ImportanceNetwork,
    TaskBatchNorm1d,
    TaskHeads,
    to_importance,
    to_plain,
)
from tests import tiny

T = 3
GROWING = [2, 4, 6]


def made(kind: str = "heads", model: str = "mlp") -> ImportanceNetwork:
    torch.manual_seed(0)
    options = {
        "heads": {"classes": [2] * T},
        "growing": {"classes": GROWING, "growing": True},
        "shared": {},
    }[kind]
    return to_importance(tiny.MODELS[model](), T, **options)


def random_importances(net: ImportanceNetwork, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(o.shape, generator=generator) for n, o in net.importances.items()}


@torch.no_grad()
def move(net: ImportanceNetwork, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator))


def consolidated(kind: str = "heads", model: str = "mlp", tasks: int = 1) -> ImportanceNetwork:
    net = made(kind, model)
    for task in range(tasks):
        net.begin_task(task)
        move(net, task)
        net.consolidate(task, random_importances(net, task))
        net.finish_task(task)
    return net


# --- conversion


def test_the_model_is_copied_and_keeps_its_modules():
    model = tiny.conv()
    before = copy.deepcopy(model.state_dict())
    net = to_importance(model, T)
    assert [type(m) for m in net.model.modules()] == [type(m) for m in model.modules()]
    move(net)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", ["heads", "growing"])
def test_the_last_linear_gives_way_to_heads(kind):
    net = made(kind, "residual")
    head = net.model.head
    assert isinstance(head, TaskHeads if kind == "heads" else GrowingHead)
    widths = [len(tiny.logits(net, task, torch.zeros(1, *tiny.SHAPE))[0]) for task in range(T)]
    assert widths == ([2, 2, 2] if kind == "heads" else GROWING)


def test_a_growing_head_shows_the_first_classes_and_moves_no_others():
    net = made("growing")
    x = torch.randn(4, *tiny.SHAPE)
    whole = tiny.logits(net, 2, x)
    torch.testing.assert_close(tiny.logits(net, 0, x), whole[:, :2])
    net.begin_task(0)
    with net.task(0):
        net(x).square().sum().backward()
    head = next(m for m in net.modules() if isinstance(m, GrowingHead))
    assert head.linear.weight.grad[:2].any(1).all()
    assert not head.linear.weight.grad[2:].any()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_tasks": 0}, ValueError, "num_tasks is 0, wanted at least 1"),
        ({"classes": [2]}, ValueError, "classes has 1 entries, wanted 3, one a task"),
        ({"growing": True}, ValueError, "growing is True, wanted classes with it"),
        ({"classes": [4, 2, 6], "growing": True}, ValueError, r"classes is \[4, 2, 6\], wanted"),
        ({"head": "x"}, ValueError, "head is 'x', wanted the name of a module"),
        ({"head": "x", "classes": [2] * 3}, ConversionError, "found '1', '4', '6', wanted 'x'"),
        ({"model": nn.ReLU()}, ValueError, "no parameter that tasks share"),
        ({"model": nn.LazyLinear(2)}, ConversionError, "has no shape yet"),
        ({"model": nn.Embedding(2, 2, sparse=True)}, ConversionError, "has sparse=True"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    arguments = {"model": tiny.mlp(), "num_tasks": T} | arguments
    with pytest.raises(error, match=message):
        to_importance(**arguments)


# --- what is whose


def test_tasks_share_all_but_heads_and_task_norms():
    torch.manual_seed(0)
    body = [nn.Flatten(), nn.Linear(36, 5), TaskBatchNorm1d(5, T), nn.Linear(5, 2)]
    net = to_importance(nn.Sequential(*body), T, classes=[2] * T)
    assert net.names() == ["1.weight", "1.bias"]
    net.begin_task(1)
    trained = {n for n, p in net.named_parameters() if p.requires_grad}
    own = {"model.2.norms.1.weight", "model.2.norms.1.bias"}
    own |= {"model.3.heads.1.weight", "model.3.heads.1.bias"}
    assert trained == {"model.1.weight", "model.1.bias"} | own
    assert {id(p) for p in net.task_parameters(1)} == {
        id(p) for p in net.parameters() if p.requires_grad
    }


def test_the_output_layer_is_known():
    assert made("heads").names(heads=False) == made("heads").names()
    for kind, head in (("growing", "6.linear"), ("shared", "6")):
        net = made(kind)
        left_out = set(net.names()) - set(net.names(heads=False))
        assert left_out == {f"{head}.weight", f"{head}.bias"}
    named = to_importance(tiny.mlp(), T, head="4")
    assert set(named.names()) - set(named.names(heads=False)) == {"4.weight", "4.bias"}


def test_what_is_frozen_stays_so():
    model = tiny.mlp()
    model[1].requires_grad_(False)
    net = to_importance(model, T)
    net.begin_task(0)
    assert not net.model[1].weight.requires_grad
    assert "1.weight" not in net.importances
    assert net.model[4].weight.requires_grad


def test_a_task_begins_without_gradients_and_ends_with_its_head_frozen():
    net = made()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    net.begin_task(0)
    assert all(p.grad is None for p in net.parameters())
    net.finish_task(0)
    head = next(m for m in net.modules() if isinstance(m, TaskHeads))
    assert not head.heads[0].weight.requires_grad
    assert net.finished.tolist() == [True, False, False]
    for call in (net.begin_task, net.finish_task):
        with pytest.raises(RuntimeError, match="task 0 is finished; task 1 is the first that is"):
            call(0)
    with pytest.raises(RuntimeError, match="task 0 is finished, and importances are sums"):
        net.forget_task(0)
    net.forget_task(1)
    with pytest.raises(RuntimeError, match=r"ImportanceNetwork.grow: only a HATNetwork has units"):
        net.grow(3)
    with pytest.raises(RuntimeError, match="all tasks move the same weights, so none can be"):
        net.forget_task(1, reset=True)


# --- importances and anchors


def test_importances_add_up_and_anchors_follow():
    net = consolidated(tasks=2)
    first, second = (random_importances(net, task) for task in range(2))
    for name, omega in net.importances.items():
        assert torch.equal(omega, first[name] + second[name])
        parameter = net.model.get_parameter(name)
        assert torch.equal(net.anchors[name], parameter)
        assert net.anchors[name].data_ptr() != parameter.data_ptr()


def test_decay_is_the_factor_of_earlier_tasks():
    net = made()
    for task in range(T):
        net.consolidate(task, {"1.weight": torch.full((16, 36), 1.0 + task)}, decay=0.5)
    assert (net.importances["1.weight"] == 1 / 4 + 2 / 2 + 3).all()
    assert not net.importances["1.bias"].any()


def test_mean_anchors_are_weighted_by_the_tasks_importances():
    net = made()
    weights, importances = [], []
    for task in range(T):
        move(net, task)
        new = random_importances(net, task)
        new["1.bias"].zero_()
        net.consolidate(task, new, anchors="mean")
        weights.append({n: net.model.get_parameter(n).detach().clone() for n in new})
        importances.append(new)
    for name, anchor in net.anchors.items():
        if name == "1.bias":  # matters to none
            assert torch.equal(anchor, weights[-1][name])
            continue
        total = sum(f[name].double() for f in importances)
        pairs = zip(importances, weights)
        wanted = sum(f[name].double() * w[name].double() for f, w in pairs) / total
        torch.testing.assert_close(anchor.double(), wanted, rtol=1e-5, atol=1e-6)


def test_what_was_given_is_copied():
    net = made()
    new = random_importances(net)
    net.consolidate(0, new)
    kept = {n: o.clone() for n, o in net.importances.items()}
    for tensor in new.values():
        tensor.fill_(7)
    net.consolidate(1, {})
    move(net)
    assert all(torch.equal(o, kept[n]) for n, o in net.importances.items())
    assert not any(torch.equal(a, net.model.get_parameter(n)) for n, a in net.anchors.items())


@pytest.mark.parametrize(
    ("new", "options", "error", "message"),
    [
        ({"9.weight": torch.ones(2)}, {}, ValueError, "new has '9.weight'"),
        ({"1.bias": torch.ones(3)}, {}, ValueError, r"\[3\], wanted \[16\]"),
        ({"1.bias": torch.ones(16, dtype=int)}, {}, TypeError, "is torch.int64, wanted a floating"),
        ({"1.bias": -torch.ones(16)}, {}, ValueError, "negative or not finite"),
        ({"1.bias": torch.full((16,), math.nan)}, {}, ValueError, "negative or not finite"),
        ({}, {"decay": 1.5}, ValueError, "decay is 1.5, wanted a number from 0 to 1"),
        ({}, {"anchors": "first"}, ValueError, "anchors is 'first', wanted one of"),
    ],
)
def test_importances_that_are_none_change_nothing(new, options, error, message):
    net = consolidated()
    before = copy.deepcopy(net.state_dict())
    new = {"1.weight": torch.ones(16, 36)} | new
    with pytest.raises(error, match=f"ImportanceNetwork.consolidate: .*{message}"):
        net.consolidate(1, new, **options)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_drift_is_the_way_from_the_anchor():
    net = consolidated()
    assert net.drift(0, net.names()) == {}
    with torch.no_grad():
        net.model[1].bias += torch.tensor([3.0, -4.0] * 8)
    net.consolidate(1, {})
    found = net.drift(1, net.names())
    assert found["1.bias"] == pytest.approx(math.sqrt(12.5))
    assert found["1.weight"] == 0.0
    means = net.mean_importance(["1.bias"])
    assert means == {"1.bias": pytest.approx(float(net.importances["1.bias"].mean()))}


def test_what_does_not_move_is_not_in_the_lists():
    net = consolidated()
    net.begin_task(1)
    net.model[1].bias.requires_grad_(False)
    parameters, anchors, importances = net.anchored(net.names())
    assert len(parameters) == len(anchors) == len(importances) == 3
    assert parameters[0] is net.model[1].weight
    assert anchors[0] is net.anchors["1.weight"]
    assert importances[0] is net.importances["1.weight"]


# --- kept and carried along


@pytest.mark.parametrize("kind", ["heads", "growing", "shared"])
def test_a_state_goes_into_a_fresh_network(kind):
    net = consolidated(kind, "conv")
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh = made(kind, "conv")
    move(fresh, 9)
    fresh.load_state_dict(torch.load(file))
    assert {"importance.0.weight", "anchor.0.weight"} <= net.state_dict().keys()
    for name, omega in net.importances.items():
        assert omega.any()
        assert torch.equal(fresh.importances[name], omega)
        assert torch.equal(fresh.anchors[name], net.anchors[name])
    x = torch.randn(4, *tiny.SHAPE)
    for task in range(T):
        assert torch.equal(tiny.logits(fresh, task, x), tiny.logits(net, task, x))
    assert fresh.finished.tolist() == [True, False, False]


def test_a_copy_shares_nothing():
    net = consolidated()
    other = copy.deepcopy(net)
    before = {n: o.clone() for n, o in net.importances.items()}
    other.consolidate(1, random_importances(other, 5))
    with torch.no_grad():
        other.model[1].weight.zero_()
    assert all(torch.equal(o, before[n]) for n, o in net.importances.items())
    assert other.anchored(["1.weight"])[0][0] is other.model[1].weight
    with other.task(0):
        assert net._state.task is None


def test_importances_keep_their_precision():
    net = consolidated()
    kept = {n: o.clone() for n, o in net.importances.items()}
    net.to(torch.bfloat16)
    assert {a.dtype for a in net.anchors.values()} == {torch.bfloat16}
    assert all(torch.equal(o, kept[n]) for n, o in net.importances.items())
    net.double()
    assert {o.dtype for o in net.importances.values()} == {torch.float64}
    assert all(torch.equal(o, kept[n].double()) for n, o in net.importances.items())


# --- one task as an ordinary module


@pytest.mark.parametrize("kind", ["heads", "growing", "shared"])
def test_a_plain_module_of_a_task(kind):
    net = consolidated(kind, "conv")
    x = torch.randn(4, *tiny.SHAPE)
    for task in range(T):
        plain = to_plain(net, task)
        assert all(type(m).__module__.startswith("torch.nn") for m in plain.modules())
        torch.testing.assert_close(plain(x), tiny.logits(net, task, x))
        shared = {p.data_ptr() for p in net.parameters()} & {
            p.data_ptr() for p in plain.parameters()
        }
        assert not shared
        assert plain[-1].out_features == plain[-1].weight.shape[0] == plain(x).shape[1]
    with pytest.raises(ValueError, match="task is 3, wanted an int from 0 to 2"):
        to_plain(net, 3)


def test_a_network_wants_an_active_task():
    with pytest.raises(RuntimeError, match="no task is active"):
        made("shared")(torch.zeros(1, *tiny.SHAPE))


def with_norms() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4)
    )


def train_forward(net: ImportanceNetwork, task: int) -> None:
    """What moves running statistics."""
    with net.train().task(task), torch.no_grad():
        net(torch.randn(32, 8) * (task + 1) + task)


@pytest.mark.parametrize(
    ("options", "norms"),
    [
        ({"classes": [2, 2, 2]}, None),
        ({"classes": [2, 2, 2]}, "frozen"),
        ({"classes": [2, 3, 4], "growing": True}, None),
        ({}, None),
        ({}, "task"),
    ],
)
def test_a_later_task_does_not_move_statistics_that_an_earlier_one_needs(options, norms) -> None:
    net = to_importance(with_norms(), 3, norms=norms, **options)
    is_task = norms == "task" or (norms is None and "classes" in options and len(options) == 1)
    assert isinstance(net.model[1], TaskBatchNorm1d) == is_task
    assert type(net.model[3]) is nn.LayerNorm  # the penalty holds its affine
    net.begin_task(0)
    before = {n: b.clone() for n, b in net.named_buffers()}
    train_forward(net, 0)
    assert any(not torch.equal(b, before[n]) for n, b in net.named_buffers())
    net.finish_task(0)
    x = torch.randn(5, 8)

    def logits() -> Tensor:
        with torch.no_grad(), net.eval().task(0):
            return net(x)

    kept = logits()
    loaded = to_importance(with_norms(), 3, norms=norms, **options)
    loaded.load_state_dict(net.state_dict())
    for other in (net, loaded):
        other.begin_task(1)
        for _ in range(3):
            train_forward(other, 1)
    assert torch.equal(logits(), kept)
    with torch.no_grad(), loaded.eval().task(0):
        assert torch.equal(loaded(x), kept)
    plain = to_plain(net, 0)
    # Of fewer outputs a product may round otherwise.
    torch.testing.assert_close(plain(x), kept, rtol=1e-6, atol=1e-6)
    plain.train()(torch.randn(9, 8))  # an ordinary module again
    assert not torch.equal(plain.eval()(x), kept)


def test_shared_statistics_are_moved_and_warned_of() -> None:
    with pytest.warns(ConversionWarning, match=r"'1' keep running statistics"):
        net = to_importance(with_norms(), 2, classes=[2, 2], norms="shared")
    net.finish_task(0)
    before = net.get_buffer("model.1.running_mean").clone()
    train_forward(net, 1)
    assert not torch.equal(net.get_buffer("model.1.running_mean"), before)
    with pytest.raises(ValueError, match="norms is 'own', wanted one of task, frozen, shared"):
        to_importance(with_norms(), 2, norms="own")


def test_task_norms_that_a_model_has_are_its_own() -> None:
    model = nn.Sequential(nn.Linear(8, 16), TaskBatchNorm1d(16, 2), nn.Linear(16, 4))
    net = to_importance(model, 2, classes=[2, 2])
    assert all(type(norm) is nn.BatchNorm1d for norm in net.model[1].norms)
