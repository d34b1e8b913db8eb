"""Conversion both ways, scales, inspection and checkpoints of hat-cl's."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

import maskcl.compat.hat_cl as hat
from maskcl.compat.hat_cl.exceptions import ModuleConversionWarning
from maskcl.compat.hat_cl.modules import (
    AttentionMasker,
    HATConv1d,
    HATConv2d,
    HATConv3d,
    HATLinear,
    HATMasker,
    TaskIndexedBatchNorm1d,
    TaskIndexedBatchNorm2d,
    TaskIndexedBatchNorm3d,
    TaskIndexedLayerNorm,
)
from maskcl.compat.hat_cl.modules.utils import base_to_task_dependent_mapping, register_mapping
from maskcl.compat.hat_cl.utils import (
    convert_to_base_module,
    convert_to_task_dependent_module,
    get_hat_mask_scale,
    get_hat_util,
)
from maskcl.compat.hat_cl.utils.inspection import hat_util
from tests.compat.hat_tiny import SCALE, TASKS, config, mlp, payload, train

PLAIN = {
    "linear": (lambda: nn.Linear(5, 4, bias=False), (5,), HATLinear),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2), (2, 7), HATConv1d),
    "conv2d": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2), (4, 5, 5), HATConv2d),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, padding_mode="circular"), (2, 3, 3, 3), HATConv3d),
    "batch norm 1d": (lambda: nn.BatchNorm1d(5), (5,), TaskIndexedBatchNorm1d),
    "batch norm 2d": (lambda: nn.BatchNorm2d(5, affine=False), (5, 2, 2), TaskIndexedBatchNorm2d),
    "batch norm 3d": (lambda: nn.BatchNorm3d(5, eps=0.1), (5, 2, 2, 2), TaskIndexedBatchNorm3d),
    "layer norm": (lambda: nn.LayerNorm((3, 5)), (3, 5), TaskIndexedLayerNorm),
}


@pytest.mark.parametrize("name", PLAIN)
def test_from_and_to_ordinary_modules(name):
    build, shape, wanted = PLAIN[name]
    plain = build().eval()
    x = torch.rand(4, *shape)
    for parameter in plain.parameters():
        nn.init.uniform_(parameter)
    converted = convert_to_task_dependent_module(plain, num_tasks=TASKS)
    assert type(converted) is wanted and converted.num_tasks == TASKS
    # Without a task there is no mask; hat-cl leaves the norm of no task as it starts.
    assert torch.equal(hat.HATPayload(x).forward_by(converted).data, plain(x))
    for task in (None, 1):
        back = convert_to_base_module(converted, task_id=task, trn_mask_scale=SCALE)
        for training in (False, True):
            converted.train(training)
            back.train(training)
            pld = hat.HATPayload(x, task_id=task, mask_scale=SCALE if training else None)
            torch.testing.assert_close(back(x), pld.forward_by(converted).data)
    if wanted.__name__.startswith("Task"):
        with pytest.raises(ValueError, match="num_tasks is None"):
            wanted.from_base_module(plain)


def test_a_network_with_norms_converts_with_its_outputs():
    """In hat-cl the mask comes behind a norm in a payload's way and in front of it converted."""
    torch.manual_seed(0)
    net = nn.Sequential(*mlp(), nn.ReLU(), TaskIndexedLayerNorm(TASKS, 4))
    for task in range(2):
        train(net, (7,), task, torch.optim.SGD(net.parameters(), lr=0.1))
    net.eval()
    x = torch.rand(4, 7)
    with pytest.warns(ModuleConversionWarning, match="ReLU"):
        plain = convert_to_base_module(net, task_id=1)
    assert not any(isinstance(m, (HATMasker, HATLinear)) for m in plain.modules())
    torch.testing.assert_close(plain(x), hat.HATPayload(x, task_id=1).forward_by(net).data)


def test_conversion_copies_once_and_keeps_sharing():
    linear = nn.Linear(4, 4)
    net = nn.Sequential(linear, nn.Sequential(nn.ReLU(), linear))
    converted = convert_to_task_dependent_module(net, num_tasks=2)
    assert type(net[0]) is nn.Linear and converted[0] is converted[1][1]
    again = convert_to_task_dependent_module(converted, num_tasks=2)
    assert type(again[0]) is HATLinear and again[0] is not converted[0]


def test_maskers_convert():
    masker = AttentionMasker(4, mask_dim=1)
    converted = HATMasker.from_base_module(masker, num_tasks=2)
    assert converted.mask_dim == 1 and torch.equal(converted.attention[1], masker.attention)
    assert torch.equal(converted.to_base_module(0).attention, masker.attention)
    assert isinstance(converted.to_base_module(), nn.Identity)
    with pytest.raises(ValueError, match="Linear has HATLinear already"):

        @register_mapping
        class Other(HATLinear):
            base_class = nn.Linear

    assert base_to_task_dependent_mapping[nn.Linear] is HATLinear


