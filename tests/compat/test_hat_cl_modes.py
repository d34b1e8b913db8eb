"""What the surface keeps is good in every mode, whichever mode asked for it first."""

from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import maskcl.compat.hat_cl as hat
from maskcl.compat.hat_cl.modules import HATConv2d, HATLinear
from maskcl.compat.hat_cl.utils import get_hat_reg_term
from tests.compat.hat_tiny import config


class Net(nn.Module):
    """Masked behind a reshape, and flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = HATConv2d(1, 4, 3, config())
        self.linear = HATLinear(16, 3, config())

    def forward(self, pld):
        pld = self.conv(pld).reshape(len(pld.data), 2, 8)
        return self.linear((pld + pld).reshape(len(pld.data), 16))


def run(net, task, scale=None):
    return net(hat.HATPayload(torch.ones(2, 1, 4, 4), task_id=task, mask_scale=scale)).data


def train(net, task):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    term = get_hat_reg_term(net, strat="uniform", task_id=task, mask_scale=2.0)
    (run(net, task, 2.0).sum() + term).backward()
    optimizer.step()


def test_inference_mode_first_and_training_then():
    net = Net()
    with torch.inference_mode():
        run(net.eval(), 0)
    train(net.train(), 0)
    with torch.inference_mode():
        net.eval()
        run(net, 1)
        assert get_hat_reg_term(net, strat="uniform", task_id=1, mask_scale=2.0) >= 0
        kept = run(net, 0).clone()
    train(net.train(), 1)
    assert net.conv.masker.trained_task_ids == [0, 1]
    with torch.no_grad():
        assert torch.equal(run(net.eval(), 0), kept)


def test_a_network_made_in_inference_mode_can_be_saved():
    with torch.inference_mode():
        net = Net().eval()
        run(net, 0)
        assert "linear.masker.in_tasks" in net.state_dict()


def test_fake_tensors_leave_nothing_behind():
    net = Net().eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert run(net, 0).shape == (2, 3)
    for task in (0, 1):
        train(net.train(), task)
    assert type(net.state_dict()["linear.masker.in_tasks"]) is torch.Tensor
