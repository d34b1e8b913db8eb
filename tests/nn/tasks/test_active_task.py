"""The active task is the caller's: threads, coroutines, recomputation and compiled code."""

from __future__ import annotations

import asyncio
import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import maskcl
from maskcl.nn import HATNetwork, PiggybackNetwork, TaskNetwork

TASKS = 3
IMAGES = torch.randn(6, 3, 8, 8)


def model() -> nn.Module:
    conv = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*conv, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4))


def hat() -> HATNetwork:
    torch.manual_seed(0)
    return maskcl.nn.to_hat(model(), TASKS, IMAGES, classes=[4] * TASKS)


def piggyback() -> PiggybackNetwork:
    torch.manual_seed(0)
    net = maskcl.nn.to_piggyback(model(), TASKS, classes=[4] * TASKS, norms="task")
    for task in range(TASKS):
        net.begin_task(task, init=1.0, spread="uniform", threshold=0.0)
        net.finish_task(task)
    return net


def importance() -> TaskNetwork:
    torch.manual_seed(0)
    return maskcl.nn.to_importance(model(), TASKS, classes=[4] * TASKS)


NETWORKS = {"hat": hat, "piggyback": piggyback, "importance": importance}
every_network = pytest.mark.parametrize("name", NETWORKS)


def finished(name: str) -> TaskNetwork:
    """With all tasks finished, in evaluation, outputs that differ from task to task."""
    net = NETWORKS[name]()
    for task in range(TASKS):
        if not net.finished[task]:
            net.finish_task(task)
    return net.eval()


@torch.no_grad()
def answers(net: TaskNetwork) -> list[Tensor]:
    found = []
    for task in range(TASKS):
        with net.task(task):
            found.append(net(IMAGES))
    assert not torch.equal(found[0], found[1])
    return found


@every_network
def test_threads_of_a_pool_each_have_their_own_task(name: str) -> None:
    net = finished(name)
    wanted = answers(net)
    together = threading.Barrier(2)

    def serve(task: int) -> bool:
        good = True
        for _ in range(20):
            together.wait()
            with torch.inference_mode(), net.task(task):
                together.wait()  # both are inside
                good = good and torch.equal(net(IMAGES), wanted[task])
        return good

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(serve, [0, 1]))


@every_network
def test_a_thread_begins_without_a_task(name: str) -> None:
    net, said = finished(name), []

    def call() -> None:
        try:
            net(IMAGES)
        except RuntimeError as error:
            said.append(str(error))

    with net.task(0):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert len(said) == 1 and "no task is active here" in said[0] and "thread" in said[0]


@every_network
def test_coroutines_in_turns_each_have_their_own_task(name: str) -> None:
    net = finished(name)
    wanted = answers(net)

    async def serve(task: int) -> None:
        for _ in range(5):
            with net.task(task):
                await asyncio.sleep(0)
                assert torch.equal(net(IMAGES), wanted[task])
                await asyncio.sleep(0)
                with net.task((task + 1) % TASKS):
                    await asyncio.sleep(0)
                    assert torch.equal(net(IMAGES), wanted[(task + 1) % TASKS])
                assert torch.equal(net(IMAGES), wanted[task])

    async def both() -> None:
        await asyncio.gather(*(serve(task) for task in range(TASKS)))

    with torch.no_grad():  # of the thread: coroutines cannot have their own
        asyncio.run(both())


@every_network
def test_what_was_active_returns_on_every_way_out(name: str) -> None:
    net, other = finished(name), finished(name)
    wanted = answers(net)
    entering = net.task(2)
    with net.task(0), torch.no_grad():
        with pytest.raises(KeyError), net.task(1):
            raise KeyError
        assert torch.equal(net(IMAGES), wanted[0])
        with other.task(1), entering, entering:
            assert torch.equal(net(IMAGES), wanted[2])
            assert torch.equal(other(IMAGES), wanted[1])
        assert torch.equal(net(IMAGES), wanted[0])
    with pytest.raises(RuntimeError, match="no task is active here"):
        net(IMAGES)


@every_network
def test_a_copy_of_a_network_knows_nothing_of_the_task(name: str) -> None:
    net = finished(name)
    with net.task(0):
        twin = copy.deepcopy(net)
    with pytest.raises(RuntimeError, match="no task is active here"):
        twin(IMAGES)
    assert all(map(torch.equal, answers(twin), answers(net)))


@every_network
def test_what_changes_inside_is_seen_by_the_next_forward(name: str) -> None:
    net = finished(name)
    with torch.no_grad(), net.task(1):
        before = net(IMAGES)
        state = {k: v.double() for k, v in net.state_dict().items() if v.is_floating_point()}
        net.double()
        assert net(IMAGES.double()).dtype == torch.float64
        net.load_state_dict({**net.state_dict(), **state}, assign=True)
        assert torch.allclose(net(IMAGES.double()), before.double(), atol=1e-5)


