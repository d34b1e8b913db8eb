"""What surrounds a PiggybackNetwork: compilation, autocast, and several processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from maskcl.nn import PiggybackNetwork
from tests.helpers import in_two_processes
from tests.nn.piggyback.zoo import FROZEN, begin, frozen, logits, train
from tests.nn.zoo import images


@pytest.fixture(autouse=True)
def _compile_afresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("name", "levels"), [("conv", "binary"), ("tokens", "ternary"), ("tokens", "topk")]
)
def test_compiles_as_one_graph(name: str, levels: str) -> None:
    net, inputs = frozen(name, levels, "task"), FROZEN[name][1]
    train(net, 0, inputs)
    begin(net, 1)
    net.eval()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    results = []
    for run in (net, compiled):
        net.zero_grad()
        with net.task(1):
            out = run(inputs(6))
        out.square().sum().backward()
        results.append([out, *(p.grad for p in net.task_parameters(1))])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    net.finish_task(1)
    for task in range(2):
        with torch.no_grad(), net.task(task):
            torch.testing.assert_close(compiled(inputs(6)), net(inputs(6)))


def test_training_does_not_recompile() -> None:
    net = frozen("mlp")
    begin(net, 0)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    step = torch.optim.AdamW(net.task_parameters(0), lr=1e-2)
    for seed in range(4):
        with net.task(0):
            compiled(images(4, seed=seed)).square().sum().backward()
        step.step()
        step.zero_grad()
    assert counter.frame_count == 1


def test_inductor_runs_it() -> None:
    net, x = frozen("mlp"), images(4)
    train(net, 0)
    begin(net, 1)
    net.eval()
    compiled = torch.compile(net, fullgraph=True)
    for task in range(2):
        with torch.no_grad(), net.task(task):
            torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("name", ["mlp", "conv", "prenorm", "tokens"])
def test_autocast(name: str) -> None:
    net, inputs = frozen(name), FROZEN[name][1]
    train(net, 0, inputs)
    begin(net, 1)
    net.eval()
    for task in range(2):
        wanted = logits(net, task, inputs(9))
        with net.task(task), torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(inputs(9))
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), wanted, rtol=0.1, atol=0.1)
    out.float().square().sum().backward()
    mixed = [s.grad.clone() for s in net.scores()]
    net.zero_grad()
    with net.task(1):
        net(inputs(9)).square().sum().backward()
    for found, score in zip(mixed, net.scores()):
        assert found.dtype == torch.float32
        assert torch.cosine_similarity(found.flatten(), score.grad.flatten(), dim=0) > 0.98


def test_gradients_reach_the_input_through_a_finished_task() -> None:
    net, x = frozen("conv"), images(3).requires_grad_()
    train(net, 0)
    net.eval()
    with net.task(0):
        net(x).square().sum().backward()
    assert bool(x.grad.any())
    assert all(p.grad is None for p in net.parameters())


def _loss(run, net: PiggybackNetwork, x: torch.Tensor) -> torch.Tensor:
    with net.task(1):
        return run(x).square().mean()


def _process(rank: int, folder: str) -> None:
    """One of two: rank 1 starts with other weights, other masks and nothing finished."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    net = frozen("conv", norms="task")
    if rank == 0:
        train(net, 0)
    else:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1.0)
    begin(net, 1, init=0.01 + rank)
    net.eval()
    module = DistributedDataParallel(net)
    x = images(8)
    _loss(module, net, x[4 * rank : 4 * rank + 4]).backward()
    found = {
        "logits": logits(net, 0, x),
        "finished": net.finished.tolist(),
        "hash": net.base_hash(),
        "grads": [p.grad for p in net.task_parameters(1)],
        "off": net.off(0),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_share_words_and_have_the_gradient_of_one(tmp_path: Path) -> None:
    in_two_processes(_process, tmp_path)
    net, x = frozen("conv", norms="task"), images(8)
    train(net, 0)
    begin(net, 1)
    net.eval()
    _loss(net, net, x).backward()
    for rank in range(2):
        found = torch.load(os.path.join(tmp_path, f"{rank}.pt"))
        assert found["finished"] == [True, False, False]
        assert found["hash"] == net.base_hash() and found["off"] == net.off(0)
        torch.testing.assert_close(found["logits"], logits(net, 0, x))
        torch.testing.assert_close(found["grads"], [p.grad for p in net.task_parameters(1)])
