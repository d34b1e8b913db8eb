from __future__ import annotations

import functools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from maskcl.compat.clarena.backbones import HATMaskMLP
from maskcl.compat.clarena.cl_algorithms import AdaHAT
from maskcl.compat.clarena.cl_algorithms.module import PlainModule, module_class
from maskcl.compat.clarena.heads import HeadDIL, HeadsTIL
from tests.compat.clarena_tiny import ADAM, CLASSES, FEATURES, batch, begin, dil, hat, logits, mlp
from tests.compat.clarena_tiny import train as train_task

SGD = functools.partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("one_head", [False, True])
def test_checkpoint_round_trip(tmp_path: Path, one_head: bool) -> None:
    def make() -> Any:
        backbone = mlp(batch_normalization="independent")
        return hat("adahat", backbone, heads=dil() if one_head else None)

    algorithm = make()
    for task in (1, 2):
        train_task(algorithm, task)
    torch.save(algorithm.state_dict(), tmp_path / "all.pt")
    other = make()
    other.load_state_dict(torch.load(tmp_path / "all.pt", weights_only=True))
    for task in (1, 2):
        assert torch.equal(logits(other, task), logits(algorithm, task))
    assert other.processed_task_ids == [1, 2]
    for name, total in algorithm.summative_mask_for_previous_tasks.items():
        assert torch.equal(other.summative_mask_for_previous_tasks[name], total)
    # What follows is the same too, from the same seed.
    for each in (algorithm, other):
        torch.manual_seed(3)
        train_task(each, 3)
    assert torch.equal(logits(other, 3), logits(algorithm, 3))


def test_a_checkpoint_inside_a_task_keeps_its_embedding(tmp_path: Path) -> None:
    algorithm = hat(backbone=mlp(batch_normalization="independent"))
    train_task(algorithm, 1)
    begin(algorithm, 2)
    algorithm.training_step(batch(1), 0, 2)
    torch.save(algorithm.state_dict(), tmp_path / "inside.pt")
    other = hat(backbone=mlp(batch_normalization="independent"))
    other.setup_task_id(2, CLASSES, ADAM)
    other.load_state_dict(torch.load(tmp_path / "inside.pt", weights_only=True))
    other.on_train_start()
    state = other.state_dict()
    assert state.keys() == algorithm.state_dict().keys()
    for name, value in algorithm.state_dict().items():
        assert torch.equal(state[name], value), name
    frozen = [name for name, p in other.named_parameters() if not p.requires_grad]
    assert {name.split(".")[2] for name in frozen if "heads" in name} == {"1"}


def test_each_task_has_its_own_batch_norm() -> None:
    algorithm = hat(backbone=mlp(batch_normalization="independent"))
    train_task(algorithm, 1)
    norm = algorithm.backbone.fc_bns["1"][0]
    kept = {name: value.clone() for name, value in norm.state_dict().items()}
    assert float(kept["running_mean"].abs().max()) > 0
    begin(algorithm, 2)
    current = algorithm.backbone.fc_bn[0]
    assert not current.running_mean.any() and (current.weight == 1).all(), "starts afresh"
    algorithm.training_step(batch(1), 0, 2)
    assert current.running_mean.any()
    algorithm.train()
    algorithm(batch(1)[0], "test", task_id=1)
    for name, value in kept.items():
        assert torch.equal(norm.state_dict()[name], value), name
    assert algorithm.backbone.get_bn("train", None) is algorithm.backbone.fc_bn
    assert algorithm.backbone.get_bn("test", 1) is algorithm.backbone.fc_bns["1"]
    with pytest.raises(ValueError, match="task 9 has no BatchNorm"):
        algorithm.backbone.get_bn("test", 9)
    assert mlp().get_bn("test", 1) is None


def test_a_task_set_up_again_keeps_its_batch_norm_and_head() -> None:
    algorithm = hat(backbone=mlp(batch_normalization="independent"))
    train_task(algorithm, 1)
    train_task(algorithm, 2)
    norm, head = algorithm.backbone.fc_bns["1"], algorithm.heads.get_head(1)
    before = logits(algorithm, 1)
    algorithm.setup_task_id(1, CLASSES, ADAM)
    assert algorithm.backbone.fc_bns["1"] is norm and algorithm.heads.get_head(1) is head
    assert torch.equal(logits(algorithm, 1), before)
    with pytest.raises(ValueError, match="a head of 3 classes, wanted 4"):
        algorithm.setup_task_id(task_id=1, num_classes_t=4, optimizer=ADAM)


def test_what_a_step_returns() -> None:
    algorithm = hat()
    begin(algorithm, 1)
    x, y = batch(1)
    out = algorithm.training_step((x, y), 1, 4)
    assert set(out) == {
        *("preds", "loss", "loss_cls", "hat_mask_sparsity_reg", "loss_reg", "acc", "activations"),
        *("logits", "mask", "input", "target", "capacity"),
        *("adjustment_rate_weight", "adjustment_rate_bias"),
    }
    assert torch.equal(out["loss"], out["loss_cls"] + out["hat_mask_sparsity_reg"])
    assert torch.equal(out["preds"], out["logits"].argmax(1))
    assert out["logits"].shape == (8, CLASSES) and out["input"] is x
    algorithm.on_train_end()
    for found in (algorithm.validation_step((x, y)), algorithm.test_step((x, y), 0, 0)):
        assert set(found) == {"preds", "loss_cls", "acc"}
    algorithm.set_forward_func_return_logits_only(True)
    assert algorithm(x, "validation").shape == (8, CLASSES)


