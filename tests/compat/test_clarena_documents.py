"""Scripts as CLArena's documents have them, in the names and orders of each of its generations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskcl.compat.clarena import backbones, cl_algorithms, cl_heads, heads
from maskcl.compat.clarena.backbones import MLP, Backbone, CLBackbone, HATMaskBackbone, HATMaskMLP
from tests.compat.clarena_tiny import FEATURES, batch, begin, hat, logits, mlp, train


class Explicit(HATMaskBackbone):
    """Masks registered by hand behind another class's start, and no start of their own."""

    def __init__(self, gate: str = "sigmoid") -> None:
        CLBackbone.__init__(self, output_dim=9)
        self.register_hat_mask_module_explicitly(gate=gate)
        HATMaskBackbone.sanity_check(self)
        self.fc = nn.Linear(FEATURES, 9)
        self.weighted_layer_names = ["fc"]
        self.task_embedding_t["fc"] = nn.Embedding(1, 9)

    # Of versions before 1.1: masks in tests come from outside.
    def forward(
        self,
        input: Tensor,
        stage: str,
        s_max: float | None = None,
        batch_idx: int | None = None,
        num_batches: int | None = None,
        test_mask: dict[str, Tensor] | None = None,
    ) -> Any:
        mask = self.get_mask(stage, s_max, batch_idx, num_batches, test_mask)
        x = torch.relu(self.fc(input)) * mask["fc"]
        return x, mask, {"fc": x}


class BothStarts(MLP, HATMaskBackbone):
    """As HATMaskMLP of version 1.0: each base's start makes an empty module of it."""

    def __init__(self) -> None:
        HATMaskBackbone.__init__(self, output_dim=9, gate="sigmoid")
        MLP.__init__(self, input_dim=FEATURES, hidden_dims=[7], output_dim=9)
        self.register_hat_mask_module_explicitly(gate="sigmoid")
        for name, width in zip(self.weighted_layer_names, (7, 9)):
            self.task_embedding_t[name] = nn.Embedding(1, width)

    def forward(self, input: Tensor, stage: str, **options: Any) -> Any:  # type: ignore[override]
        mask, x, activations = self.get_mask(stage=stage, **options), input.flatten(1), {}
        for i, name in enumerate(self.weighted_layer_names):
            x = self.fc_activation[i](self.fc[i](x) * mask[name])
            activations[name] = x
        return x, mask, activations


class Cooperative(CLBackbone, MLP):
    """As the documents of 1.1 say: a backbone, then its class of continual learning."""


@pytest.mark.parametrize("make", [Explicit, BothStarts])
def test_masks_that_are_registered_by_hand_forget_nothing(make: Any) -> None:
    algorithm = hat(backbone=make())
    train(algorithm, 1)
    before = logits(algorithm, 1)
    train(algorithm, 2)
    assert torch.equal(logits(algorithm, 1), before) and before.abs().sum() > 0
    assert {"task_bits.bits", "embedding_task"} <= set(algorithm.backbone.state_dict())


def test_masks_that_are_not_registered_say_so() -> None:
    class Forgotten(HATMaskBackbone):
        def __init__(self) -> None:
            super().__init__(output_dim=9)

    for ask in (
        lambda: Explicit("tanh"),
        lambda: HATMaskMLP(3, [2], 1, None),  # type: ignore[arg-type]
        lambda: Forgotten().setup_task_id(1),
        lambda: Forgotten().get_mask("validation", 9.0),
        lambda: hat(backbone=Forgotten()),
    ):
        with pytest.raises(ValueError, match=r"gate is (None|'tanh'), wanted 'sigmoid'"):
            ask()
    with pytest.raises(NotImplementedError, match="Forgotten has no forward"):
        Forgotten()(torch.zeros(1), "train", 9.0, 0, 2, {"fc": torch.ones(1)})


