from __future__ import annotations

import copy
import functools
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from maskcl.compat.clarena.cl_algorithms import HAT, AdaHAT
from maskcl.compat.clarena.cl_algorithms.compensation import compensate_
from maskcl.compat.clarena.cl_algorithms.regularizers import HATMaskSparsityReg
from maskcl.compat.clarena.heads import HeadsTIL
from tests.compat.clarena_tiny import ADAM, CLASSES, batch, begin, dil, hat, logits, mlp, train

LAYERS = {"fc/0": 16, "fc/1": 12, "fc/2": 9}
SHARES = dict.fromkeys(LAYERS, 0.0)
MODES = ["hat", "hat_const_alpha", "hat_const_1", "adahat", "adahat_no_sum", "adahat_no_reg"]
OPTIMIZERS = {
    "adam": ADAM,
    "adamw": functools.partial(torch.optim.AdamW, lr=0.05, weight_decay=0.5),
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("protection", ["min", "exact"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_mode_hat_forgets_nothing(optimizer: str, protection: str) -> None:
    algorithm = hat(
        protection=protection, backbone=mlp(batch_normalization="independent", dropout=0.2)
    )
    answers = []
    for task in (1, 2, 3):
        train(algorithm, task, optimizer=OPTIMIZERS[optimizer])
        answers.append(logits(algorithm, task))
        for old, before in enumerate(answers, 1):
            assert torch.equal(logits(algorithm, old), before)
    assert all(answer.abs().sum() > 0 for answer in answers)


def test_an_optimizer_kept_from_task_to_task_moves_nothing() -> None:
    algorithm = hat()
    algorithm.setup_task_id(1, CLASSES, ADAM)
    algorithm.heads.setup_task_id(2, CLASSES)
    optimizer = torch.optim.Adam(algorithm.parameters(), lr=0.05, weight_decay=0.1)
    train(algorithm, 1, optimizer=optimizer)
    before = logits(algorithm, 1)
    train(algorithm, 2, optimizer=optimizer)
    assert algorithm.optimizer is optimizer
    assert torch.equal(logits(algorithm, 1), before)


def test_one_head_for_all_domains_forgets_nothing() -> None:
    for optimizer in (ADAM, functools.partial(torch.optim.SGD, lr=0.1)):
        algorithm = hat(heads=dil())
        train(algorithm, 1, optimizer=optimizer)
        before, head = logits(algorithm, 1), algorithm.heads.get_head().weight.detach().clone()
        train(algorithm, 2, optimizer=optimizer)
        assert torch.equal(logits(algorithm, 1), before)
        assert not torch.equal(algorithm.heads.get_head().weight, head), "free columns learn"


def gradients(algorithm: HAT) -> tuple[dict[str, Any], Any]:
    """Gradients of a batch of task 3 before and behind the adjustment."""
    begin(algorithm, 3)
    x, y = batch(5)
    logits, mask, _ = algorithm(x, "train", task_id=3, batch_idx=1, num_batches=4)
    reg, sparsity = algorithm.mark_sparsity_reg(mask, algorithm.cumulative_mask_for_previous_tasks)
    (algorithm.criterion(logits, y) + reg).backward()
    parts = [(n, p) for n, p in algorithm.backbone.fc.named_parameters() if p.grad is not None]
    before = {name: p.grad.clone() for name, p in parts}
    returned = algorithm.clip_grad_by_adjustment(network_sparsity=sparsity)
    return {name: (before[name], p.grad) for name, p in parts}, (*returned, sparsity)


def wanted_rate(algorithm: HAT, layer: str, kind: str, sparsity: dict[str, Any]) -> Any:
    """CLArena's formulas in plain torch: minimum of both ends, then a rate."""
    masks = [algorithm.backbone.masks[task] for task in (1, 2)]
    n = {name: masks[0][name] + masks[1][name] for name in LAYERS}
    users = n[layer]
    if kind == "weight":
        users = users[:, None].expand(algorithm.backbone.get_layer_by_name(layer).weight.shape)
        before = algorithm.backbone.preceding_layer_name(layer)
        if before is not None:
            users = torch.minimum(users, n[before][None].expand_as(users))
    share = 0 if algorithm.adjustment_mode == "adahat_no_reg" else float(sparsity[layer])
    r = 0.02 / (0.1 + share)
    return {
        "hat": 1 - users.clamp(max=1),
        "hat_const_alpha": torch.where(users > 0, 0.3, 1.0),
        "hat_const_1": torch.ones_like(users),
        "adahat_no_sum": torch.full_like(users, r / (3 + r)),
    }.get(algorithm.adjustment_mode, r / (users + r))


@pytest.mark.parametrize("mode", MODES)
def test_rates_against_the_formula(mode: str) -> None:
    algorithm = hat(mode)
    train(algorithm, 1)
    train(algorithm, 2)
    found, (weights, biases, capacity, sparsity) = gradients(algorithm)
    total = elements = 0.0
    for name, (before, after) in found.items():
        index, kind = name.split(".")
        rate = wanted_rate(algorithm, f"fc/{index}", kind, sparsity)
        torch.testing.assert_close(after, before * rate)
        given = (weights if kind == "weight" else biases)[f"fc/{index}"]
        torch.testing.assert_close(given, rate.expand_as(given))
        total, elements = total + float(rate.sum()), elements + rate.numel()
        used = rate < 1
        assert mode == "hat_const_1" or (used.any() and (before[used] != 0).any())
    assert float(capacity) == pytest.approx(total / elements, rel=1e-5)
    assert list(weights) == list(biases) == list(LAYERS)


def test_adahat_with_exact_protection_counts_tasks_that_use_both_ends() -> None:
    algorithm = hat("adahat_no_reg", protection="exact")
    train(algorithm, 1)
    train(algorithm, 2)
    found, (weights, _, _, _) = gradients(algorithm)
    masks = [algorithm.backbone.masks[task] for task in (1, 2)]
    users = sum(torch.outer(m["fc/1"], m["fc/0"]) for m in masks)
    torch.testing.assert_close(weights["fc/1"], 0.2 / (users + 0.2))
    before, after = found["1.weight"]
    torch.testing.assert_close(after, before * weights["fc/1"])


def test_random_rates_are_of_protected_weights_and_repeat_with_the_seed() -> None:
    algorithm = hat("hat_random")
    train(algorithm, 1)
    train(algorithm, 2)
    twin = copy.deepcopy(algorithm)
    torch.manual_seed(7)
    found, (weights, _, capacity, _) = gradients(algorithm)
    torch.manual_seed(7)
    _, (again, _, _, _) = gradients(twin)
    before, after = found["1.weight"]
    used = wanted_rate(hat_like(algorithm), "fc/1", "weight", SHARES) == 0
    assert torch.equal(before[~used], after[~used])
    assert torch.equal(after, before * weights["fc/1"])
    rates = weights["fc/1"][used]
    assert 0 <= rates.min() < 0.2 and 0.8 < rates.max() < 1 and rates.unique().numel() > 20
    assert 0 < float(capacity) < 1
    assert torch.equal(weights["fc/1"], again["fc/1"])


def hat_like(algorithm: HAT) -> Any:
    """Its backbone in mode hat, for the formula."""
    return SimpleNamespace(backbone=algorithm.backbone, adjustment_mode="hat")


def test_exact_protection_frees_what_no_one_task_uses() -> None:
    algorithm = hat(protection="exact")
    train(algorithm, 1)
    train(algorithm, 2)
    found, (weights, _, capacity, _) = gradients(algorithm)
    one, two = (algorithm.backbone.masks[task] for task in (1, 2))
    use = [torch.outer(m["fc/1"], m["fc/0"]) for m in (one, two)]
    wanted = 1 - torch.maximum(*use)
    assert torch.equal(weights["fc/1"], wanted)
    assert wanted.sum() > wanted_rate(algorithm, "fc/1", "weight", SHARES).sum()
    before, after = found["1.weight"]
    assert torch.equal(after, before * wanted)
    total = sum(float(weights[name].sum()) for name in weights)
    assert float(capacity) > total / sum(p.numel() for p in algorithm.backbone.fc.parameters())


@pytest.mark.parametrize("mode", ["hat", "adahat", "adahat_no_reg"])
def test_the_first_task_is_free(mode: str) -> None:
    outputs = train(hat(mode), 1)
    assert outputs["capacity"] == 1
    assert all((outputs["adjustment_rate_weight"][name] == 1).all() for name in LAYERS)


def test_compensation_against_the_formula() -> None:
    algorithm = hat()
    begin(algorithm, 1)
    embeddings = algorithm.backbone.embeddings()
    for batch_idx, s in ((0, 1 / 40), (2, 1 / 40 + (40 - 1 / 40) * 2 / 4), (4, 40.0)):
        for e in embeddings:
            e.grad = torch.ones_like(e)
        algorithm.compensate_task_embedding_gradients(batch_idx=batch_idx, num_batches=5)
        for e in embeddings:
            wide = e.detach().double()
            top = torch.cosh((s * wide).clamp(-50, 50)) + 1
            wanted = 40 / s * top / (torch.cosh(wide) + 1)
            torch.testing.assert_close(e.grad.double(), wanted, rtol=1e-4, atol=0)
    one = nn.Parameter(torch.tensor([5.0]))
    one.grad = torch.ones(1)
    compensate_([one], 400.0, 400.0, clamp_threshold=500.0)
    assert torch.isfinite(one.grad).all()


def test_a_gate_that_rounds_to_one_can_close_again() -> None:
    algorithm = hat(s_max=400.0, mask_sparsity_reg_factor=1.0)
    begin(algorithm, 1)
    with torch.no_grad():
        for embedding in algorithm.backbone.embeddings():
            embedding.fill_(0.1)
    out = algorithm.training_step(batch(1), 3, 4)
    assert all((mask == 1).all() for mask in out["mask"].values())
    # s e = 40 is within the clamp, where the compensation restores s_max sigmoid'(e) in full.
    units = sum(LAYERS.values())
    pull = 400 * 0.25 / units
    grads = torch.cat([e.grad.view(-1) for e in algorithm.backbone.embeddings()])
    assert (grads != 0).all() and float(grads.abs().median()) > 0.5 * pull


def test_every_embedding_learns_and_stays_within_six() -> None:
    algorithm = hat()
    start = functools.partial(torch.optim.SGD, lr=1000.0)
    begin(algorithm, 1, start)
    before = algorithm.backbone.flat_embedding().detach().clone()
    algorithm.training_step(batch(1), 0, 2)
    after = algorithm.backbone.flat_embedding().detach()
    assert (after != before).float().mean() > 0.9
    assert float(after.abs().max()) == 6


def test_sparsity_term() -> None:
    mask = {"a": torch.tensor([0.5, 1.0, 0.2, 0.0]), "b": torch.tensor([0.1, 0.9])}
    used = {"a": torch.tensor([1.0, 0, 0, 1]), "b": torch.tensor([0.0, 1])}
    term, shares = HATMaskSparsityReg(2.0)(mask, used)
    assert float(term) == pytest.approx(2 * (1.0 + 0.2 + 0.1) / 3)
    assert float(shares["a"]) == pytest.approx(0.6) and float(shares["b"]) == pytest.approx(0.1)
    term, shares = HATMaskSparsityReg(2.0, "cross")(mask, used)
    in_use = 1 - (0.5 + 0.0 + 0.9) / 3
    assert float(term) == pytest.approx(2 * (1.3 / 3 + in_use) / 2)
    assert float(shares["a"]) == pytest.approx((0.6 + 0.25) / 2)
    ones = {name: torch.ones_like(m) for name, m in mask.items()}
    assert float(HATMaskSparsityReg(2.0)(mask, ones)[0]) == 0, "no unit is free"
    nothing = {name: torch.zeros_like(m) for name, m in mask.items()}
    term, _ = HATMaskSparsityReg(2.0, "cross")(mask, nothing)
    assert float(term) == pytest.approx(2.7 / 6), "none is in use"


def test_a_full_network_still_steps() -> None:
    algorithm = hat(task_embedding_init_mode="U01")
    train(algorithm, 1, steps=0)
    before = logits(algorithm, 1)
    outputs = train(algorithm, 2)
    assert float(outputs["capacity"]) == 0 and outputs["hat_mask_sparsity_reg"] == 0
    assert torch.isfinite(outputs["loss"])
    assert torch.equal(logits(algorithm, 1), before)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="adjustment_mode is 'adahat', wanted one of 'hat'"):
        HAT(mlp(), HeadsTIL(9), "adahat", 40, 50, 0.75)
    with pytest.raises(ValueError, match="adjustment_mode is 'hat', wanted one of 'adahat'"):
        AdaHAT(mlp(), HeadsTIL(9), "hat", 0.1, 40, 50, 0.75)
    bad: list[tuple[str, str, dict[str, Any]]] = [
        ("alpha is None", "hat_const_alpha", {"alpha": None}),
        ("mode is 'crossed'", "hat", {"mask_sparsity_reg_mode": "crossed"}),
        ("factor is -1", "hat", {"mask_sparsity_reg_factor": -1}),
        ("task_embedding_init_mode is 'masked'", "hat", {"task_embedding_init_mode": "masked"}),
        ("protection is 'max'", "hat", {"protection": "max"}),
        ("alpha is 'x'", "hat_const_alpha", {"alpha": "x"}),
        ("factor is None", "hat", {"mask_sparsity_reg_factor": None}),
        ("s_max is 0.5", "hat", {"s_max": 0.5}),
        ("s_max is None", "hat", {"s_max": None}),
        ("s_max is inf", "hat", {"s_max": float("inf")}),
        ("clamp_threshold is '50'", "hat", {"clamp_threshold": "50"}),
        ("epsilon is 0", "adahat", {"epsilon": 0}),
        ("output_dim is 9", "hat", {"heads": HeadsTIL(8)}),
        ("HeadsTIL or HeadDIL", "hat", {"heads": nn.Linear(9, 3)}),
    ]
    for match, mode, options in bad:
        with pytest.raises(ValueError, match=match):
            hat(mode, **options)
    with pytest.raises(ValueError, match="adjustment_intensity is 0"):
        AdaHAT(mlp(), HeadsTIL(9), "adahat", 0, 40, 50, 0.75)
    with pytest.raises(ValueError, match="adjustment_intensity is None"):
        AdaHAT(mlp(), HeadsTIL(9), "adahat", None, 40, 50, 0.75)
    for mode in ("adahat", "adahat_no_sum"):
        algorithm = hat(mode)
        begin(algorithm, 1)
        with pytest.raises(ValueError, match="network_sparsity is None"):
            algorithm.clip_grad_by_adjustment()


@pytest.mark.parametrize("mode", ["N01", "U-11", "U01", "U-10", "last"])
def test_every_documented_init_mode_trains(mode: str) -> None:
    algorithm = hat(task_embedding_init=mode, mask_sparsity_mode="cross")
    train(algorithm, 1, steps=2)
    before = algorithm.backbone.flat_embedding().detach().clone()
    algorithm.setup_task_id(2, CLASSES, ADAM)
    algorithm.on_train_start()
    assert torch.equal(algorithm.backbone.flat_embedding(), before) == (mode == "last")


def test_what_forgets_is_said_beforehand() -> None:
    class More(type(mlp())):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(4, [3], 9, "sigmoid")
            self.scale = nn.Parameter(torch.ones(9))

    with pytest.warns(UserWarning, match=r"trains fc_bn\.0\.weight.*no mask protects"):
        hat(backbone=mlp(batch_normalization="shared"))
    with pytest.warns(UserWarning, match="trains scale"):
        hat(backbone=More())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hat(backbone=mlp(batch_normalization="independent"))
        hat("adahat", backbone=mlp(batch_normalization="shared"))
