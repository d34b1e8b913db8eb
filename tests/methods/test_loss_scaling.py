"""Losses that a GradScaler scales: penalty and clipping are right, or the missing line is told."""

from __future__ import annotations

import copy
import gc
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.amp import GradScaler

import maskcl
from maskcl import problems
from maskcl.callback import Callback
from tests import tiny

METHODS = {
    "mas": maskcl.MAS(strength=20.0),
    "ewc": maskcl.EWC(strength=20.0),
    "hat": maskcl.HAT(clip=0.1, s_max=20.0),
}


@pytest.fixture(autouse=True)
def _no_scaler_of_other_tests() -> None:
    gc.collect()


def network(name: str) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    if name == "hat":
        net = maskcl.nn.to_hat(model, 2, torch.zeros(2, 8), classes=[2, 2])
    else:
        net = maskcl.nn.to_importance(model, 2, classes=[2, 2])
        net.consolidate(0, {n: torch.ones_like(p) for n, p in net.importances.items()})
    net.finish_task(0)
    return net


def trained(name: str, how: str) -> list[Tensor]:
    """Parameters after some steps: without a scaler, told of one, unscaled before, or untold."""
    net, method = network(name), METHODS[name]
    state = method.begin_task(net, 1)
    optimizer = torch.optim.SGD(method.parameter_groups(net, 1), lr=0.01)
    scaler = GradScaler("cpu", init_scale=65536.0, enabled=how != "plain")
    torch.manual_seed(1)
    x, y = torch.randn(64, 8), torch.randint(2, (64,))
    for step in range(5):
        method.before_step(net, state, step / 4)
        optimizer.zero_grad()
        with net.task(1, state.scale):
            loss = nn.functional.cross_entropy(net(x), y) + method.loss_term(net, state)
        scaler.scale(loss).backward()
        if how == "unscaled":
            scaler.unscale_(optimizer)
        if how == "told":
            method.after_backward(net, state, scaler=scaler)
        else:
            method.after_backward(net, state)
        if name != "hat":
            assert float(state.penalty) < 10
        scaler.step(optimizer)
        scaler.update()
        method.after_step(net, state)
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("how", ["told", "unscaled"])
@pytest.mark.parametrize("name", METHODS)
def test_a_scaled_loss_trains_what_an_unscaled_one_does(name: str, how: str) -> None:
    for found, wanted in zip(trained(name, how), trained(name, "plain"), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_scaler_that_was_not_told_of_is_found_and_the_line_is_named(name: str) -> None:
    line = rf"{type(METHODS[name]).__name__}\.after_backward\(net, state, scaler=scaler\)"
    with pytest.raises(RuntimeError, match=f"a GradScaler scales the loss.*{line}"):
        trained(name, "untold")


class Scaler(GradScaler):
    """As libraries make their own."""

    def __init__(self) -> None:
        super().__init__("cpu")


def charge(net: Any, method: Any, state: Any, scaler: GradScaler | None = None) -> None:
    """A step's backward, scaled or not, and what the method does behind it."""
    loss = net.model(torch.randn(4, 8)).sum() if state.scale is None else net(torch.randn(4, 8))
    loss = loss.sum()
    (scaler.scale(loss) if scaler else loss).backward()
    method.after_backward(net, state)


@pytest.mark.parametrize("kind", [partial(GradScaler, "cpu"), Scaler])
@pytest.mark.parametrize("name", METHODS)
def test_one_that_is_made_after_the_first_step_is_found_too(name: str, kind: Any) -> None:
    net, method = network(name), METHODS[name]
    state = method.begin_task(net, 1)
    with net.task(1, state.scale):
        charge(net, method, state)
        for _ in range(3):  # each in the place of the one before
            scaler = kind()
            with pytest.raises(RuntimeError, match="a GradScaler scales the loss"):
                charge(net, method, state, scaler)
            del scaler
            charge(net, method, state)


def test_one_that_is_made_as_another_goes_is_found() -> None:
    net, method = network("mas"), METHODS["mas"]
    state = method.begin_task(net, 1)
    with net.task(1, state.scale):
        scaler = GradScaler("cpu", enabled=False)
        charge(net, method, state)
        scaler = GradScaler("cpu")
        with pytest.raises(RuntimeError, match="a GradScaler scales the loss"):
            charge(net, method, state, scaler)


def test_steps_between_which_no_scaler_is_made_do_not_look_for_one(monkeypatch: Any) -> None:
    net, method = network("mas"), METHODS["mas"]
    state = method.begin_task(net, 1)
    held = [GradScaler("cpu", enabled=False), GradScaler("cpu")]
    with net.task(1, state.scale):
        charge(net, method, state)
        monkeypatch.setattr(state.watch, "_look", None)
        for _ in range(3):
            charge(net, method, state)
    held[1].scale(torch.ones(()))
    with pytest.raises(RuntimeError, match="a GradScaler scales the loss"):
        method.after_backward(net, state)


def test_a_class_of_scalers_that_is_made_between_steps_is_watched() -> None:
    net, method = network("mas"), METHODS["mas"]
    state = method.begin_task(net, 1)
    with net.task(1, state.scale):
        charge(net, method, state)
        own = type("Own", (Scaler,), {})
        charge(net, method, state)
        with pytest.raises(RuntimeError, match="a GradScaler scales the loss"):
            charge(net, method, state, own())


def test_a_state_that_has_looked_for_scalers_is_copied_and_pickled() -> None:
    net, method = network("mas"), METHODS["mas"]
    state = method.begin_task(net, 1)
    with net.task(1, state.scale):
        charge(net, method, state)
    for copied in (copy.deepcopy(state.watch), pickle.loads(pickle.dumps(state.watch))):
        assert not copied.in_use()
        scaler = GradScaler("cpu")
        scaler.scale(torch.ones(()))
        assert copied.in_use()
        del scaler


def test_one_of_another_loss_can_be_said_to_be_that() -> None:
    other = GradScaler("cpu")
    other.scale(torch.ones(()))
    net, method = network("mas"), METHODS["mas"]
    state = method.begin_task(net, 1)
    with pytest.raises(RuntimeError, match=r"GradScaler\(enabled=False\)"):
        method.after_backward(net, state)
    method.after_backward(net, state, scaler=GradScaler(enabled=False))


def test_without_clipping_hat_needs_to_know_nothing() -> None:
    net, method = network("hat"), maskcl.HAT()
    state = method.begin_task(net, 1)
    scaler = GradScaler("cpu")
    with net.task(1, state.scale):
        scaler.scale(net(torch.randn(4, 8)).sum()).backward()
    method.after_backward(net, state)


@pytest.mark.parametrize("name", METHODS)
def test_the_trainer_scales_with_its_fabric(name: str) -> None:
    def run(*plugins: Any) -> list[Tensor]:
        scenario = tiny.scenario(2)
        torch.manual_seed(0)
        model = tiny.mlp()
        heads = scenario.classes_per_task
        if name == "hat":
            example = torch.zeros(2, *scenario.input_shape)
            net: Any = maskcl.nn.to_hat(model, 2, example, classes=heads)
        else:
            net = maskcl.nn.to_importance(model, 2, classes=heads)
        fabric = Fabric(accelerator="cpu", devices=1, plugins=list(plugins) or None)
        maskcl.Trainer(
            net, METHODS[name], problems.Vision(), scenario,
            lambda p: torch.optim.SGD(p, lr=0.05), epochs=2, batch_size=16, fabric=fabric,
        ).fit()  # fmt: skip
        return [p.detach() for p in net.parameters()]

    plain = run()
    scaler = GradScaler("cpu", init_scale=2.0**12)
    half = run(MixedPrecision("16-mixed", device="cpu", scaler=scaler))
    distance = max(float((a - b).abs().max()) for a, b in zip(plain, half, strict=True))
    assert scaler._scale is not None
    assert distance < 0.03  # float16's rounding; 2^12 times the penalty or the norm is far away


@pytest.mark.parametrize("name", METHODS)
def test_a_scaler_that_nobody_holds_any_more_refuses_nothing(name: str) -> None:
    gc.disable()
    try:
        scaler: Any = GradScaler("cpu")
        scaler.scale(torch.ones(()))
        scaler.itself = scaler  # freed by the collector alone
        del scaler
        net, method = network(name), METHODS[name]
        state = method.begin_task(net, 1)
        for parameter in net.task_parameters(1):
            parameter.grad = torch.ones_like(parameter)
        method.after_backward(net, state)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", METHODS)
def test_a_run_in_float16_resumes_with_its_scale(name: str, tmp_path: Any) -> None:
    """The scale grows with every third step, and is as large after the interruption."""

    class Stop(Callback):
        def on_step(self, task: int, epoch: int, batch: int, loss: Tensor) -> None:
            if (task, epoch, batch) == (1, 1, 1):
                raise KeyboardInterrupt

    def trainer(directory: Any, callback: Any = None) -> Any:
        scaler = GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
        half = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        net: Any = tiny.network("mlp", 2) if name == "hat" else tiny.importance("mlp", 2)
        made = maskcl.Trainer(
            net, METHODS[name], problems.Vision(), tiny.scenario(2),
            lambda p: torch.optim.Adam(p, lr=0.02), epochs=2, batch_size=8, callback=callback,
            directory=directory, fabric=Fabric(accelerator="cpu", devices=1, plugins=[half]),
        )  # fmt: skip
        return made, scaler

    whole, scaler = trainer(None)
    whole.fit()
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, Stop())[0].fit()
    second, again = trainer(tmp_path)
    second.fit(resume=True)
    assert again.get_scale() == scaler.get_scale() == 2.0**8
    state = second.net.state_dict()
    assert all(torch.equal(t, state[key]) for key, t in whole.net.state_dict().items())
