"""Code on hat-cl's surface in the midst of torch.compile."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import maskcl.compat.hat_cl as hat
from maskcl.compat.hat_cl.modules import HATLinear, TaskIndexedBatchNorm1d
from maskcl.compat.hat_cl.utils import convert_to_base_module, get_hat_reg_term
from tests.compat.hat_tiny import TASKS, config


class Net(nn.Module):
    """Payloads made, moved and read between ordinary operations."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = hat.TaskIndexedParameter(TASKS, torch.ones(6))
        self.layers = nn.Sequential(
            HATLinear(6, 8, config()),
            TaskIndexedBatchNorm1d(TASKS, 8),
            nn.GELU(),
            nn.Flatten(),
            HATLinear(8, 3, config()),
        )

    def forward(self, x, task, mask_scale=None):
        pld = hat.HATPayload(torch.sin(x) * self.scale[task], task_id=task, mask_scale=mask_scale)
        return torch.tanh(pld.forward_by(self.layers).data)


def loss_of(net, x, task, mask_scale):
    term = get_hat_reg_term(net, strat="uniform", task_id=task, mask_scale=mask_scale)
    return net(x, task, mask_scale).square().sum() + term


def test_compiled_training_is_the_same_and_remembers():
    torch.manual_seed(0)
    net = Net()
    same = copy.deepcopy(net)
    compiled, read = (torch.compile(f, backend="eager") for f in (loss_of, net))
    x = torch.rand(5, 6)
    kept = []
    for task in range(2):
        for model, loss in ((net, compiled), (same, loss_of)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
            for rows, scale in ((4, 0.1), (3, 2.0)):
                optimizer.zero_grad()
                loss(model, torch.ones(rows, 6).cumsum(0), task, scale).backward()
                optimizer.step()
        for mine, plain in zip(net.parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(mine, plain)
        net.eval()
        with torch.no_grad():
            found = [read(x, k) for k in range(task + 1)]
            assert all(map(torch.equal, found, kept))
            kept = [net(x, k) for k in range(task + 1)]
        assert all(map(torch.equal, found, kept))
        net.train()


def test_a_whole_graph_is_refused_with_the_way_out_and_conversions_have_one():
    net = nn.Sequential(HATLinear(6, 8, config()), nn.ReLU(), HATLinear(8, 3, config())).eval()
    x = torch.rand(2, 6)
    whole = torch.compile(net, backend="eager", fullgraph=True)
    with pytest.raises(Exception, match="convert_to_base_module gives ordinary modules"):
        whole(hat.HATPayload(x, task_id=0))
    base = convert_to_base_module(net, task_id=0)
    found = torch.compile(base, backend="eager", fullgraph=True)(x)
    assert torch.equal(found, hat.HATPayload(x, task_id=0).forward_by(net).data)
