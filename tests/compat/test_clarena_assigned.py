"""Masks that are assigned: cumulative, summative and stored ones."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from maskcl.compat.clarena.cl_algorithms import HAT
from tests.compat.clarena_tiny import FEATURES, batch, begin, dil, hat, logits, mlp, train

LAYERS = {"fc/0": 16, "fc/1": 12, "fc/2": 9}
SGD = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1)


def masks(open_units: int, value: float = 1) -> dict[str, Tensor]:
    """The first units of every layer."""
    return {
        n: torch.where(torch.arange(units) < open_units, value, 0.0) for n, units in LAYERS.items()
    }


def weights(algorithm: HAT) -> list[Tensor]:
    return [layer.weight.detach().clone() for layer in algorithm.backbone.fc]


@pytest.mark.parametrize("protection", ["min", "exact"])
@pytest.mark.parametrize("when", ["before", "during"])
def test_an_assigned_cumulative_mask_protects(protection: str, when: str) -> None:
    algorithm = hat(protection=protection)
    train(algorithm, 1, optimizer=SGD)
    before = weights(algorithm)
    if when == "before":
        algorithm.cumulative_mask_for_previous_tasks = masks(5)
    begin(algorithm, 2, SGD)
    if when == "during":
        algorithm.cumulative_mask_for_previous_tasks = masks(5)
    for i in range(4):
        algorithm.training_step(batch(i), i, 4)
    first, second, third = (now != old for now, old in zip(weights(algorithm), before))
    assert not first[:5].any() and not second[:5, :5].any() and not third[:5, :5].any()
    assert first[5:].any() and second[5:].any() and second[:5, 5:].any(), "the others learn"
    rates, _, capacity = algorithm.clip_grad_by_adjustment()
    assert (rates["fc/1"] == 0).sum() == 25 and 0 < float(capacity) < 1
    algorithm.on_train_end()
    stored, found = algorithm.masks[2], algorithm.cumulative_mask_for_previous_tasks
    for name, mask in masks(5).items():
        assert torch.equal(found[name], torch.maximum(mask, stored[name])), "it goes on"


def test_the_term_and_one_head_follow_it() -> None:
    algorithm = hat(heads=dil())
    train(algorithm, 1)
    algorithm.cumulative_mask_for_previous_tasks = masks(20)
    begin(algorithm, 2)
    head = algorithm.heads.get_head().weight.detach().clone()
    outputs = algorithm.training_step(batch(1), 0, 2)
    assert outputs["loss_reg"] == 0 and outputs["capacity"] == 0, "no unit is free"
    assert torch.equal(algorithm.heads.get_head().weight, head)
    algorithm.cumulative_mask_for_previous_tasks = masks(0)
    outputs = algorithm.training_step(batch(1), 1, 2)
    assert outputs["capacity"] == 1 and outputs["loss_reg"] > 0
    assert not torch.equal(algorithm.heads.get_head().weight, head)
    # An empty one: the stored masks count again.
    algorithm.cumulative_mask_for_previous_tasks = {}
    for name, mask in algorithm.masks[1].items():
        assert torch.equal(algorithm.cumulative_mask_for_previous_tasks[name], mask)


@pytest.mark.parametrize("protection", ["min", "exact"])
@pytest.mark.parametrize("most", [3, 64, 70, 128])
def test_an_assigned_summative_mask_counts(most: int, protection: str) -> None:
    algorithm = hat("adahat_no_reg", protection=protection)
    train(algorithm, 1)
    chance = torch.Generator().manual_seed(most)
    counts = {n: torch.randint(most + 1, (units,), generator=chance) for n, units in LAYERS.items()}
    counts["fc/0"][0] = most
    algorithm.summative_mask_for_previous_tasks = counts
    begin(algorithm, 2)
    outputs = algorithm.training_step(batch(1), 0, 2)
    n = torch.minimum(counts["fc/1"][:, None], counts["fc/0"][None])
    torch.testing.assert_close(outputs["adjustment_rate_weight"]["fc/1"], 0.2 / (n + 0.2))
    torch.testing.assert_close(
        outputs["adjustment_rate_bias"]["fc/0"], 0.2 / (counts["fc/0"] + 0.2)
    )
    algorithm.on_train_end()
    for name, mask in algorithm.masks[2].items():
        found = algorithm.summative_mask_for_previous_tasks[name]
        assert torch.equal(found, counts[name] + mask)
    assert not algorithm.backbone.task_bits.assigned_cumulative.numel()


def test_items_and_methods_of_dictionaries_write_too() -> None:
    algorithm = hat("adahat")
    train(algorithm, 1)
    algorithm.cumulative_mask_for_previous_tasks["fc/1"] = torch.ones(12, dtype=torch.bool)
    algorithm.summative_mask_for_previous_tasks.update({"fc/2": torch.full((9,), 4)})
    assert (algorithm.cumulative_mask_for_previous_tasks["fc/1"] == 1).all()
    assert (algorithm.backbone.get_summative_mask()["fc/2"] == 4).all()
    stored = algorithm.backbone.masks
    stored["2"] = masks(3)
    assert algorithm.backbone.task_bits.stored() == [1, 2] and "2" in algorithm.masks
    assert torch.equal(algorithm.masks[2]["fc/1"], masks(3)["fc/1"])
    del stored[1]
    assert list(algorithm.masks) == [2] and stored.pop("2").keys() == LAYERS.keys()
    assert algorithm.masks == {} and algorithm.backbone.task_bits.bits.shape == (0, 1)
    algorithm.masks = {"4": masks(2), 1: masks(1)}
    algorithm.backbone.masks[1]["fc/0"].fill_(1)
    assert int(algorithm.masks["1"]["fc/0"].sum()) == 1, "tensors are copies"
    plain = pickle.loads(pickle.dumps(algorithm.cumulative_mask_for_previous_tasks))
    assert type(plain) is dict and torch.equal(plain["fc/1"], torch.ones(12))
    assert type(copy.deepcopy(algorithm.masks)) is dict


def test_stored_masks_that_are_assigned_protect_and_test() -> None:
    algorithm = hat()
    algorithm.masks = {7: masks(4)}
    before = weights(algorithm)
    train(algorithm, 8, optimizer=SGD)
    moved = algorithm.backbone.fc[1].weight != before[1]
    assert not moved[:4, :4].any() and moved.any()
    net, x = algorithm.backbone, torch.randn(2, FEATURES)
    assert torch.equal(net(x, "test", test_task_id=7)[0], net(x, "test", test_mask=masks(4))[0])


def test_stored_masks_that_are_assigned_in_a_task_protect_from_there_on() -> None:
    algorithm = hat()
    train(algorithm, 1)
    begin(algorithm, 2, SGD)
    algorithm.training_step(batch(0), 0, 4)
    algorithm.backbone.masks[1] = masks(20)
    before = weights(algorithm)
    for i in (1, 2, 3):
        algorithm.training_step(batch(i), i, 4)
    assert all(torch.equal(now, old) for now, old in zip(weights(algorithm), before))


def test_what_was_assigned_is_in_checkpoints_and_older_files_load() -> None:
    algorithm = hat("adahat")
    train(algorithm, 1)
    older = {k: v for k, v in algorithm.state_dict().items() if "assigned" not in k}
    algorithm.cumulative_mask_for_previous_tasks = masks(6)
    algorithm.summative_mask_for_previous_tasks = masks(6, 5.0)
    other = hat("adahat")
    other.setup_task_id(1, 3, SGD)
    other.load_state_dict(algorithm.state_dict())
    for name in LAYERS:
        assert torch.equal(other.cumulative_mask_for_previous_tasks[name], masks(6)[name])
        assert torch.equal(other.summative_mask_for_previous_tasks[name], masks(6, 5.0)[name])
    other.load_state_dict(older)
    assert torch.equal(other.cumulative_mask_for_previous_tasks["fc/0"], other.masks[1]["fc/0"])
    assert torch.equal(logits(other, 1), logits(algorithm, 1))


@pytest.mark.parametrize(
    ("match", "change"),
    [
        (r"has fc/0, wanted masks of fc/0, fc/1, fc/2", {"fc/1": None, "fc/2": None}),
        (r"\['fc/1'\] is \[11\], wanted \[12\]", {"fc/1": torch.ones(11)}),
        (r"\['fc/1'\] is list, wanted \[12\]", {"fc/1": [1.0] * 12}),
        (r"\['fc/2'\] has 0.5, wanted", {"fc/2": torch.full((9,), 0.5)}),
        (r"\['fc/2'\] has -1.0, wanted", {"fc/2": torch.full((9,), -1.0)}),
        (r"\['fc/2'\] has nan, wanted", {"fc/2": torch.full((9,), float("nan"))}),
    ],
)
def test_what_is_no_mask_is_a_value_error(match: str, change: dict[str, Any]) -> None:
    algorithm = hat("adahat")
    wrong = {n: v for n, v in (masks(2) | change).items() if v is not None}
    for name in ("cumulative_mask_for_previous_tasks", "summative_mask_for_previous_tasks"):
        with pytest.raises(ValueError, match=f"{name}.*{match}" if "has fc" in match else match):
            setattr(algorithm, name, wrong)
    with pytest.raises(ValueError, match=match):
        algorithm.masks[1] = wrong


def test_more_than_one_is_none_of_a_cumulative_mask_and_tasks_have_numbers() -> None:
    algorithm = hat("adahat")
    with pytest.raises(ValueError, match=r"\['fc/0'\] has 2.0, wanted 0 or 1"):
        algorithm.cumulative_mask_for_previous_tasks = masks(1, 2.0)
    for task in (0, "one"):
        with pytest.raises(ValueError, match="masks: task_id is"):
            algorithm.backbone.masks = {task: masks(1)}
    with pytest.raises(ValueError, match="has list, wanted masks of"):
        algorithm.cumulative_mask_for_previous_tasks = [1]  # type: ignore[assignment]
    assert mlp().masks == {}
