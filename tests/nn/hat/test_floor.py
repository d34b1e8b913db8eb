"""Soft masks that are closed for good are exactly 0, so that products leave their units out."""

from __future__ import annotations

import torch
from torch import nn

from maskcl.compat.clarena.backbones import HATMaskMLP
from maskcl.compat.clarena.cl_algorithms import HAT
from maskcl.compat.clarena.heads import HeadsTIL
from maskcl.compat.hat_cl.modules.maskers._gate import soft_mask
from maskcl.nn import to_hat

SCALE = 200.0
# The last of the first row is closed for good under a clamp of 50, and only it in float32.
EMBEDDING = [-0.1, -0.25, -0.27, -0.28]


def wanted(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    free = torch.sigmoid(SCALE * torch.tensor(EMBEDDING, dtype=dtype))
    return torch.where(free < 7.5e-25, 0.0, free) if dtype != torch.float64 else free


def network(dtype: torch.dtype = torch.float32):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net = to_hat(model, 2, torch.zeros(2, 3), classes=[2, 2]).to(dtype)
    with torch.no_grad():
        net.embeddings[0].copy_(torch.tensor(EMBEDDING, dtype=dtype))
    return net


def mask_of(net) -> torch.Tensor:
    """What the hidden layer's outputs are multiplied by, seen from outside."""
    dtype = net.embeddings[0].dtype
    layer = next(m for m in net.modules() if hasattr(m, "weight") and m.weight.shape == (4, 3))
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
    found: list[torch.Tensor] = []
    head = next(m for m in net.modules() if "Heads" in type(m).__name__)
    handle = head.register_forward_hook(lambda _m, args, _y: found.append(args[0]))
    with net.task(0, SCALE):
        net(torch.full((1, 3), 1 / 3, dtype=dtype))
        share = net.sparsity()
    handle.remove()
    torch.testing.assert_close(share, found[0].mean(), rtol=1e-5, atol=0)
    return found[0][0]


def test_a_network_s_masks_have_the_floor() -> None:
    mask = mask_of(network())
    assert mask[3] == 0 and (mask[:3] > 0).all()
    torch.testing.assert_close(mask.detach(), wanted(), rtol=1e-5, atol=0)


def test_float64_keeps_the_formula() -> None:
    mask = mask_of(network(torch.float64))
    torch.testing.assert_close(mask.detach(), wanted(torch.float64), rtol=1e-12, atol=0)


def test_a_larger_clamp_lowers_the_floor() -> None:
    net = network()
    net.configure_gate(max_scale=400.0, cosh_clamp=60.0)
    assert (mask_of(net) > 0).all()


def test_hat_cl_s_sigmoid_has_it_and_other_gates_have_not() -> None:
    e = torch.tensor(EMBEDDING)
    torch.testing.assert_close(
        soft_mask(e, SCALE, torch.sigmoid, 400.0, 50.0), wanted(), rtol=1e-5, atol=0
    )
    assert (soft_mask(e, SCALE, torch.sigmoid, 400.0, 60.0) > 0).all()
    assert (soft_mask(e, SCALE, lambda x: torch.sigmoid(x), 400.0, 50.0) > 0).all()


def test_clarena_s_backbone_has_that_of_its_algorithm() -> None:
    for clamp, closed in ((50.0, 1), (60.0, 0)):
        backbone = HATMaskMLP(3, [4], 2, "sigmoid")
        HAT(backbone, HeadsTIL(2), "hat", 400.0, clamp, 0.75)
        with torch.no_grad():
            for weight in backbone.embeddings():
                weight.copy_(torch.tensor(EMBEDDING[-weight.numel() :]))
        options = {"s_max": SCALE, "batch_idx": 9, "num_batches": 10}
        masks = backbone.get_mask("train", **options)
        found = torch.cat([m.flatten() for m in masks.values()])
        layers = sum(weight.numel() >= 1 for weight in backbone.embeddings())
        assert (found == 0).sum() == closed * layers