def test_hooks_out_of_order_say_what_to_call() -> None:
    algorithm = hat()
    with pytest.raises(RuntimeError, match="setup_task_id"):
        algorithm.on_train_start()
    algorithm.setup_task_id(1, CLASSES, ADAM)
    with pytest.raises(ValueError, match="num_batches is None"):
        algorithm.training_step(batch(1), 0)
    with pytest.raises(RuntimeError, match="on_train_start"):
        algorithm.training_step(batch(1), 0, 2)
    algorithm.on_train_start()
    with pytest.raises(ValueError, match="batch is 2"):
        algorithm.training_step(batch(1), 2, 2)
    with pytest.raises(ValueError, match="task 2 has no head"):
        algorithm(batch(1)[0], "validation", task_id=2)
    with pytest.raises(RuntimeError, match="setup_task"):
        HeadDIL(3)(torch.zeros(1, 3))


def test_optimizer_and_scheduler_of_a_task() -> None:
    algorithm = hat()
    train_task(algorithm, 1)
    schedule = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    algorithm.setup_task_id(2, CLASSES, ADAM, schedule)
    assert algorithm.optimizer is None and algorithm.lr_scheduler is None
    algorithm.on_train_start()
    weights, embeddings = algorithm.optimizer.param_groups
    assert [weights["weight_decay"], embeddings["weight_decay"]] == [0.1, 0.0]
    assert {id(p) for p in embeddings["params"]} == {id(e) for e in algorithm.backbone.embeddings()}
    held = {id(p) for p in weights["params"]}
    assert {id(p) for p in algorithm.heads.get_head(2).parameters()} <= held
    assert not {id(p) for p in algorithm.heads.get_head(1).parameters()} & held
    algorithm.training_step(batch(1), 0, 1)
    algorithm.lr_scheduler.step()
    assert weights["lr"] == pytest.approx(0.005)
    monitor = algorithm.configure_optimizers()["lr_scheduler"]["monitor"]
    assert monitor == "task_2/learning_curve/val/loss_cls"


def test_a_trainer_that_drives_is_asked_for_everything() -> None:
    algorithm = hat()
    algorithm.setup_task_id(1, CLASSES, ADAM)
    inner = algorithm.configure_optimizers()["optimizer"]
    calls: list[str] = []

    def backward(loss: torch.Tensor) -> None:
        calls.append("backward")
        loss.backward()

    def optimizers() -> Any:
        calls.append("optimizers")
        # As Lightning's wrapper: it has the inner optimizer, whose hooks run.
        return SimpleNamespace(optimizer=inner, zero_grad=inner.zero_grad, step=inner.step)

    data = SimpleNamespace(dataset_test={4: None, 1: None})
    algorithm.optimizers, algorithm.manual_backward = optimizers, backward
    algorithm.trainer = SimpleNamespace(optimizers=[inner], num_training_batches=2, datamodule=data)
    algorithm.on_train_start()
    algorithm.training_step(batch(1), 0)
    assert calls == ["optimizers", "optimizers", "backward"] and algorithm.optimizer is None
    assert algorithm.get_test_task_id_from_dataloader_idx(1) == 1
    assert algorithm.get_test_task_id_from_dataloader_idx(0) == 4


def test_lightnings_module_is_the_base_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lightning", SimpleNamespace(LightningModule=nn.Identity))
    assert module_class() is nn.Identity
    monkeypatch.setitem(sys.modules, "lightning", None)
    assert module_class() is PlainModule


def test_hyperparameters_and_neighbours() -> None:
    backbone = HATMaskMLP(FEATURES, [4], 5, "sigmoid")
    algorithm = AdaHAT(
        backbone,
        HeadsTIL(5),
        "adahat",
        adjustment_intensity=0.1,
        s_max=40,
        clamp_threshold=50,
        mask_sparsity_factor=0.75,
        non_algorithmic_hparams={"seed": 3},
    )
    assert algorithm.hparams["seed"] == 3 and algorithm.hparams["epsilon"] == 0.1
    assert algorithm.hparams["mask_sparsity_reg_factor"] == 0.75
    algorithm.setup_task_id(1, CLASSES, SGD)
    assert algorithm.preceding_layer("heads") is backbone.fc[1]
    assert algorithm.preceding_layer("fc/1") is algorithm.backbone.fc[0]
    assert algorithm.preceding_layer("fc/0") is None and algorithm.next_layer("heads") is None
    assert algorithm.next_layer("fc/0") is backbone.fc[1]
    assert algorithm.next_layer("fc/1") is algorithm.heads.head_t


def test_clip_grad_by_mask() -> None:
    algorithm = hat()
    begin(algorithm, 1)
    mask = {
        name: torch.rand(e.numel())
        for name, e in zip(("fc/0", "fc/1", "fc/2"), algorithm.backbone.embeddings())
    }
    for parameter in algorithm.backbone.fc[1].parameters():
        parameter.grad = torch.ones_like(parameter)
    algorithm.clip_grad_by_mask(mask, "max")
    wanted = torch.maximum(mask["fc/1"][:, None], mask["fc/0"][None])
    assert torch.equal(algorithm.backbone.fc[1].weight.grad, wanted)
    assert torch.equal(algorithm.backbone.fc[1].bias.grad, mask["fc/1"])


def test_the_documents_example_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "compat-clarena.md").read_text()
    (code,) = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    space: dict[str, Any] = {}
    exec(code, space)
    assert space["logits"].shape == (16, 3) and 0 < float(space["outputs"]["capacity"]) < 1