def test_a_state_dict_of_hat_cls_loads():
    """Names, shapes and dtypes as hat-cl 0.1.0 writes them."""
    torch.manual_seed(0)
    attention = {f"0.masker.attention.{k}": torch.randn(12) for k in range(TASKS)}
    attention |= {f"4.masker.attention.{k}": torch.randn(9) for k in range(TASKS)}
    attention |= {f"6.masker.attention.{k}": torch.randn(4) for k in range(TASKS)}
    norms = {}
    for k in range(TASKS + 1):
        norms |= {
            f"1.{k}.weight": torch.rand(12),
            f"1.{k}.bias": torch.rand(12),
            f"1.{k}.running_mean": torch.rand(12),
            f"1.{k}.running_var": torch.rand(12),
            f"1.{k}.num_batches_tracked": torch.tensor(3),
        }
    weights = {}
    for name, outputs, inputs in (("0", 12, 7), ("4", 9, 12), ("6", 4, 9)):
        weights |= {
            f"{name}.weight": torch.randn(outputs, inputs),
            f"{name}.bias": torch.randn(outputs),
            f"{name}.masker._task_trained": torch.tensor([True, True, False]),
        }
    net = mlp()
    net.load_state_dict(attention | norms | weights)
    assert net[0].masker.trained_task_ids == [0, 1]
    x, w = torch.rand(4, 7), attention | norms | weights
    h = x @ w["0.weight"].T + w["0.bias"]
    h = (h - w["1.1.running_mean"]) / (w["1.1.running_var"] + 1e-5).sqrt()
    h = (h * w["1.1.weight"] + w["1.1.bias"]) * (w["0.masker.attention.1"] > 0)
    h = (h.relu() @ w["4.weight"].T + w["4.bias"]) * (w["4.masker.attention.1"] > 0)
    h = (h.relu() @ w["6.weight"].T + w["6.bias"]) * (w["6.masker.attention.1"] > 0)
    net.eval()
    torch.testing.assert_close(hat.HATPayload(x, task_id=1).forward_by(net).data, h)
    # What it knew is protected: the tasks were trained there.
    before = net[0].weight.detach().clone()
    train(net, (7,), 2, torch.optim.AdamW(net.parameters(), lr=0.1))
    own = net[0].masker.get_binary_mask(0) | net[0].masker.get_binary_mask(1)
    assert torch.equal(net[0].weight[own], before[own])


def test_scales():
    for strat in ("linear", "exponential", "constant"):
        assert get_hat_mask_scale(strat, 50.0, progress=1.0) == pytest.approx(50)
    assert get_hat_mask_scale("linear", 50.0, progress=0.0) == 1 / 50
    assert get_hat_mask_scale("linear", 50.0, progress=0.5, min_trn_mask_scale=10) == 30
    assert get_hat_mask_scale("exponential", 50.0, progress=0.2) == pytest.approx(1)
    assert get_hat_mask_scale("cosine", 50.0, progress=0.5) == 1
    assert get_hat_mask_scale("cosine", 50.0, progress=0.0) == 50
    assert get_hat_mask_scale("cosine", 50.0, progress=0.25) == pytest.approx(25)
    with pytest.raises(ValueError, match="strat is 'step'"):
        get_hat_mask_scale("step")
    with pytest.raises(ValueError, match=r"progress is 1\.5"):
        get_hat_mask_scale(progress=1.5)


def test_utility(monkeypatch):
    net = mlp()
    train(net, (7,), 1, torch.optim.SGD(net.parameters(), lr=0.1))
    found = hat_util(net)
    assert list(found) == ["0.masker", "4.masker", "6.masker"]
    assert found["4.masker"] == {1: (int((net[4].masker.attention[1] > 0).sum()), 9)}
    with pytest.raises(ValueError, match="task 0 has not trained"):
        get_hat_util(net, 0)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        get_hat_util(net)


def test_utility_is_a_data_frame():
    pandas = pytest.importorskip("pandas")
    net = mlp()
    train(net, (7,), 1, torch.optim.SGD(net.parameters(), lr=0.1))
    frame = get_hat_util(net, [1])
    assert isinstance(frame, pandas.DataFrame) and frame.shape == (3, 1)
    assert frame.loc["6.masker", 1][1] == 4


def test_forward_of_a_task_of_its_own_module():
    net = HATLinear(3, 4, config())
    found = payload((3,), 0).forward_by(nn.Sequential(net, nn.Identity(), nn.Flatten(0)))
    assert found.data.shape == (16,) and found.masker is net.masker
