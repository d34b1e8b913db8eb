"""What tasks share and what they have, found without a walk over all of theirs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskcl.nn import TaskBatchNorm1d, TaskHeads
from maskcl.nn.tasks.own_parts import (
    all_modules,
    all_parameters,
    own_modules,
    own_parameters,
    shared_modules,
    train_only,
)


def model() -> nn.Sequential:
    twice = nn.Linear(4, 4)
    inner = nn.Sequential(TaskBatchNorm1d(4, 3), twice)
    return nn.Sequential(nn.Linear(4, 4), inner, twice, TaskHeads(4, [2, 3, 4]))


def test_shared_modules_are_all_others_by_their_names() -> None:
    net = model()
    wanted = [
        (name, module)
        for name, module in net.named_modules()
        if not name.startswith(("1.0.norms", "3.heads"))
    ]
    assert list(shared_modules(net)) == wanted
    assert [name for name, _ in shared_modules(net[1], "a.b")] == ["a.b", "a.b.0", "a.b.1"]


def test_a_task_has_its_norm_and_its_head() -> None:
    net = model()
    found = dict(own_modules(net, 2))
    assert found == {"1.0.norms.2": net[1][0].norms[2], "3.heads.2": net[3].heads[2]}
    assert found == {name: net.get_submodule(name) for name in found}
    wanted = [*net[1][0].norms[2].parameters(), *net[3].heads[2].parameters()]
    assert list(map(id, own_parameters(net, 2))) == list(map(id, wanted))


def test_all_is_all() -> None:
    net = model()
    net[1].register_module("nothing", None)
    net[1].register_parameter("nothing_either", None)
    assert set(all_modules(net)) == set(net.modules())
    assert all_modules(net[0], net[3]) == [net[0], *net[3].modules()]
    assert set(map(id, all_parameters(net))) == set(map(id, net.parameters()))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_scripted_modules_are_found_too() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    net = nn.Sequential(scripted, nn.Linear(2, 2))
    assert len(all_modules(net)) == len(list(net.modules()))
    assert len(all_parameters(net)) == 4


def test_those_wanted_alone_train() -> None:
    net = model()
    wanted = own_parameters(net, 1)
    train_only(all_parameters(net), wanted)
    trained = [id(p) for p in net.parameters() if p.requires_grad]
    assert trained == [id(p) for p in wanted]
