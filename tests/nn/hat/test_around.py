"""What surrounds a network: compilation, autocast, dtypes, and another process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from maskcl.nn import HATNetwork, to_hat
from tests.nn.zoo import MODELS, images

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _compile_afresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["residual", "prenorm", "concat"])
def test_compiles_as_one_graph(name: str) -> None:
    net, x = to_hat(MODELS[name](), 2, images(2), classes=[2, 3]).eval(), images(6)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    scale = torch.tensor(2.0)
    with net.task(1, scale):
        for value in (2.0, 5.0):
            scale.fill_(value)
            results = []
            for run in (net, compiled):
                net.zero_grad()
                out = run(x)
                (out.square().sum() + net.sparsity()).backward()
                results.append(
                    [out, *(p.grad for p in net.task_parameters(1) if p.grad is not None)]
                )
            assert len(results[0]) == len(results[1]) > 4
            torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)
    with torch.no_grad(), net.task(1):
        torch.testing.assert_close(compiled(x), net(x))


def test_annealing_does_not_recompile() -> None:
    net, x = to_hat(MODELS["mlp"](), 1, images(2)), images(4)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    scale = torch.tensor(1.0)
    for value in (1.0, 2.0, 3.0):
        scale.fill_(value)
        with net.task(0, scale):
            compiled(x)
    assert counter.frame_count == 1


def test_inductor_runs_it() -> None:
    net, x = to_hat(MODELS["mlp"](), 1, images(2)).eval(), images(4)
    compiled = torch.compile(net, fullgraph=True)
    with torch.no_grad(), net.task(0):
        torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("name", list(MODELS))
def test_bfloat16_autocast_trains(name: str) -> None:
    net = to_hat(MODELS[name](), 2, images(2), classes=[2, 3])
    with net.task(0, 1.0), torch.autocast("cpu", torch.bfloat16):
        out = net(images(8))
        sparsity = net.sparsity()
        assert out.dtype == torch.bfloat16
        assert sparsity.dtype == torch.float32
        (out.float().square().sum() + sparsity).backward()
    for parameter in net.task_parameters(0):
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert bool(parameter.grad.isfinite().all())


def test_float64_networks_have_float64_masks() -> None:
    net = to_hat(MODELS["conv"](), 1, images(2)).double()
    with net.task(0, 2.0):
        out = net(images(4).double())
        assert out.dtype == net.sparsity().dtype == torch.float64
    with net.task(0):
        assert net(images(4).double()).dtype == torch.float64


def test_channels_last_convolutions() -> None:
    net = to_hat(MODELS["residual"](), 1, images(2)).eval()
    x = torch.randn(4, 1, 4, 4)
    with net.task(0, 1.5):
        wanted = net(x)
        found = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, wanted)


def trained(name: str) -> HATNetwork:
    """A network whose state differs from a fresh one's everywhere, with one finished task."""
    torch.manual_seed(7)
    net = to_hat(MODELS[name](), 3, images(2), classes=[2, 3, 4]).train()
    with torch.no_grad():
        for k in range(3):
            with net.task(k):
                net(images(16, seed=k))
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        net.finish_task(1)
        net.embeddings[1].neg_()  # from here on only the recorded bits tell its units
    return net.eval()


@torch.no_grad()
def all_logits(net: HATNetwork) -> list[torch.Tensor]:
    found = []
    for k in range(net.num_tasks):
        with net.task(k):
            found.append(net(images(10, seed=5)))
    return found


LOAD = """
import sys, torch
from maskcl.nn import to_hat
from tests.nn.hat.test_around import all_logits
from tests.nn.zoo import MODELS, images
torch.set_num_threads({threads})
for name in sys.argv[2:]:
    net = to_hat(MODELS[name](), 3, images(2), classes=[2, 3, 4]).eval()
    net.load_state_dict(torch.load(f"{{sys.argv[1]}}/{{name}}.pt", weights_only=True))
    torch.save([*all_logits(net), *net.protection().out_tasks], f"{{sys.argv[1]}}/{{name}}.out")
"""


def test_state_dict_in_a_new_process_gives_identical_logits(tmp_path: Path) -> None:
    wanted = {}
    for name in MODELS:
        net = trained(name)
        torch.save(net.state_dict(), tmp_path / f"{name}.pt")
        wanted[name] = [*all_logits(net), *net.protection().out_tasks]
    code = LOAD.format(threads=torch.get_num_threads())
    subprocess.run([sys.executable, "-c", code, str(tmp_path), *MODELS], cwd=ROOT, check=True)
    for name, tensors in wanted.items():
        found = torch.load(tmp_path / f"{name}.out", weights_only=True)
        assert all(torch.equal(a, b) for a, b in zip(found, tensors, strict=True)), name


def test_state_dict_holds_tensors_of_the_network_alone() -> None:
    net = to_hat(
        nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), 2, torch.randn(2, 4)
    )
    norm = [
        f"model.1.norms.{k}.{name}" for k in range(2) for name in net.model[1].norms[0].state_dict()
    ]
    layers = [f"model.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")]
    own = ["tasks", "finished", "embeddings.0", "embeddings.1"]
    assert sorted(net.state_dict()) == sorted([*norm, *layers, *own])
