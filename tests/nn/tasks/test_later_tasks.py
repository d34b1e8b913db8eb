"""Tasks, classes and states that come later: finished tasks' outputs keep every bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import maskcl
from maskcl.checkpoint import CheckpointError, load_network
from maskcl.nn import to_hat, to_importance, to_piggyback
from tests import tiny


class Loose(nn.Module):
    """A loose parameter, a BatchNorm and a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 16))
        self.first = nn.Linear(36, 16)
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Linear(16, 12)
        self.after = nn.LayerNorm(12)
        self.head = nn.Linear(12, tiny.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x.flatten(1)) + self.token).relu()
        return self.head(self.after(self.second(x)).relu())


EXAMPLE = torch.zeros(2, *tiny.SHAPE)
METHODS = {
    "hat": maskcl.HAT(sparsity=0.2),
    "hat-shared": maskcl.HAT(sparsity=0.2),
    "piggyback": maskcl.Piggyback(spread="uniform"),
    "piggyback-ternary": maskcl.Piggyback(levels="ternary", spread="uniform"),
    "importance": maskcl.MAS(),
    "growing": maskcl.EWC(),
}


def made(kind: str, tasks: int, model: Callable[[], nn.Module] | str = Loose) -> Any:
    torch.manual_seed(0)
    module = tiny.MODELS[model]() if isinstance(model, str) else model()
    heads = [tiny.CLASSES] * tasks
    match kind:
        case "hat":
            return to_hat(module, tasks, EXAMPLE, classes=heads)
        case "hat-shared":
            return to_hat(module, tasks, EXAMPLE)
        case "importance":
            return to_importance(module, tasks, classes=heads)
        case "growing":
            seen = [tiny.CLASSES * (task + 1) for task in range(tasks)]
            return to_importance(module, tasks, classes=seen, growing=True)
    levels = "ternary" if kind.endswith("ternary") else "binary"
    return to_piggyback(module, tasks, classes=heads, levels=levels, norms="task")


def train(net: Any, kind: str, task: int) -> None:
    tiny.train_task(net, METHODS[kind], task, tiny.OPTIMIZERS["adam"], steps=4)


def outputs(net: Any, tasks: int) -> list[Tensor]:
    x, _ = tiny.samples(0, seed=1)
    return [tiny.logits(net, task, x) for task in range(tasks)]


def assert_same(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", METHODS)
def test_added_tasks_train_and_the_old_keep_their_bits(kind):
    net = made(kind, 2)
    train(net, kind, 0)
    train(net, kind, 1)
    before = outputs(net, 2)
    bits = net.kept_bits()
    net.add_tasks(2)
    assert net.num_tasks == 4
    assert net.finished.tolist() == [True, True, False, False]
    assert_same(outputs(net, 2), before)
    assert net.kept_bits().keys() == bits.keys()
    net.check_kept()
    if kind in ("importance", "growing"):  # later tasks move what they share
        net.begin_task(2)
        return
    for task in (2, 3):
        train(net, kind, task)
    assert_same(outputs(net, 2), before)
    assert not torch.equal(outputs(net, 4)[3], outputs(net, 4)[2])


@pytest.mark.parametrize("kind", METHODS)
def test_two_and_two_tasks_are_four_but_for_what_is_drawn(kind):
    """Names, shapes, norms, copies and records; heads and embeddings are drawn later."""
    net, whole = made(kind, 2), made(kind, 4)
    net.add_tasks(2)
    found, wanted = net.state_dict(), whole.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        drawn = "head" in name or name.startswith("embeddings.")
        assert found[name].shape == tensor.shape, name
        assert drawn or torch.equal(found[name], tensor), name
    assert [p.requires_grad for p in net.parameters()] == [
        p.requires_grad for p in whole.parameters()
    ]
    if kind == "growing":
        head = "model.head.linear.weight"
        assert torch.equal(found[head][:4], made(kind, 2).state_dict()[head])
        assert not net.importances["head.linear.weight"].any()
        assert torch.equal(net.anchors["head.linear.weight"], found[head])


@pytest.mark.parametrize("kind", METHODS)
def test_what_is_drawn_follows_torchs_generator(kind):
    nets = [made(kind, 2) for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2), strict=True):
        torch.manual_seed(seed)
        net.add_tasks(1)
    first, second, other = (net.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)
    if kind != "hat-shared":
        assert any(not torch.equal(first[name], other[name]) for name in first)


