"""A sharded tensor given to an op by hand is refused by a sentence, not by torch's dispatcher."""

from __future__ import annotations

import inspect

import pytest
import torch

from maskcl import ops
from maskcl.bench import case

dtensor = pytest.importorskip("torch.distributed.tensor", reason="torch without distributed")


@pytest.fixture(scope="module")
def mesh():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def takes_tensors(name: str) -> bool:
    return "Tensor" in str(inspect.signature(getattr(ops, name)))


@pytest.mark.parametrize("name", [name for name in sorted(ops.__all__) if takes_tensors(name)])
def test_every_op_names_the_argument_and_the_way_on(name, mesh, monkeypatch):
    original = getattr(ops, name)

    def sharded(given):
        if isinstance(given, (list, tuple)):
            return type(given)(map(sharded, given))
        if isinstance(given, torch.Tensor):
            given = given.detach()
            rows = given if given.dim() else given.view(1)
            return dtensor.distribute_tensor(rows, mesh, [dtensor.Shard(0)])
        return given

    def call(*args, **options):
        original(*map(sharded, args), **{key: sharded(value) for key, value in options.items()})

    found = case(name)
    monkeypatch.setattr(ops, name, call)
    with pytest.raises(TypeError, match=f"^{name}: .* is a DTensor, wanted an ordinary tensor"):
        found.ours()


@pytest.mark.parametrize("name", [name for name in sorted(ops.__all__) if takes_tensors(name)])
def test_one_sharded_argument_among_ordinary_ones_is_named(name, mesh, monkeypatch):
    original, found, seen = getattr(ops, name), case(name), []

    def sharded(given):
        if isinstance(given, (list, tuple)):
            return type(given)(map(sharded, given))
        if isinstance(given, torch.Tensor):
            seen.append(given)
            if chosen == [len(seen) - 1]:
                rows = given.detach() if given.dim() else given.detach().view(1)
                return dtensor.distribute_tensor(rows, mesh, [dtensor.Shard(0)])
        return given

    def call(*args, **options):
        original(*map(sharded, args), **{key: sharded(value) for key, value in options.items()})

    monkeypatch.setattr(ops, name, call)
    chosen: list[int] = []
    found.ours()
    assert seen
    for at in range(len(seen)):
        seen.clear()
        chosen[:] = [at]
        with pytest.raises(TypeError, match=f"^{name}: .* is a DTensor, wanted an ordinary tensor"):
            found.ours()
