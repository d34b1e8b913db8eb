"""hat-cl's payloads, maskers and configuration."""

from __future__ import annotations

import copy
import importlib
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import maskcl.compat.hat_cl as hat
from maskcl.compat.hat_cl.exceptions import (
    MaskDimensionInferenceWarning,
    MaskDimensionMismatchError,
)
from maskcl.compat.hat_cl.modules import (
    HATConv2d,
    HATLinear,
    HATMasker,
    TaskIndexedBatchNorm1d,
    TaskIndexedLayerNorm,
)
from tests.compat.hat_tiny import TASKS, config, payload

SUBMODULES = {
    "": ("constants", "exceptions", "parameter", "payload", "types_", "modules", "utils"),
    "modules.": ("_base", "utils", "batchnorm", "conv", "linear", "maskers", "normalization"),
    "utils.": ("conversion", "forgetting", "forward", "inspection", "pruning", "scaling"),
}


def test_submodules_have_hat_cls_paths():
    for prefix, names in SUBMODULES.items():
        for name in names:
            importlib.import_module(f"maskcl.compat.hat_cl.{prefix}{name}")
    base = importlib.import_module("maskcl.compat.hat_cl.modules._base")
    assert issubclass(HATLinear, base.HATMaskedModuleABC)
    bases = ("HATModuleABC", "HATPayloadCarrierMixin", "TaskDependentModuleABC")
    assert all(issubclass(HATLinear, getattr(base, name)) for name in bases)
    assert issubclass(TaskIndexedLayerNorm, base.TaskIndexedModuleListABC)
    assert hat.utils.forward.forward_hat_payload is hat.utils.forward_hat_payload
    assert hat.modules.utils.base_to_task_dependent_mapping[nn.Linear] is HATLinear


def test_readme():
    class MLP(nn.Module):
        def __init__(self, input_dim, hidden_dim, output_dim):
            super().__init__()
            self.linear1 = hat.modules.HATLinear(input_dim, hidden_dim, config())
            self.relu = nn.ReLU()
            self.linear2 = hat.modules.HATLinear(hidden_dim, output_dim, config())

        def forward(self, x):
            x = self.linear1(x)
            x = x.forward_by(self.relu)
            return self.linear2(x)

    net = MLP(8, 6, 3)
    x = torch.rand(10, 8)
    found = net(hat.HATPayload(x, task_id=0, mask_scale=10.0))
    masks = [torch.sigmoid(10 * m.masker.attention[0]) for m in (net.linear1, net.linear2)]
    hidden = F.relu(net.linear1.weight @ x.T + net.linear1.bias[:, None]).T * masks[0]
    wanted = (hidden @ net.linear2.weight.T + net.linear2.bias) * masks[1]
    torch.testing.assert_close(found.data, wanted)
    assert found.masker is net.linear2.masker and found.prev_maskers == [net.linear2.masker]


pytestmark = pytest.mark.filterwarnings(
    "ignore::maskcl.compat.hat_cl.exceptions.InsufficientMaskWarning"
)


def test_masks_need_a_scale_and_a_task_to_train():
    net = HATLinear(3, 4, config())
    with pytest.raises(ValueError, match="mask_scale is None"):
        net(payload((3,), 0, scale=None))
    with pytest.raises(ValueError, match="task_id is 3"):
        net(payload((3,), 3))
    with pytest.warns(RuntimeWarning, match="above max_trn_mask_scale"):
        net(payload((3,), 0, scale=101.0))
    x = torch.rand(2, 3)
    assert torch.equal(net(hat.HATPayload(x)).data, F.linear(x, net.weight, net.bias))
    # A scale of 0 is a scale.
    assert (net.masker.get_mask(0, 0.0) == 0.5).all()


def test_units_lie_where_the_layer_put_them():
    """hat-cl looks for the first dimension of the mask's size: here the tokens'."""
    linear = HATLinear(3, 4, config()).eval()
    x = torch.rand(2, 4, 3)
    found = linear(hat.HATPayload(x, task_id=0)).data
    assert torch.equal(found, F.linear(x, linear.weight, linear.bias) * linear.masker.get_mask(0))
    masker = HATMasker(4, config()).eval()
    with pytest.warns(MaskDimensionInferenceWarning):
        masker(hat.HATPayload(torch.rand(2, 4, 4), task_id=0))
    given = HATMasker(4, config(mask_dim=0)).eval()(hat.HATPayload(torch.ones(4, 4), task_id=0))
    assert torch.equal(given.data[:, 0], given.masker.get_mask(0).float())
    with pytest.raises(MaskDimensionMismatchError, match="mask of 4 units"):
        masker(hat.HATPayload(torch.rand(2, 5), task_id=0))


