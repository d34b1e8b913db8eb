"""hat-cl's maskers, configuration and small classes."""

from __future__ import annotations

import pytest
import torch

import maskcl.compat.hat_cl as hat
from maskcl.compat.hat_cl.exceptions import HATInitializationError, InsufficientMaskWarning
from maskcl.compat.hat_cl.modules import AttentionMasker, ConstantMasker, HATMasker
from maskcl.compat.hat_cl.parameter import TaskIndexedParameter
from maskcl.compat.hat_cl.types_ import ForgetResult
from tests.compat.hat_tiny import TASKS, config


def test_gradients_are_compensated():
    masker = HATMasker(5, config(max_trn_mask_scale=50.0), dtype=torch.float64)
    e = masker.attention[1]
    (masker.get_mask(1, 7.0) * torch.arange(5.0, dtype=torch.float64)).sum().backward()
    m, s = torch.sigmoid(7 * e.detach()), 7.0
    plain = torch.arange(5.0, dtype=torch.float64) * s * m * (1 - m)
    factor = (torch.cosh(s * e) + 1) * 50 / ((torch.cosh(e) + 1) * s)
    torch.testing.assert_close(e.grad, (plain * factor).detach())
    options = config(max_trn_mask_scale=50.0, gate=lambda x: torch.sigmoid(x))
    own = HATMasker(5, options, dtype=torch.float64)
    own.load_state_dict(masker.state_dict())
    (own.get_mask(1, 7.0) * torch.arange(5.0, dtype=torch.float64)).sum().backward()
    torch.testing.assert_close(own.attention[1].grad, e.grad)


def test_a_gate_of_ones_own_decides_what_is_open():
    masker = HATMasker(3, config(gate=lambda x: torch.sigmoid(x - 50)))
    with torch.no_grad():
        masker.attention[0].copy_(torch.tensor([0.4, 0.6, -1.0]))
    assert masker.get_binary_mask(0).tolist() == [False, True, False]


def test_attention_and_constant_maskers():
    masker = AttentionMasker(4, trn_mask_scale=2.0)
    x = torch.rand(3, 4)
    assert torch.equal(masker(x), x * torch.sigmoid(2 * masker.attention))
    assert torch.equal(masker(x, mask_scale=0.0), x * 0.5)
    assert torch.equal(masker.eval()(x), x * (masker.attention > 0))
    with pytest.raises(ValueError, match="needs a scale"):
        AttentionMasker(4)(x)
    constant = ConstantMasker(torch.tensor([1.0, 0.0]))
    assert torch.equal(constant(torch.ones(2, 2), mask_dim=0), torch.tensor([[1.0, 1.0], [0, 0]]))
    with pytest.raises(ValueError, match="mask or num_features"):
        ConstantMasker()


def test_configuration():
    whole = config(max_trn_mask_scale=400.0)
    assert whole.grad_comp_factor == 400 and hat.HATConfig(**whole).num_tasks == TASKS
    with pytest.raises(ValueError, match="num_tasks is 0"):
        hat.HATConfig(0)
    with pytest.warns(UserWarning, match="no option is called eps"):
        hat.HATConfig(2, eps=1)
    with pytest.raises(HATInitializationError, match="normal, dense, sparse"):
        HATMasker(4, config(init_strat="zero"))
    with pytest.warns(InsufficientMaskWarning):
        HATMasker(2, config())
    sparse = HATMasker(4000, config(init_strat="sparse"))
    assert abs(float(sparse.get_binary_mask(0).float().mean()) - 1 / TASKS) < 0.05
    assert (HATMasker(4, config(init_strat="dense")).attention[1] == 1).all()


def test_forget_results_add_up():
    first = ForgetResult(**{"a.weight": torch.tensor([True, False])})
    total = first + ForgetResult(
        **{"a.weight": torch.tensor([False, True]), "b.bias": torch.tensor([False])}
    )
    assert total.get_num_forgotten("weight") == (2, 2) and total.get_num_forgotten("bias") == (0, 1)
    assert "a.weight: 2/2" in repr(total) and first.get_num_forgotten("a.weight") == (1, 2)
    with pytest.raises(KeyError, match="gamma"):
        total.get_num_forgotten("gamma")
    with pytest.raises(TypeError, match="wanted a bool tensor"):
        ForgetResult(a=torch.ones(2))


def test_task_indexed_parameters_share_nothing():
    """In hat-cl all tasks' parameters are views of the one tensor that was given."""
    parameter = TaskIndexedParameter(TASKS, torch.zeros(2))
    with torch.no_grad():
        parameter[0].add_(1)
    assert parameter[1].tolist() == [0, 0] and parameter.num_tasks == TASKS
    assert parameter.forget(0).popitem()[1].tolist() == [[True] * 2, [False] * 2, [False] * 2]
    assert parameter[0].tolist() == [0, 0]
