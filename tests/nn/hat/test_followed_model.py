"""What is done to a model after its units were followed: honoured, or refused with its name."""

from __future__ import annotations

import copy
import pickle
from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

import maskcl
from maskcl.nn import ConversionError, HATNetwork, to_hat, to_importance, to_piggyback, to_plain
from tests.nn.zoo import Residual, images


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.Sigmoid(),
        nn.Linear(16, 3),
    )  # fmt: skip


def network(model: nn.Module | None = None) -> HATNetwork:
    return to_hat(model or mlp(), 2, torch.zeros(2, 8), classes=[3, 3])


# --- hooks -----------------------------------------------------------------------------------


RETURNING = {
    "forward": lambda m: m.register_forward_hook(lambda m, a, out: out + 1),
    "forward with keywords": lambda m: m.register_forward_hook(
        lambda m, a, k, out: out + 1, with_kwargs=True
    ),
    "before": lambda m: m.register_forward_pre_hook(lambda m, a: (a[0] + 1,)),
    "before with keywords": lambda m: m.register_forward_pre_hook(
        lambda m, a, k: (a, k), with_kwargs=True
    ),
}
PLACES = {"layer": "3", "norm": "1", "activation": "2", "head": "5", "whole model": ""}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hook", RETURNING)
def test_a_hook_that_returns_a_value_is_refused_by_conversion(hook: str, place: str) -> None:
    model = mlp()
    RETURNING[hook](model.get_submodule(PLACES[place]))
    with pytest.raises(ConversionError, match=r"hook .* of module .* returned a value"):
        network(model)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("hook", RETURNING)
@pytest.mark.parametrize("is_looked_at", [False, True])
def test_one_that_is_registered_later_is_refused_when_it_returns(
    hook: str, place: str, is_looked_at: bool
) -> None:
    model = mlp()
    if is_looked_at:  # there are hooks already
        for module in model.modules():
            module.register_forward_hook(lambda *_: None)
            module.register_forward_pre_hook(lambda *_: None)
    net = network(model)
    net.begin_task(0)
    RETURNING[hook](net.model.get_submodule(PLACES[place]))
    if is_looked_at:
        net.begin_task(0)
    with net.task(0, 1.0), pytest.raises(ConversionError, match="returned a value"):
        net(torch.randn(4, 8))


@pytest.mark.parametrize("is_pre", [False, True])
def test_a_hook_that_writes_into_what_it_is_given_is_refused(is_pre: bool) -> None:
    net = network()
    if is_pre:
        net.model[3].register_forward_pre_hook(lambda m, a: (a[0].add_(1.0), None)[1])
    else:
        net.model[3].register_forward_hook(lambda m, a, out: (out.add_(1.0), None)[1])
    with net.task(0), torch.no_grad(), pytest.raises(ConversionError, match="wrote into what"):
        net(torch.randn(4, 8))


def note(module: nn.Module, args: object, out: object) -> None:
    """A hook that a pickle can name."""


def test_a_network_with_hooks_is_pickled() -> None:
    model = mlp()
    model[0].register_forward_hook(note)
    twin = pickle.loads(pickle.dumps(network(model)))
    with twin.task(0):
        twin(torch.randn(4, 8))
    twin.begin_task(0)


def test_hooks_that_read_run_once_in_every_network_and_in_its_plain_one() -> None:
    """Also those of norms, heads, fused activations and layers with padding around them."""

    def counted() -> tuple[nn.Module, Counter[str]]:
        model, count = Residual(), Counter()
        for name, module in model.named_modules():
            module.register_forward_hook(lambda m, a, out, name=name: count.update([name]))
            module.register_forward_pre_hook(lambda m, a, name=name: count.update([f"{name} in"]))
        return model, count

    model, wanted = counted()
    model.eval()(images(2))
    convert = {
        "hat": lambda model: to_hat(model, 2, images(2), classes=[3, 3]),
        "piggyback": lambda model: to_piggyback(model, 2, classes=[3, 3], norms="task"),
        "importance": lambda model: to_importance(model, 2, classes=[3, 3]),
    }
    for kind, make in convert.items():
        model, count = counted()
        net = make(model).eval()
        if kind == "piggyback":
            net.begin_task(0)
        net.finish_task(0)
        for run in (net, to_plain(net, 0)):
            count.clear()
            with net.task(0), torch.no_grad():
                run(images(2))
            assert count == wanted, kind


def test_a_handle_from_after_conversion_takes_its_hook_away() -> None:
    net, seen = network(), []
    handle = net.model[0].register_forward_hook(lambda *_: seen.append(1))
    twin = copy.deepcopy(net)
    with net.task(0):
        net(torch.randn(4, 8))
        handle.remove()
        net(torch.randn(4, 8))
    with twin.task(0):
        twin(torch.randn(4, 8))
    assert len(seen) == 2


def test_a_plain_network_takes_hooks_that_return_values_again() -> None:
    net = network()
    net.finish_task(0)
    plain = to_plain(net, 0)
    x = torch.randn(4, 8)
    before = plain(x)
    plain[-1].register_forward_hook(lambda m, a, out: out + 1)
    assert torch.equal(plain(x), before + 1)


# --- the model itself ------------------------------------------------------------------------


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def own_forward(net: HATNetwork) -> None:
    net.model[3].forward = lambda x: x + 1


def replaced(net: HATNetwork) -> None:
    net.model[2] = nn.Tanh()


CHANGES = {
    "weight_norm": lambda net: parametrizations.weight_norm(net.model[3]),
    "spectral_norm": lambda net: parametrizations.spectral_norm(net.model[3]),
    "a parametrization": lambda net: parametrize.register_parametrization(
        net.model[0], "weight", Twice()
    ),
    "weight_norm by hooks": lambda net: weight_norm(net.model[3]),
    "pruning": lambda net: prune.l1_unstructured(net.model[3], "weight", 0.5),
    "another module": replaced,
    "a further module": lambda net: net.model.append(nn.Tanh()),
    "one less": lambda net: net.model.pop(4),
    "a further parameter": lambda net: net.model[3].register_parameter(
        "delta", nn.Parameter(torch.zeros(16, 16))
    ),
    "another forward": own_forward,
    "an untrained bias gone": lambda net: setattr(net.model[0], "bias", None),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", [name for name in CHANGES if name != "an untrained bias gone"])
def test_a_model_changed_after_conversion_is_refused_when_a_task_begins(change: str) -> None:
    net = network()
    net.finish_task(0)
    CHANGES[change](net)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(ConversionError, match=r"HATNetwork\.begin_task: module .* since the model"):
        maskcl.HAT().begin_task(net, 1)
    for name, tensor in net.state_dict().items():
        if not name.startswith("embeddings"):
            assert torch.equal(tensor, before[name])


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", ["weight_norm", "weight_norm by hooks", "pruning"])
def test_one_that_replaces_parameters_in_a_task_is_refused_by_the_next_step(change: str) -> None:
    net = network()
    net.finish_task(0)
    hat = maskcl.HAT()
    state = hat.begin_task(net, 1)
    CHANGES[change](net)
    with net.task(1, state.scale):
        net(torch.randn(4, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="is no longer the parameter that was there"):
        hat.after_backward(net, state)


def test_a_copy_and_a_loaded_network_are_still_the_model_that_was_followed() -> None:
    net = network()
    net.finish_task(0)
    twin = copy.deepcopy(net)
    twin.load_state_dict(net.state_dict())
    twin.double().float()
    maskcl.HAT().begin_task(twin, 1)
