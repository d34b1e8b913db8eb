"""Algorithms, terms and heads of a user's own, as they are written for CLArena."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskcl.compat.clarena import backbones, cl_heads, heads
from maskcl.compat.clarena.backbones import MLP
from maskcl.compat.clarena.cl_algorithms import HAT, AdaHAT, CLAlgorithm
from maskcl.compat.clarena.cl_algorithms.module import PlainModule
from maskcl.compat.clarena.cl_algorithms.regularisers import HATMaskSparsityReg
from tests.compat.clarena_tiny import ADAM, CLASSES, FEATURES, batch, hat, logits, mlp, train


class Own(HAT):
    """An algorithm of a user's, with an argument and a check of its own."""

    def __init__(self, backbone: Any, heads: Any, patience: int) -> None:
        super().__init__(backbone, heads, "hat", 40.0, 50.0, 0.75)
        self.save_hyperparameters("patience")
        self.patience = patience
        Own.sanity_check(self)

    def sanity_check(self) -> None:
        if self.patience < 0:
            raise ValueError(f"Own: patience is {self.patience}, wanted at least 0")


def test_each_class_checks_its_own_arguments() -> None:
    algorithm = Own(mlp(), heads.HeadsTIL(9), patience=2)
    assert algorithm.hparams["patience"] == 2 and algorithm.epsilon is None
    with pytest.raises(ValueError, match="patience is -1"):
        Own(mlp(), heads.HeadsTIL(9), patience=-1)
    algorithm.mask_sparsity_reg_mode = "crossed"
    with pytest.raises(ValueError, match="mask_sparsity_reg_mode is 'crossed'"):
        HAT.sanity_check(algorithm)
    ada = hat("adahat")
    ada.adjustment_intensity = 0.0
    HAT.sanity_check(ada)
    with pytest.raises(ValueError, match="adjustment_intensity is 0"):
        AdaHAT.sanity_check(ada)
    ada.heads = heads.HeadsTIL(5)
    with pytest.raises(ValueError, match="input_dim, 5"):
        CLAlgorithm.sanity_check(ada)
    with pytest.raises(ValueError, match="heads are HeadsCIL, wanted HeadsTIL or HeadDIL"):
        hat(heads=heads.HeadsCIL(9))


class Bare(HAT):
    """Hooks as CLArena's sources have them, nothing of ours called."""

    def on_train_start(self) -> None:
        self.begin_optimizer()
        self.backbone.initialize_task_embedding(mode=self.task_embedding_init_mode)
        if self.task_id == 1:
            for name in self.backbone.weighted_layer_names:
                units = self.backbone.get_layer_by_name(name).weight.shape[0]
                self.cumulative_mask_for_previous_tasks[name] = torch.zeros(units)

    def on_train_end(self) -> None:
        mask = self.backbone.store_mask()
        self.cumulative_mask_for_previous_tasks = {
            name: torch.max(self.cumulative_mask_for_previous_tasks[name], mask[name])
            for name in self.backbone.weighted_layer_names
        }


def test_hooks_of_ones_own_forget_nothing() -> None:
    algorithm = Bare(mlp(), heads.HeadsTIL(9), "hat", 40.0, 50.0, 0.75)
    train(algorithm, 1)
    before = logits(algorithm, 1)
    train(algorithm, 2)
    assert torch.equal(logits(algorithm, 1), before)


def test_what_the_newest_pipelines_give_to_all_is_taken() -> None:
    hat(backbone=mlp(disable_unlearning=True), disable_unlearning=True)
    backbones.HATMaskResNet18(3, 512, "sigmoid", disable_unlearning=False)
    hat("adahat", disable_unlearning=True)
    with pytest.raises(TypeError, match="disable_learning"):
        mlp(disable_learning=True)