class Checkpointed(nn.Module):
    """A layer, a checkpointed part of two layers, an output."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.block = nn.Sequential(
            nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh()
        )
        self.head = nn.Linear(16, 4)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if not self.training or self.kind == "none" or not h.requires_grad:
            h = self.block(h)
        elif self.kind == "sequential":
            h = checkpoint_sequential(self.block, 2, h, use_reentrant=True)
        else:
            # Not the block itself: the part begins with an operation of no module.
            part = lambda h: self.block(h * 1.0)  # noqa: E731
            h = checkpoint(part, h, use_reentrant=self.kind == "reentrant")
        return self.head(h)


def gradients(method: str, kind: str) -> list[Tensor]:
    """Of one loss of three tasks, some of it outside of any task."""
    torch.manual_seed(0)
    part, whole = (kind, "none") if "whole" not in kind else ("none", kind)
    x = torch.randn(5, 8, requires_grad=True)
    if method == "hat":
        net = maskcl.nn.to_hat(Checkpointed(part), TASKS, torch.zeros(2, 8), classes=[4] * TASKS)
        net.finish_task(0)
        tasks, scale = (1, 2), 2.0
        # Only what trains has gradients; both later tasks do here.
        for parameter in net.task_parameters(2):
            parameter.requires_grad_(True)
    else:
        net = maskcl.nn.to_piggyback(Checkpointed(part), TASKS, classes=[4] * TASKS, norms="task")
        net.begin_task(0, init=1.0, spread="uniform", threshold=0.0)
        net.finish_task(0)
        net.begin_task(1, init=1.0, spread="uniform", threshold=0.0)
        tasks, scale = (0, 1), None
    net.train()
    loss = torch.zeros(())
    for task in tasks:
        with net.task(task, scale):
            if whole == "none":
                y = net(x)
            else:
                y = checkpoint(net, x, use_reentrant=whole == "whole reentrant")
            loss = loss + (task + 1) * y.square().sum()
            if method == "hat":
                loss = loss + net.sparsity()
    with net.task(0):  # another task is active while backward computes again
        loss.backward()
    return [p.grad for p in net.parameters() if p.grad is not None] + [x.grad]


@pytest.mark.parametrize("method", ["hat", "piggyback"])
@pytest.mark.parametrize(
    "kind", ["not reentrant", "reentrant", "sequential", "whole", "whole reentrant"]
)
def test_recomputation_sees_what_the_forward_saw(method: str, kind: str) -> None:
    plain, found = gradients(method, "none"), gradients(method, kind)
    assert len(found) == len(plain)
    for got, wanted in zip(found, plain, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_one_graph_serves_all_tasks_in_training_and_one_in_evaluation() -> None:
    """A task is data: T tasks trained and evaluated in turn, at most 3 graphs."""
    for name in ("hat", "piggyback"):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        net: TaskNetwork = hat() if name == "hat" else maskcl.nn.to_piggyback(model(), TASKS)
        method = maskcl.HAT() if name == "hat" else maskcl.Piggyback()
        call = torch.compile(net, backend=counter, fullgraph=True)
        for task in range(TASKS):
            state = method.begin_task(net, task)
            optimizer = torch.optim.Adam(method.parameter_groups(net, task), lr=0.01)
            net.train()
            for step in range(2):
                method.before_step(net, state, step)
                optimizer.zero_grad()
                with net.task(task, state.scale):
                    (call(IMAGES).square().mean() + method.loss_term(net, state)).backward()
                method.after_backward(net, state)
                optimizer.step()
            method.end_task(net, state)
            net.eval()
            for earlier in range(task + 1):
                with net.task(earlier), torch.no_grad():
                    assert torch.equal(call(IMAGES), net(IMAGES))
        assert counter.frame_count <= 3, name


def test_the_whole_loss_compiles_as_one_graph_for_all_tasks() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    net, method = hat(), maskcl.HAT()
    state = method.begin_task(net, 0)

    def loss(x: Tensor) -> Tensor:
        return net(x).square().mean() + method.loss_term(net, state)

    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for task in range(TASKS):
        state = method.begin_task(net, task)
        method.before_step(net, state, 0.5)
        with net.task(task, state.scale):
            torch.testing.assert_close(compiled(IMAGES), loss(IMAGES))
        method.end_task(net, state)
    assert counter.frame_count == 1


@pytest.mark.parametrize("name", ["hat", "piggyback"])
def test_compiled_code_has_the_task_of_its_thread(name: str) -> None:
    torch._dynamo.reset()
    net = finished(name)
    wanted = answers(net)
    call = torch.compile(net, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), net.task(2):
        assert torch.equal(call(IMAGES), wanted[2])
    together = threading.Barrier(2)

    def serve(task: int) -> bool:
        good = True
        for _ in range(10):
            together.wait()
            with torch.no_grad(), net.task(task):
                together.wait()
                good = good and torch.equal(call(IMAGES), wanted[task])
        return good

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(serve, [0, 1]))


def test_a_generator_that_yields_inside_a_task_is_noticed_when_it_ends() -> None:
    net = finished("hat")
    wanted = answers(net)

    def stream(task: int, rounds: int):
        with net.task(task):
            for _ in range(rounds):
                yield net(IMAGES)

    first, second = stream(0, 1), stream(1, 2)
    next(first)
    next(second)
    with pytest.raises(RuntimeError, match=r"net\.task\(0\) was left while another .* a generator"):
        next(first)
    assert torch.equal(next(second), wanted[1])  # its own task is still the innermost
    with pytest.raises(StopIteration):
        next(second)
    with pytest.raises(RuntimeError, match="no task is active here"):
        net(IMAGES)
