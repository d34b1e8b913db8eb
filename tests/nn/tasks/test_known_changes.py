"""What was changed under finished tasks stays known, whatever comes before the next comparison."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.nn.tasks.test_kept_bits import METHODS, begun, logits, train

CHANGED = "what finished tasks need has changed"


def shared_weight(net: Any) -> torch.nn.Parameter:
    """One that no optimizer of a later task may move, of units that the first task uses."""
    return next(p for n, p in net.named_parameters() if n.startswith("model.1.") and p.dim() > 1)


def damage(net: Any) -> None:
    with torch.no_grad():
        shared_weight(net).add_(0.5)


def load_own_state(net: Any, method: Any, state: Any) -> None:
    """As early stopping does, whose best state was taken after the damage."""
    with pytest.warns(UserWarning, match=CHANGED):
        net.load_state_dict({name: t.clone() for name, t in net.state_dict().items()})


def forget(net: Any, method: Any, state: Any) -> None:
    with pytest.warns(UserWarning, match=CHANGED):
        net.forget_task(1)


def forget_all_of_it(net: Any, method: Any, state: Any) -> None:
    with pytest.warns(UserWarning, match=CHANGED):
        net.forget_task(1, reset=True)


def move(net: Any, method: Any, state: Any) -> None:
    net.to(torch.float64).to(torch.float32)


def compare(net: Any, method: Any, state: Any) -> None:
    with pytest.raises(RuntimeError, match=CHANGED):
        method.end_task(net, state)


@pytest.mark.parametrize("first", [compare, move], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "hide", [load_own_state, forget, forget_all_of_it, move], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", METHODS)
def test_a_change_stays_known(name: str, hide: Any, first: Any) -> None:
    net, method, state = begun(name)
    damage(net)
    first(net, method, state)
    hide(net, method, state)
    with net.task(0):
        pass
    for _ in range(2):
        with pytest.raises(RuntimeError, match=CHANGED):
            net.check_kept()
    with pytest.raises(RuntimeError, match=CHANGED):
        method.begin_task(net, 2)


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_before_the_change_mends_it(name: str) -> None:
    net, method, state = begun(name)
    good, wanted = copy.deepcopy(net.state_dict()), logits(net, 0)
    damage(net)
    with pytest.raises(RuntimeError, match=CHANGED):
        method.end_task(net, state)
    net.load_state_dict(good)
    net.check_kept()
    state = method.begin_task(net, 1)
    train(net, method, state, 1)
    assert torch.equal(logits(net, 0), wanted)
    net.check_kept()
    damage(net)  # and what is kept now is what is there now
    with pytest.raises(RuntimeError, match=CHANGED):
        net.check_kept()


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_fewer_tasks_mends_it(name: str) -> None:
    net, method, state = begun(name)
    good = copy.deepcopy(net.state_dict())
    train(net, method, state, 1)
    damage(net)
    with pytest.warns(UserWarning, match="are not finished"):
        net.load_state_dict(good)
    net.check_kept()
    train(net, method, method.begin_task(net, 1), 1)
    net.check_kept()


def test_bits_put_back_by_hand_mend_it() -> None:
    net, method, state = begun("hat")
    known = shared_weight(net).detach().clone()
    damage(net)
    with pytest.raises(RuntimeError, match=CHANGED):
        method.end_task(net, state)
    with torch.no_grad():
        shared_weight(net).copy_(known)
    train(net, method, state, 1)
    net.check_kept()
    train(net, method, method.begin_task(net, 2), 2)
    net.check_kept()


def test_without_finished_tasks_there_is_nothing_to_keep() -> None:
    net, method, _ = begun("hat")
    damage(net)
    for task in (1, 0):
        with pytest.warns(UserWarning, match=CHANGED):
            net.forget_task(task)
    net.check_kept()
    train(net, method, method.begin_task(net, 0), 0)
    net.check_kept()
