"""What is refused in a sentence before anything is trained."""

from __future__ import annotations

import pytest
import torch

from maskcl.callback import Callback
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1.5}, "seed is 1.5, wanted an integer"),
        ({"seed": None}, "seed is None"),
        ({"seed": True}, "seed is True"),
        ({"directory": 3}, "directory is 3, wanted the path of a folder or None"),
        ({"directory": b"run"}, "directory is b'run'"),
        ({"directory": ""}, "directory is ''"),
        ({"directory": "a\0b"}, "wanted the path of a folder"),
        ({"directory": __file__}, "which is a file; wanted a folder"),
        ({"callback": Callback}, "callback is Callback, wanted an object of a Callback's class"),
        ({"callback": 3}, "callback is int"),
        ({"callback": False}, "callback is bool"),
        ({"callback": iter([Callback()])}, "callback is list_iterator"),
        ({"callback": [Callback(), None]}, "callback is NoneType"),
        ({"progress": "no"}, "progress is 'no', wanted True or False"),
        ({"fabric": 3}, "fabric is a int, wanted a launched Fabric or None"),
        ({"optimizer_fn": lambda: None}, "that does not take one argument"),
        ({"optimizer_fn": lambda a, b: None}, "that does not take one argument"),
    ],
)
def test_options_of_another_kind_are_named(changed, message):
    with pytest.raises((TypeError, ValueError), match=r"^Trainer: ") as error:
        Trainer(**arguments(**changed))
    assert message in str(error.value)


@pytest.mark.parametrize("callback", [None, [], (), (Callback(),)])
def test_callbacks_are_none_one_or_several(callback):
    Trainer(**arguments(callback=callback))


def test_an_optimizer_of_other_parameters_is_told(tmp_path):
    other = torch.nn.Parameter(torch.zeros(1))
    changed = {"optimizer_fn": lambda groups: torch.optim.SGD([other]), "directory": tmp_path / "r"}
    with pytest.raises(ValueError, match=r"^Trainer: optimizer_fn returned an optimizer of other"):
        Trainer(**arguments(**changed)).fit()
    assert not (tmp_path / "r").exists()


NETWORKS = {"hat": tiny.network, "piggyback": tiny.piggyback, "mas": tiny.importance}


@pytest.mark.parametrize(
    ("method", "net"),
    [(HAT(), "piggyback"), (HAT(), "mas"), (Piggyback(), "hat"), (Piggyback(), "mas")],
)
def test_a_network_of_another_method_is_told(method, net):
    with pytest.raises(TypeError, match=rf"^{type(method).__name__}: net is a \w+Network, wanted"):
        Trainer(**arguments(method=method, net=NETWORKS[net]("mlp", 2))).fit()
