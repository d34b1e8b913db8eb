"""What is refused in a sentence before anything is trained."""

from __future__ import annotations

import pytest
import torch

from maskcl.methods import HAT, MAS, Piggyback
from maskcl.problems import Vision
from maskcl.training.trainer import Trainer
from tests import tiny
from tests.training.test_trainer import make


def arguments(**changed):
    return {
        "net": tiny.network("mlp", 2),
        "method": HAT(),
        "problem": Vision(),
        "scenario": tiny.scenario(2),
        "optimizer_fn": tiny.OPTIMIZERS["sgd"],
        "epochs": 1,
        "batch_size": 8,
        "device": "cpu",
    } | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"net": tiny.mlp()},
            r"net is a Sequential, wanted a network of tasks: maskcl\.nn\.to_hat",
        ),
        ({"net": None}, "net is None"),
        ({"method": HAT}, "method is the class HAT, wanted a method such as HAT"),
        ({"method": "hat"}, "method is a str"),
        ({"problem": Vision}, "problem is the class Vision, wanted a problem such as Vision"),
        ({"scenario": [1, 2]}, "scenario is a list, wanted a Scenario"),
        (
            {"optimizer_fn": torch.optim.SGD(tiny.mlp().parameters(), lr=0.1)},
            "optimizer_fn is a SGD, wanted a function",
        ),
        ({"optimizer_fn": None}, "optimizer_fn is None"),
    ],
)
def test_another_kind_of_argument_is_named(changed, message):
    with pytest.raises(TypeError, match=f"Trainer: {message}"):
        Trainer(**arguments(**changed))


@pytest.mark.parametrize("method", [HAT(), MAS(), Piggyback()])
def test_a_function_that_makes_no_optimizer_is_told(method, tmp_path):
    kind = {HAT: tiny.network, MAS: tiny.importance}.get(type(method), tiny.piggyback)
    wrong = arguments(net=kind("mlp", 2), method=method, optimizer_fn=lambda groups: groups)
    with pytest.raises(TypeError, match="optimizer_fn returned a list, wanted a torch"):
        Trainer(**wrong, directory=tmp_path).fit()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"accumulate": 0}, "accumulate is 0, wanted an integer of at least 1"),
        ({"accumulate": True}, "accumulate is True"),
        ({"epochs": True}, "epochs is True"),
        ({"evaluate": "first"}, "evaluate is 'first', wanted 'all', 'last' or an integer"),
        ({"evaluate": 0}, "evaluate is 0"),
        ({"evaluate": 1.5}, "evaluate is 1.5"),
        ({"precision": "16"}, "precision is '16', float16 with a scaled loss, which is for CUDA"),
    ],
)
def test_numbers_out_of_range_are_named(changed, message):
    with pytest.raises(ValueError, match=f"Trainer: {message}"):
        make(**changed)