def test_new_norms_start_as_the_first_did_not_as_they_are():
    net = made("hat", 1)
    start = copy.deepcopy(net.model.norm.norms[0].state_dict())
    train(net, "hat", 0)
    net.add_tasks(1)
    now = net.model.norm.norms[1].state_dict()
    assert all(torch.equal(now[name], value) for name, value in start.items())
    assert not torch.equal(now["running_mean"], net.model.norm.norms[0].running_mean)
    assert net.model.norm.norms[1].training == net.training


@pytest.mark.parametrize("kind", ["hat", "piggyback", "importance"])
def test_new_parts_have_the_dtype_of_the_old(kind):
    net = made(kind, 1).double()
    net.add_tasks(1)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    x = tiny.samples(0)[0].double()
    if kind == "piggyback":
        net.begin_task(1)
    assert tiny.logits(net, 1, x).dtype == torch.float64


@pytest.mark.parametrize("kind", ["hat", "piggyback"])
def test_task_bits_past_64(kind):
    net = made(kind, 64, "mlp")
    train(net, kind, 0)
    train(net, kind, 63)
    before = [*outputs(net, 1), outputs_of(net, 63)]
    net.add_tasks(3)
    train(net, kind, 65)
    now = [*outputs(net, 1), outputs_of(net, 63)]
    assert_same(now, before)
    if kind == "hat":
        assert net.tasks.shape[1] == 2
        assert torch.equal(net.tasks[:, 1] >> 1 & 1 != 0, net.hard_mask(65))
    twin = made(kind, 67, "mlp")
    twin.load_state_dict(net.state_dict())
    assert_same(outputs(twin, 1), before[:1])
    assert torch.equal(outputs_of(twin, 65), outputs_of(net, 65))


def outputs_of(net: Any, task: int) -> Tensor:
    return tiny.logits(net, task, tiny.samples(0, seed=1)[0])


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("by", ["load_state_dict", "load_network", "nested"])
def test_a_state_of_two_tasks_fits_a_network_of_four(kind, by):
    net = made(kind, 2)
    train(net, kind, 0)
    train(net, kind, 1)
    torch.manual_seed(5)
    whole = made(kind, 4)
    own = {n: t.clone() for n, t in whole.state_dict().items()}
    state = net.state_dict()
    if by == "load_state_dict":
        whole.load_state_dict(state)
    elif by == "load_network":
        load_network(whole, {f"network.{n}": t for n, t in state.items()})
    else:
        nn.ModuleList([whole]).load_state_dict({f"0.{n}": t for n, t in state.items()})
    assert whole.finished.tolist() == [True, True, False, False]
    assert_same(outputs(whole, 2), outputs(net, 2))
    for name, tensor in own.items():
        if name not in state:
            assert torch.equal(whole.state_dict()[name], tensor), name
    assert "finished" in state
    assert len(state["finished"]) == 2
    for task in (2, 3):
        train(whole, kind, task)
    if kind not in ("importance", "growing"):
        assert_same(outputs(whole, 2), outputs(net, 2))


@pytest.mark.parametrize("kind", METHODS)
def test_a_state_of_more_tasks_says_so_and_changes_nothing(kind):
    net, whole = made(kind, 2), made(kind, 4)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter += 1
    wanted = r"the state is of 4 tasks, the network has 2: net\.add_tasks\(2\) first"
    with pytest.raises(RuntimeError, match=wanted):
        net.load_state_dict(whole.state_dict())
    with pytest.raises(CheckpointError, match=wanted):
        load_network(net, {f"network.{n}": t for n, t in whole.state_dict().items()})
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


