"""``load_state_dict`` of a network does and says what ``nn.Module``'s does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import maskcl

State = dict[str, Any]


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)]
    example = torch.zeros(2, 6)
    return maskcl.nn.to_hat(nn.Sequential(*layers), 12, example, classes=[2] * 12)


def without(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


CHANGES: dict[str, Callable[[State], None]] = {
    "none": lambda state: None,
    "no head": without("model.3.heads.1.weight"),
    "no norm": without("model.1.norms.11.running_mean"),
    "no bits": without("tasks"),
    "too many": lambda state: state.update({"model.3.heads.12.weight": torch.zeros(2, 8)}),
    "another": lambda state: state.update({"other": torch.zeros(1), "model.9.x": torch.zeros(1)}),
    "a shape": lambda state: state.update({"model.3.heads.10.weight": torch.zeros(5, 5)}),
    "no number": lambda state: state.update({"model.3.heads.10.bias": 1.0}),
    "old norms": without("model.1.norms.3.num_batches_tracked"),
}


def outcome(load: Callable[..., Any], net: nn.Module, state: State, **options: Any) -> Any:
    try:
        found = load(net, state, **options)
    except (RuntimeError, TypeError) as error:
        return type(error), str(error), net.state_dict()
    return found.missing_keys, found.unexpected_keys, net.state_dict()


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_it_does_and_says_the_same(change: str, assign: bool, strict: bool) -> None:
    state = network(1).state_dict()
    CHANGES[change](state)
    states = state, copy.deepcopy(state)
    nets = network(), network()
    options = {"strict": strict, "assign": assign}
    *wanted, tensors = outcome(nn.Module.load_state_dict, nets[0], states[0], **options)
    *found, own = outcome(type(nets[1]).load_state_dict, nets[1], states[1], **options)
    assert found == wanted
    assert all(torch.equal(own[name], tensor) for name, tensor in tensors.items())
    given = {t.data_ptr() for t in states[1].values() if isinstance(t, torch.Tensor)}
    assert any(tensor.data_ptr() in given for tensor in own.values()) == assign


def test_a_state_has_to_be_a_mapping() -> None:
    with pytest.raises(TypeError, match="dict-like"):
        network().load_state_dict([1])


def test_hooks_of_modules_are_called() -> None:
    net, seen = network(), []
    net.model[0].register_load_state_dict_post_hook(lambda module, keys: seen.append(module))
    net.load_state_dict(net.state_dict())
    assert seen == [net.model[0]]