def test_plain_backbones_are_bases_and_instances() -> None:
    net = Cooperative(FEATURES, [5], 4)
    assert net(torch.zeros(2, FEATURES), "train", 1)[0].shape == (2, 4)
    net.setup_task_id(2)
    assert net.processed_task_ids == net.seen_task_ids == [2]
    assert isinstance(MLP(2, [], 2), CLBackbone) and isinstance(net, CLBackbone)
    assert isinstance(backbones.ResNet18(3, 512), CLBackbone) and not isinstance(
        Backbone(3), CLBackbone
    )
    with pytest.raises(NotImplementedError, match="CLBackbone has no forward"):
        CLBackbone(3)(torch.zeros(1), "train", task_id=1)


def test_test_mask_by_its_place() -> None:
    net, x = mlp(), torch.randn(4, FEATURES)
    mask = {name: (torch.rand(e.numel()) > 0.5).float() for name, e in named(net)}
    found = net.get_mask("test", None, None, None, mask)
    assert all(torch.equal(found[name], mask[name]) for name in mask)
    y = net(x, "test", None, None, None, mask)[0]
    assert torch.equal(y, net(x, "test", test_mask=mask)[0])
    net.setup_task_id(1)
    net.store_mask()
    assert torch.equal(net.get_mask("test", None, None, None, 1)["fc/0"], net.masks[1]["fc/0"])
    with pytest.raises(TypeError, match="stage"):
        net(x, "test", None, None, None, mask, stage="test")


def named(net: HATMaskBackbone) -> Any:
    return zip(net.weighted_layer_names, net.embeddings())


def test_bias_by_its_place_of_then_and_now() -> None:
    for args, norm, bias, dropout in (
        ((nn.ReLU, False, 0.5), None, False, True),
        ((nn.ReLU, True), None, True, False),
        ((nn.ReLU, None, False, 0.5), None, False, True),
        ((nn.ReLU, "shared", True), "shared", True, False),
    ):
        net = HATMaskMLP(FEATURES, [4], 3, "sigmoid", *args)  # type: ignore[arg-type]
        assert net.batch_normalization == net.batch_normalisation == norm
        assert (net.fc[0].bias is not None, net.dropout) == (bias, dropout)
    for args, norm, bias in (((nn.ReLU, True), None, True), ((nn.ReLU, "shared"), "shared", False)):
        resnet = backbones.HATMaskResNet18(3, 512, "sigmoid", *args)
        assert resnet.batch_normalization == norm and (resnet.conv1.bias is not None) == bias
    with pytest.raises(TypeError, match="bias"):
        HATMaskMLP(FEATURES, [4], 3, "sigmoid", nn.ReLU, True, bias=False)
    # 0.1 had no BatchNorm in MLP.
    assert MLP(FEATURES, [4], 3, nn.ReLU, False, 0.0).fc[0].bias is None


def test_forward_of_an_algorithm_in_both_orders() -> None:
    algorithm = hat()
    train(algorithm, 1)
    begin(algorithm, 3)
    x = batch(1)[0]
    for b, n in ((0, 2), (1, 3), (2, 3), (3, 7)):
        wanted = algorithm(x, "train", task_id=3, batch_idx=b, num_batches=n)[1]["fc/0"]
        for args in ((3, b, n), (b, n, 3)):
            assert torch.equal(algorithm(x, "train", *args)[1]["fc/0"], wanted), args
    wanted = algorithm(x, "test", task_id=1)[0]
    assert torch.equal(algorithm(x, "test", None, None, 1)[0], wanted)
    assert torch.equal(algorithm(x, "test", 1)[0], wanted)
    with pytest.raises(ValueError, match="batch is 5"):
        algorithm(x, "train", 3, 5, 2)


@pytest.mark.parametrize("module", [backbones, cl_algorithms, heads, cl_heads])
def test_all_names_come_with_a_star(module: Any) -> None:
    space: dict[str, Any] = {}
    exec(f"from {module.__name__} import *", space)
    assert set(module.__all__) <= set(space)
    if module is backbones:
        assert space["mlp"].HATMaskMLP is space["hatmask_mlp"].HATMaskMLP is HATMaskMLP
        assert space["resnet"].HATMaskResNet18 is space["hat_mask_resnet"].HATMaskResNet18