def test_a_state_of_other_heads_is_refused_as_ever():
    net = to_hat(tiny.mlp(), 2, EXAMPLE, classes=[3, 3])
    whole = made("hat", 4, "mlp")
    with pytest.raises(RuntimeError, match="size mismatch"):
        whole.load_state_dict(net.state_dict())
    state = net.state_dict()
    del state["embeddings.0"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*embeddings\.0"):
        whole.load_state_dict(state)


@pytest.mark.parametrize("kind", METHODS)
def test_bad_arguments_change_nothing(kind):
    net = made(kind, 2)
    before = {n: t.clone() for n, t in net.state_dict().items()}
    for count in (0, -1, True, 1.0, None):
        with pytest.raises(ValueError, match=r"add_tasks: count is .*, wanted an integer of at"):
            net.add_tasks(count)
    for classes in ([2], [2, 2, 2], [2, 0], [2, True], [2.0, 2]):
        with pytest.raises(ValueError, match="add_tasks: classes is "):
            net.add_tasks(2, classes)
    if kind == "growing":
        with pytest.raises(ValueError, match="from 4 and never falling"):
            net.add_tasks(2, [3, 6])
    net.begin_task(1)
    with pytest.raises(RuntimeError, match=r"task 1 is in training: net\.finish_task\(1\) first"):
        net.add_tasks(1)
    net.forget_task(1)
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(t, before[n]) for n, t in after.items())
    net.add_tasks(1)
    assert net.num_tasks == 3


def test_it_raises_where_finished_tasks_are_not_what_they_were():
    net = made("hat", 1)
    train(net, "hat", 0)
    with torch.no_grad():
        net.model.head.heads[0].weight += 1
    with pytest.raises(RuntimeError, match="add_tasks: what finished tasks need has changed"):
        net.add_tasks(1)
    assert net.num_tasks == 1


def test_a_state_of_before_knows_of_tasks_added_and_forgotten():
    """A step of a task that began before goes on only where the same tasks are finished."""
    net, method = made("hat", 2), METHODS["hat"]
    state = method.begin_task(net, 0)
    net.forget_task(0)
    net.add_tasks(1)
    method.after_backward(net, state)
    train(net, "hat", 2)
    with pytest.raises(RuntimeError, match=r"tasks \[2\] were finished or forgotten"):
        method.after_backward(net, state)


def test_an_active_task_sees_the_network_as_it_is_now():
    net = made("hat", 1)
    train(net, "hat", 0)
    x, _ = tiny.samples(0, seed=1)
    net.eval()
    with torch.no_grad(), net.task(0):
        before = net(x)
        net.add_tasks(64)
        assert torch.equal(net(x), before)


@pytest.mark.parametrize("kind", ["hat", "piggyback", "importance"])
def test_classes_of_a_task_that_is_not_finished(kind):
    net = made(kind, 3)
    train(net, kind, 0)
    before, head = outputs(net, 1), net.model.head.heads[1].weight.detach().clone()
    net.add_classes(1, 2)
    assert_same(outputs(net, 1), before)
    assert [h.out_features for h in net.model.head.heads] == [2, 4, 2]
    assert torch.equal(net.model.head.heads[1].weight[:2], head)
    train(net, kind, 1)
    if kind != "importance":
        assert_same(outputs(net, 1), before)
    with pytest.raises(RuntimeError, match=r"task 0 is finished.*net\.add_tasks\(1, classes="):
        net.add_classes(0, 1)
    with pytest.raises(ValueError, match="count is 0"):
        net.add_classes(2, 0)
    with pytest.raises(ValueError, match="task is 3"):
        net.add_classes(3, 1)
    net.begin_task(2)
    with pytest.raises(RuntimeError, match="task 2 is in training"):
        net.add_classes(2, 1)


