"""What is free of a network: shares, counts, and what a task would free."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from maskcl.nn import Capacity, HATNetwork, to_hat
from tests.nn.zoo import MODELS, images


def network(name: str = "conv", tasks: int = 3) -> HATNetwork:
    torch.manual_seed(0)
    return to_hat(MODELS[name](), tasks, images(2), classes=[2] * tasks)


@pytest.mark.parametrize("name", list(MODELS))
def test_counts_are_those_of_a_dense_count(name: str) -> None:
    net = network(name)
    whole = net.capacity()
    assert whole.free_units == whole.units
    assert whole.free_weights == whole.weights
    assert set(whole.values()) == {0.0}
    for task in range(2):
        net.finish_task(task)
    found = net.capacity()
    used = net.used()
    for layer, span in net.units.items():
        assert found.units[layer] == span.stop - span.start
        assert found.free_units[layer] == int((~used[span]).sum())
        assert found[layer] == float(used[span].double().mean())
    protection = net.protection()
    zeros = [torch.zeros_like(p) for p in protection.parameters]
    with torch.no_grad():
        for parameter in protection.parameters:
            parameter.fill_(1.0)
    protection.restore_(zeros)
    for name_, parameter in zip(protection.names, protection.parameters, strict=True):
        assert found.weights[name_] == parameter.numel()
        assert found.free_weights[name_] == int((parameter != 0).sum())


def test_more_than_64_tasks() -> None:
    net = network("mlp", 70)
    for task in (63, 64, 69):
        net.finish_task(task)
    promised = {task: net.capacity().freed_by(task) for task in (0, 63, 64, 69)}
    assert promised[0] == (0, 0)
    before = net.capacity()
    net.forget_task(63)
    after = net.capacity()
    assert sum(after.free_units.values()) - sum(before.free_units.values()) == promised[63].units
    freed = sum(after.free_weights.values()) - sum(before.free_weights.values())
    assert freed == promised[63].weights > 0


def test_it_is_of_its_moment_and_a_plain_dictionary_to_others() -> None:
    net = network()
    net.finish_task(0)
    found = net.capacity()
    before = found.freed_by(0)
    assert isinstance(found, Capacity)
    assert json.loads(json.dumps(found)) == dict(found)
    assert copy.deepcopy(found).free_units == found.free_units
    net.finish_task(1)
    assert found.freed_by(0) == before
    assert net.capacity() != found
