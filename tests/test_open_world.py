"""Tasks that come later, growth, forgetting and inference, all in one network's life."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import maskcl
from maskcl.checkpoint import CheckpointError, load_network
from maskcl.nn.tasks.network import TaskNetwork
from tests import tiny
from tests.helpers import in_two_processes

KINDS = {
    "hat": (maskcl.HAT, tiny.network),
    "piggyback": (maskcl.Piggyback, tiny.piggyback),
    "mas": (maskcl.MAS, tiny.importance),
}
FORGET = ["hat", "piggyback"]
X = tiny.samples(0, seed=1)[0]


def start(kind: str, model: str, tasks: int, space: str | None = None) -> tuple[Any, Any]:
    method, make = KINDS[kind]
    net = make(model, tasks)
    net.inference = maskcl.TaskInference(space) if space else None
    return net, method()


def learn(net: TaskNetwork, method: Any, task: int) -> None:
    tiny.train_task(net, method, task, tiny.OPTIMIZERS["adam"], steps=3)


def known(net: TaskNetwork) -> dict[int, Tensor]:
    x = X.to(next(net.parameters()).dtype)
    return {k: tiny.logits(net, k, x) for k in torch.nonzero(net.finished).flatten().tolist()}


def assert_kept(net: TaskNetwork, before: dict[int, Tensor], *gone: int) -> None:
    net.check_kept()
    after = known(net)
    assert all(torch.equal(after[k], out) for k, out in before.items() if k not in gone)


def copied(net: Any, kind: str, model: str, tasks: int) -> Any:
    """By deepcopy and pickle, and the state in a network of two tasks more."""
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert_kept(twin, known(net))
    wider, _ = start(kind, model, tasks)
    wider.load_state_dict(net.state_dict())
    assert_kept(wider, known(net))
    return wider


@pytest.mark.parametrize("space", ["shared", "masked"])
@pytest.mark.parametrize("model", ["mlp", "conv", "layernorm", "residual"])
@pytest.mark.parametrize("kind", FORGET)
def test_finished_tasks_live_through_all_of_it(kind: str, model: str, space: str) -> None:
    net, method = start(kind, model, 2, space)
    steps: list[Callable[[], Any]] = [lambda: net.add_tasks(1)]
    if kind == "hat":
        steps = [lambda: net.grow(3, seed=1), *steps, lambda: net.grow(6)]
    learn(net, method, 0)
    for change in steps:
        before, found = known(net), net.infer(X)
        change()
        assert_kept(net, before)
        assert torch.equal(net.infer(X).evidence[:, 0], found.evidence[:, 0])
        assert torch.equal(net.infer(X).outputs, found.outputs)
    for task in (1, 2):
        before = known(net)
        learn(net, method, task)
        assert_kept(net, before)
    before, found = known(net), net.infer(X)
    net.forget_task(0, reset=True)
    assert_kept(net, before, 0)
    assert net.inference.tasks == [1, 2]
    assert not any(n.startswith("inference.statistics.0.") for n in net.state_dict())
    if space == "masked":  # each task's evidence is from its own statistics alone
        assert torch.equal(net.infer(X).evidence[:, 1:], found.evidence[:, 1:])
    net = copied(net, kind, model, 5)
    before = known(net)
    for task in (0, 4):
        learn(net, method, task)
    assert_kept(net, before)
    assert net.infer(X).evidence.isfinite().all(0).tolist() == [True, True, True, False, True]


@pytest.mark.parametrize("model", ["mlp", "conv", "layernorm"])
def test_a_grown_state_of_fewer_tasks_loads(model: str) -> None:
    net, method = start("hat", model, 2)
    learn(net, method, 0)
    net.grow(3)
    learn(net, method, 1)
    state, before = net.state_dict(), known(net)
    for load in (
        lambda other: other.load_state_dict(state),
        lambda other: load_network(other, {f"network.{n}": t for n, t in state.items()}),
    ):
        other, _ = start("hat", model, 4)
        load(other)
        assert other.finished.tolist() == [True, True, False, False]
        assert_kept(other, before)
        learn(other, method, 3)
        assert_kept(other, before)


def test_a_grown_state_that_does_not_fit_leaves_the_network() -> None:
    net, _ = start("hat", "mlp", 3)
    net.grow(3)
    state = net.state_dict()
    tensors = {f"network.{name}": tensor for name, tensor in state.items()}
    for model, tasks, message in (
        ("mlp", 2, r"the state is of 3 tasks, the network has 2: net\.add_tasks\(1\)"),
        ("conv", 3, "the state is of a network of 2 masked layers, this one has 3"),
    ):
        other, _ = start("hat", model, tasks)
        before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
        with pytest.raises(CheckpointError, match=message):
            load_network(other, tensors)
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(state)
        after = other.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    # All fits but one tensor, which is found before anything grows.
    other, _ = start("hat", "mlp", 3)
    with pytest.raises(CheckpointError, match="bfloat16"):
        load_network(other.bfloat16(), tensors)
    assert "growth" not in other.state_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_every_network_can_be_pickled(kind: str) -> None:
    net, method = start(kind, "conv", 2, "shared")
    learn(net, method, 0)
    twin = pickle.loads(pickle.dumps(net))
    assert_kept(twin, known(net))
    assert torch.equal(twin.infer(X).outputs, net.infer(X).outputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("space", ["shared", "masked"])
@pytest.mark.parametrize("kind", FORGET)
def test_a_cast_network_infers(kind: str, space: str, dtype: torch.dtype) -> None:
    net, method = start(kind, "conv", 2, space)
    for task in (0, 1):
        learn(net, method, task)
    x = torch.cat([tiny.samples(0)[0], tiny.samples(1)[0]])
    found = net.infer(x).task
    cast = net.to(dtype).infer(x.to(dtype)).task
    assert (cast == found).float().mean() > 0.9
    net.inference.measure(
        net, 0, maskcl.methods.TaskData(lambda: [(x.to(dtype), torch.arange(48) % 2)])
    )
    assert all(s.is_whole() for s in net.inference.statistics.values())


@pytest.mark.parametrize("space", ["shared", "masked"])
@pytest.mark.parametrize("kind", FORGET)
def test_runs_that_differ_in_a_forgotten_task_end_alike(
    kind: str, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nets, samples = [], tiny.samples
    for other in (0, 50):
        net, method = start(kind, "conv", 2, space)
        learn(net, method, 0)
        net.add_tasks(1, classes=[2])
        if kind == "hat":
            net.grow(3)
        learn(net, method, 1)
        monkeypatch.setattr(
            tiny, "samples", lambda task, *rest, other=other: samples(task + other, *rest)
        )
        learn(net, method, 2)
        monkeypatch.setattr(tiny, "samples", samples)
        net.infer(X)
        nets.append(net)
    first, second = (net.state_dict() for net in nets)
    assert any(
        not torch.equal(t, second[n]) for n, t in first.items() if t.shape == second[n].shape
    )
    for net in nets:
        record = net.forget_task(2, reset=True, seed=7)
        assert "inference.statistics.2.mean" in record.tensors
        assert net.inference._scorer is None, "what was made of the statistics is still there"
    first, second = (net.state_dict() for net in nets)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("name", ["momentum", "adam"])
@pytest.mark.parametrize("kind", FORGET)
def test_a_task_forgotten_while_it_trains_cannot_go_on(kind: str, name: str) -> None:
    net, method = start(kind, "conv", 2)
    learn(net, method, 0)
    before, (x, y) = known(net), tiny.samples(1)
    net.train()
    state = method.begin_task(net, 1)
    optimizer = tiny.OPTIMIZERS[name](method.parameter_groups(net, 1))
    method.protect(optimizer, net, state)

    def step() -> None:
        method.before_step(net, state, 0.5)
        optimizer.zero_grad()
        with net.task(1, state.scale):
            loss = torch.nn.functional.cross_entropy(net(x), y) + method.loss_term(net, state)
        loss.backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)

    step()
    net.forget_task(1, reset=True)
    as_new = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    optimizer.step()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in as_new.items())
    with pytest.raises(RuntimeError, match=r"forgotten after it began|nor in training"):
        step()
    with pytest.raises(RuntimeError, match=r"forgotten"):
        method.end_task(net, state, tiny.task_data(1))
    assert net.finished.tolist() == [True, False]
    assert_kept(net, before)
    learn(net, method, 1)
    assert_kept(net, before)


def test_a_task_whose_first_layer_is_closed_says_nothing_of_itself() -> None:
    net, method = start("hat", "mlp", 2, "masked")
    learn(net, method, 0)
    state = method.begin_task(net, 1)
    with torch.no_grad():
        net.embeddings[1].fill_(-1.0)
    method.end_task(net, state, tiny.task_data(1))
    assert net.infer(X).evidence.isfinite().all()


def _shared(rank: int, folder: str) -> None:
    """Two tasks of a network with norms, each process with half of the samples."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    net, method = start("hat", "conv", 2, "masked")
    for task in (0, 1):
        x, y = (t[rank::2] for t in tiny.samples(task))
        net.train()
        state = method.begin_task(net, task)
        optimizer = tiny.OPTIMIZERS["adam"](method.parameter_groups(net, task))
        method.protect(optimizer, net, state)
        wrapped = torch.nn.parallel.DistributedDataParallel(net, find_unused_parameters=True)
        for step in (0.0, 0.5, 1.0):
            method.before_step(net, state, step)
            optimizer.zero_grad()
            with net.task(task, state.scale):
                loss = torch.nn.functional.cross_entropy(wrapped(x), y)
                loss = loss + method.loss_term(net, state)
            loss.backward()
            method.after_backward(net, state)
            optimizer.step()
            method.after_step(net, state)
        data = maskcl.methods.TaskData(
            lambda x=x, y=y: [(x, y)], lambda net, batch: (net(batch[0]), batch[1])
        )
        method.end_task(net, state, data)
    torch.save(net.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_processes_agree_on_norms_and_on_what_was_measured(tmp_path: Path) -> None:
    in_two_processes(_shared, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert float(first["inference.statistics.1.count"].sum()) == 24