def test_moved_data_are_masked_first_and_keep_their_units():
    conv = HATConv2d(2, 3, 1, config()).eval()
    pld = conv(payload((2, 4, 5), 1))
    mask = conv.masker.get_binary_mask(1)
    moved = pld.permute(0, 2, 3, 1)
    assert torch.equal(moved.data, pld.data.permute(0, 2, 3, 1))
    assert (moved.data[..., ~mask] == 0).all()
    assert torch.equal(pld.transpose(1, -1).data, pld.data.transpose(1, -1))
    flat, tiled = HATLinear(60, 2, config()), HATLinear(60, 2, config())
    flat(pld.reshape(4, 60))
    tiled(moved.reshape(4, -1))
    words = conv.masker.words((0, 1))
    assert torch.equal(flat.masker.in_words((0, 1)), words.repeat_interleave(20, 0))
    assert torch.equal(tiled.masker.in_words((0, 1)), words.repeat(20, 1))
    # A sum is masked again, wherever the units are by now.
    total = moved + 1.0
    assert torch.equal(total.data, (moved.data + 1) * mask)
    by_hand = HATLinear(60, 2, config())
    by_hand(hat.HATPayload(pld.data.flatten(1), **pld.to_dict(False, mask_applied=True)))
    assert torch.equal(by_hand.masker.in_words((0, 1)), words.repeat_interleave(20, 0))


def test_what_mixes_units_protects_every_input():
    linear = HATLinear(3, 4, config()).eval()
    other, third = HATLinear(4, 4, config()).eval(), HATLinear(5, 2, config()).eval()
    behind = linear(payload((5, 3), 0))
    other(behind.forward_by(nn.Softmax(-1)))
    third(behind.transpose(1, 2))
    assert other.masker.in_words((0,)) is None and third.masker.in_words((0,)) is None
    with pytest.raises(TypeError, match="wanted a HATPayload"):
        behind @ torch.rand(4, 4)


def test_a_product_of_payloads_is_masked_once():
    linear = HATLinear(3, 4, config())
    x = torch.rand(2, 3)
    mask = torch.sigmoid(3 * linear.masker.attention[0])
    pld = linear(hat.HATPayload(x, task_id=0, mask_scale=3.0))
    torch.testing.assert_close((pld * 2.0).data, F.linear(x, linear.weight, linear.bias) * mask * 2)
    twice = F.linear(x, linear.weight, linear.bias) * mask * mask
    torch.testing.assert_close((pld + 0.0).data, twice)


def test_closed_units_stay_closed_behind_any_module():
    linear, norm = HATLinear(3, 6, config()).eval(), TaskIndexedBatchNorm1d(TASKS, 6).eval()
    nn.init.ones_(norm[0].bias)
    closed = ~linear.masker.get_binary_mask(0)
    assert closed.any()
    pld = linear(payload((3,), 0))
    for parts in ([nn.Sigmoid()], [nn.Softplus()], [nn.ReLU(), norm], [nn.ReLU(), nn.Sigmoid()]):
        assert (pld.forward_by(nn.Sequential(*parts)).data[:, closed] == 0).all(), parts


def test_layer_norm_does_not_see_closed_units():
    linear, norm = HATLinear(3, 6, config()).eval(), TaskIndexedLayerNorm(TASKS, 6).eval()
    x = torch.rand(2, 3)
    before = linear(hat.HATPayload(x, task_id=0)).forward_by(norm).data
    with torch.no_grad():
        linear.bias[~linear.masker.get_binary_mask(0)] += 5
    assert torch.equal(linear(hat.HATPayload(x, task_id=0)).forward_by(norm).data, before)


def test_modules_that_tasks_would_share_are_refused():
    pld = payload((3,), 0)
    with pytest.raises(RuntimeError, match="HATLinear"):
        pld.forward_by(nn.Linear(3, 3))
    with pytest.raises(RuntimeError, match="TaskIndexedBatchNorm1d"):
        pld.forward_by(nn.BatchNorm1d(3, affine=False))
    assert payload((3,), None).forward_by(nn.Linear(3, 5)).data.shape == (4, 5)


def test_in_place_modules_leave_the_payload_alone():
    pld = HATLinear(3, 4, config())(payload((3,), 0))
    before = pld.data.detach().clone()
    pld.forward_by(nn.SiLU(inplace=True)).data.sum().backward()
    assert torch.equal(pld.data, before)


def test_a_product_does_not_wait_beyond_no_grad_and_autocast():
    linear = HATLinear(3, 4, config())
    with torch.no_grad():
        pld = linear(payload((3,), 0))
    assert not pld.unmasked_data.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        pld = linear(payload((3,), 0))
    assert pld.data.dtype == torch.bfloat16


def test_copies_and_pickles():
    net = nn.Sequential(HATLinear(3, 4, config()), nn.ReLU(), HATLinear(4, 2, config()))
    payload((3,), 0).forward_by(net).data.sum().backward()
    x = torch.rand(2, 3)
    net.eval()
    wanted = hat.HATPayload(x, task_id=0).forward_by(net).data
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(net[2])):
        if twin is not None and isinstance(twin, nn.Sequential):
            assert torch.equal(hat.HATPayload(x, task_id=0).forward_by(twin).data, wanted)
            assert twin[2].masker.feeds.known[0].masker is twin[0].masker
        else:
            assert twin(hat.HATPayload(torch.rand(2, 4), task_id=0)).data.shape == (2, 2)