def test_hyperparameters_by_name_without_lightning() -> None:
    class Saves(PlainModule):
        def __init__(self, a: int, b: int, *names: str) -> None:
            super().__init__()
            self.save_hyperparameters(*names)

    assert Saves(1, 2).hparams == {"a": 1, "b": 2} and Saves(1, 2, "b").hparams == {"b": 2}
    with pytest.raises(ValueError, match="'c' is none of the arguments a, b"):
        Saves(1, 2, "c")


def test_an_algorithm_of_ones_own_on_plain_backbone_and_growing_heads() -> None:
    algorithm = CLAlgorithm(MLP(FEATURES, [5], 4), cl_heads.HeadsCIL(4))
    x = batch(1)[0]
    with pytest.raises(RuntimeError, match="HeadsCIL: no head"):
        algorithm(x, "train")
    for task, classes in ((1, 3), (2, 2), (1, 3)):
        algorithm.setup_task_id(task_id=task, num_classes_t=classes, optimizer=ADAM)
    found, activations = algorithm(x, "train", 1)
    assert found.shape == (8, 5) and list(activations) == ["fc/0", "fc/1"]
    assert algorithm.seen_task_ids == algorithm.heads.seen_task_ids == [1, 2]
    assert algorithm.next_layer("fc/0") is algorithm.backbone.fc[1]
    algorithm.set_forward_func_return_logits_only(True)
    assert torch.equal(algorithm(x, "test", None), found)


def test_both_terms_whatever_the_mode() -> None:
    mask = {"a": torch.tensor([0.5, 1.0, 0.2, 0.0])}
    used = {"a": torch.tensor([1.0, 0, 0, 1])}
    for mode in ("original", "cross"):
        reg = HATMaskSparsityReg(2.0, mode)
        assert float(reg.original_reg(mask, used)[0]) == pytest.approx(2 * 0.6)
        term, shares = reg.cross_reg(mask, used)
        assert float(term) == pytest.approx(0.6 + 0.75)
        assert float(shares["a"]) == pytest.approx((0.6 + 0.25) / 2)
        same = reg.original_reg if mode == "original" else reg.cross_reg
        assert reg(mask, used)[0] == same(mask, used)[0]


def test_a_term_of_ones_own_is_asked() -> None:
    class Twice(HATMaskSparsityReg):
        def original_reg(self, mask: Any, previous_cumulative_mask: Any) -> Any:
            term, shares = super().original_reg(mask, previous_cumulative_mask)
            return 2 * term, shares

    found = []
    for make in (HATMaskSparsityReg, Twice):
        torch.manual_seed(0)
        algorithm = hat("adahat")
        algorithm.mark_sparsity_reg = make(0.75)
        found.append(train(algorithm, 1, 1)["loss_reg"].item())
    assert found[1] == pytest.approx(2 * found[0])


def test_heads_of_clarenas_own_class_keep_their_tasks() -> None:
    class HeadsTIL(nn.Module):
        """As CLArena's: makes a head whenever it is asked, and freezes none."""

        def __init__(self) -> None:
            super().__init__()
            self.input_dim, self.heads = 9, nn.ModuleDict()

        def setup_task_id(self, task_id: int, num_classes_t: int) -> None:
            self.task_id = task_id
            self.heads[str(task_id)] = nn.Linear(self.input_dim, num_classes_t)

        def get_head(self, task_id: int) -> nn.Module:
            return self.heads[str(task_id)]

        def forward(self, feature: Tensor, task_id: int) -> Tensor:
            return self.get_head(task_id)(feature)

    algorithm = hat(heads=HeadsTIL())
    train(algorithm, 1)
    before, head = logits(algorithm, 1), algorithm.heads.get_head(1)
    train(algorithm, 2)
    assert not any(p.requires_grad for p in head.parameters())
    assert torch.equal(logits(algorithm, 1), before)
    algorithm.setup_task_id(1, CLASSES, ADAM)
    assert algorithm.heads.get_head(1) is head and algorithm.heads.task_id == 1
    with pytest.raises(ValueError, match="a head of 3 classes, wanted 4"):
        algorithm.setup_task_id(2, 4, ADAM)
