"""hat-cl's networks by timm's names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import maskcl.compat.hat_cl as hat
from tests.compat.hat_tiny import outputs, same

timm = pytest.importorskip("timm")
models = hat.timm_models
pytestmark = pytest.mark.filterwarnings(
    "ignore::maskcl.compat.hat_cl.exceptions.LearningSuppressedWarning",
    "ignore::maskcl.compat.hat_cl.exceptions.InsufficientMaskWarning",
)
CONFIG = hat.HATConfig(num_tasks=3)
SMALL_VIT = {"embed_dim": 12, "depth": 2, "num_heads": 3, "img_size": 32}


def two_tasks(net, shape):
    """Train two tasks with one decaying optimizer; the first's outputs before and after."""
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.1)
    x, before = torch.rand(2, *shape), {}
    for task in range(2):
        net.train()
        pld = hat.HATPayload(torch.rand(2, *shape), task_id=task, mask_scale=3.0)
        optimizer.zero_grad()
        pld.forward_by(net).data.square().sum().backward()
        optimizer.step()
        before = before or outputs(net, x, [0])
    return before, outputs(net, x, [0])


@pytest.mark.parametrize("name", ["hat_resnet18s", "hat_resnet18"])
def test_resnets_remember(name):
    net = timm.create_model(name, hat_config=CONFIG, num_classes=4)
    assert net.conv1.kernel_size == ((3, 3) if name.endswith("s") else (7, 7))
    assert same(*two_tasks(net, (3, 17, 17)))


def test_all_names_are_registered():
    names = [f"hat_resnet{d}{s}" for d in (18, 34) for s in ("", "s")]
    names += ["hat_vit_tiny_patch16_224", "hat_vit_base_patch16_224", "resnet18s", "resnet34s"]
    assert all(timm.is_model(name) for name in names)
    net = timm.create_model("hat_resnet34s", hat_config=CONFIG, num_classes=0)
    assert len(net.layer3) == 6 and isinstance(net.fc, nn.Identity)
    with pytest.raises(TypeError, match="hat_config"):
        timm.create_model("hat_resnet18")


def test_an_open_resnet_is_timms():
    plain = timm.create_model("resnet18s", num_classes=4, zero_init_last=False).eval()
    dense = hat.HATConfig(num_tasks=2, init_strat="dense")
    net = timm.create_model("hat_resnet18s", hat_config=dense, num_classes=4).eval()
    own = dict(net.named_modules())
    for name, module in plain.named_modules():
        if hasattr(own[name], "load_from_base_module"):
            own[name].load_from_base_module(module)
    x = torch.rand(2, 3, 17, 17)
    torch.testing.assert_close(net(hat.HATPayload(x, task_id=1)).data, plain(x))


def test_a_resnet_that_recomputes_has_the_same_gradients():
    net = timm.create_model("hat_resnet18s", hat_config=CONFIG, num_classes=4).train()
    x, grads = torch.rand(2, 3, 17, 17), []
    for recompute in (False, True):
        net.set_grad_checkpointing(recompute)
        net.zero_grad()
        net(hat.HATPayload(x, task_id=0, mask_scale=3.0)).data.square().sum().backward()
        grads.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-4)


def test_vit_remembers():
    options = {"init_values": 0.1, "drop_path_rate": 0.1}
    net = models.HATVisionTransformer(CONFIG, num_classes=4, **SMALL_VIT, **options)
    assert same(*two_tasks(net, (3, 32, 32)))
    with pytest.raises(ValueError, match="task_id is None"):
        net(hat.HATPayload(torch.rand(1, 3, 32, 32)))
    with pytest.raises(ValueError, match="wanted"):
        net(hat.HATPayload(torch.rand(1, 3, 16, 16), task_id=0))


def test_vit_parts_forget():
    net = models.HATVisionTransformer(CONFIG, num_classes=4, global_pool="avg", **SMALL_VIT)
    two_tasks(net, (3, 32, 32))
    x = torch.rand(2, 3, 32, 32)
    before = outputs(net, x, [0])
    result = hat.utils.forget_task(net, 1)
    assert same(before, outputs(net, x, [0]))
    assert result["HATVisionTransformer.pos_embed.parameter"].any(-1).any(-1).any(-1).tolist() == [
        False,
        True,
        False,
    ]
    assert torch.equal(net.cls_token[1], torch.zeros(1, 1, 12))


def test_an_open_vit_has_timms_weights_and_outputs():
    """What `pretrained=True` loads; here the ordinary model's weights are random."""
    size = {"patch_size": 16, "num_classes": 4, **SMALL_VIT}
    plain = timm.create_model("vit_tiny_patch16_224", **SMALL_VIT, num_classes=4).eval()
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.1)
    dense = hat.HATConfig(num_tasks=2, init_strat="dense")
    net = models.HATVisionTransformer(dense, **size).eval()
    from maskcl.compat.hat_cl.timm_models._vit_weights import from_plain_state_dict

    net.load_state_dict(from_plain_state_dict(plain.state_dict(), net))
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(net(hat.HATPayload(x, task_id=1)).data, plain(x))
    larger = models.HATVisionTransformer(dense, **{**size, "img_size": 48})
    loaded = from_plain_state_dict(plain.state_dict(), larger)
    assert loaded["pos_embed.1"].shape == (1, 10, 12)
    assert from_plain_state_dict(loaded, larger) is loaded
    with pytest.raises(ValueError, match="extra has no place"):
        from_plain_state_dict({"extra": x}, net)