def test_classes_of_a_growing_head():
    net = made("growing", 3)
    train(net, "growing", 0)
    before, rows = outputs(net, 2), net.model.head.linear.weight.detach().clone()
    net.add_classes(1, 3)
    assert net.model.head.classes == [2, 7, 9]
    assert torch.equal(net.model.head.linear.weight[:6], rows)
    after = outputs(net, 2)
    assert torch.equal(after[0], before[0])
    assert after[1].shape[1] == 7
    assert not net.importances["head.linear.weight"][6:].any()
    train(net, "growing", 2)
    with pytest.raises(RuntimeError, match="task 2 is finished"):
        net.add_classes(1, 1)


def test_classes_where_all_tasks_share_one_layer():
    with pytest.raises(ValueError, match="share one output layer"):
        made("hat-shared", 2).add_classes(0, 1)


def test_an_added_task_has_the_classes_asked_for():
    net = made("hat", 1)
    net.add_tasks(2, [5, 3])
    assert [h.out_features for h in net.model.head.heads] == [2, 5, 3]


def test_a_copy_and_a_pickle_take_tasks_too():
    net = made("hat", 1)
    train(net, "hat", 0)
    twin = copy.deepcopy(net)
    before = outputs(net, 1)
    twin.add_tasks(1)
    assert net.num_tasks == 1
    assert_same(outputs(twin, 1), before)
    train(twin, "hat", 1)
    assert_same(outputs(twin, 1), before)
    assert_same(outputs(net, 1), before)


def test_the_sentence_names_the_way_on():
    net = made("hat", 2)
    train(net, "hat", 0)
    with pytest.raises(RuntimeError, match="task 0 is finished; task 1 is the first that is not"):
        net.begin_task(0)
    train(net, "hat", 1)
    with pytest.raises(RuntimeError, match=r"all 2 are, and net\.add_tasks\(1\) makes room"):
        METHODS["hat"].begin_task(net, 0)


@pytest.mark.parametrize("optimizer_fn", tiny.OPTIMIZERS.values(), ids=tiny.OPTIMIZERS)
def test_an_optimizer_from_before_a_head_grew_trains_it_or_raises(optimizer_fn):
    net, method = made("growing", 1, "mlp"), METHODS["growing"]
    fresh = optimizer_fn(method.parameter_groups(net, 0))
    used = optimizer_fn(method.parameter_groups(net, 0))
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    used.step()
    net.add_tasks(1)
    rows = net.model[-1].linear.weight
    before = rows.detach().clone()
    state = method.begin_task(net, 1)
    x, y = tiny.samples(1)
    with net.task(1):
        nn.functional.cross_entropy(net(x), y + 2).backward()
    method.after_backward(net, state)
    fresh.step()
    assert (rows[2:] != before[2:]).any(1).all()
    if any("exp_avg" in s or s.get("momentum_buffer") is not None for s in used.state.values()):
        with pytest.raises(RuntimeError):
            used.step()
        method.protect(used, net, state)
        with pytest.raises((RuntimeError, ValueError)):
            used.step()


@pytest.mark.parametrize("kind", ["hat", "piggyback", "growing"])
def test_a_compiled_network_follows(kind):
    net = made(kind, 1, "mlp")
    train(net, kind, 0)
    compiled = torch.compile(net, backend="aot_eager")
    x, _ = tiny.samples(0, seed=1)
    net.eval()
    with torch.no_grad():
        with net.task(0):
            before = compiled(x)
        net.add_tasks(65)
        if kind == "piggyback":
            net.begin_task(65)
        with net.task(0):
            assert torch.equal(compiled(x), before)
        with net.task(65):
            torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("kind", METHODS)
def test_tasks_added_in_inference_mode_can_be_trained(kind):
    net = made(kind, 1)
    with torch.inference_mode():
        net.add_tasks(1)
    train(net, kind, 1)
    assert net.finished.tolist() == [False, True]
