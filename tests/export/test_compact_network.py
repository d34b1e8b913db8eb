"""compact: the same logits from an ordinary module that holds only what a task uses."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor, fx, nn

from maskcl import models
from maskcl.export import compact
from maskcl.nn import ConversionError, to_hat, to_importance, to_piggyback, to_plain
from tests.export.zoo import MODELS, count, network, outputs, used
from tests.nn.zoo import images


@pytest.mark.parametrize("name", list(MODELS))
def test_same_outputs_for_any_share_of_units(name: str) -> None:
    sizes = []
    for share, seed in ((0.0, 0), (0.15, 1), (0.4, 2), (0.7, 3), (1.0, 4)):
        net = network(name, share, seed=seed, shared=seed % 2 == 1)
        small = compact(net, 1)
        for samples in (1, 5):
            x = images(samples, seed).double()
            torch.testing.assert_close(small(x), outputs(net, 1, x), rtol=0, atol=1e-12)
        sizes.append(count(small) / count(to_plain(net, 1)))
    assert sizes[0] < sizes[-1] == 1
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("name", list(MODELS))
def test_it_is_made_of_torchs_own_modules(name: str) -> None:
    net, x = network(name, 0.4), images(3).double()
    small = compact(net, 1)
    assert isinstance(small, fx.GraphModule)
    for module in small.modules():
        home = type(module).__module__
        assert module is small or home.startswith("torch."), type(module)
        assert not module.training
    assert "maskcl" not in small.code
    wanted = small(x)
    assert torch.equal(pickle.loads(pickle.dumps(small))(x), wanted)
    assert torch.equal(copy.deepcopy(small)(x), wanted)


@torch.no_grad()
def test_float32_logits_are_within_a_millionth() -> None:
    for name in MODELS:
        net = network(name, 0.4).float()
        difference = compact(net, 1)(images(9)) - outputs(net, 1, images(9))
        assert difference.abs().max() < 1e-6, name


def test_layers_have_the_open_units_and_nothing_else() -> None:
    net = network("mlp", 0.4)
    small, open_units = compact(net, 1), used(net, 1)
    first, second = open_units["1"], open_units["4"]
    shapes = {name: list(tensor.shape) for name, tensor in small.state_dict().items()}
    assert shapes == {
        "1.weight": [first, 16],
        "1.bias": [first],
        "4.weight": [second, first],
        "4.bias": [second],
        "6.weight": [3, second],
        "6.bias": [3],
    }
    mask = net.hard_mask(1)
    rows, columns = mask[net.units["4"]], mask[net.units["1"]]
    assert torch.equal(small.get_parameter("4.weight"), net.model[4].weight[rows][:, columns])


def test_where_all_units_are_open_nothing_changes_a_bit() -> None:
    for name in ("mlp", "residual", "concat"):
        net, x = network(name, 1.0).float(), images(6)
        small = compact(net, 1)
        assert torch.equal(small(x), outputs(net, 1, x))


def test_units_that_nothing_reads_are_gone_though_they_are_open() -> None:
    net = network("mlp", 1.0)
    with torch.no_grad():
        net.model[4].weight[:, 3:] = 0
    assert compact(net, 1).get_parameter("1.weight").shape == (3, 16)


def test_it_shares_nothing_with_the_network() -> None:
    net, x = network("conv", 0.5), images(4).double()
    small = compact(net, 1)
    with torch.no_grad():
        wanted = small(x)
        for tensor in net.state_dict().values():
            tensor.zero_()
        assert torch.equal(small(x), wanted)


@torch.no_grad()
def test_the_backbones() -> None:
    for name, shape in (("conv", (1, 8, 8)), ("resnet18", (3, 8, 8))):
        torch.manual_seed(0)
        options = {"width": 8, "hidden": 32} if name == "conv" else {"width": 8}
        model = getattr(models, name)(shape, 4, **options)
        x = torch.randn(3, *shape)
        net = to_hat(model, 1, x, classes=[4]).double()
        net.embeddings[0].copy_((torch.rand_like(net.embeddings[0]) < 0.3) * 2.0 - 1)
        net.finish_task(0)
        small, x = compact(net.eval(), 0), x.double()
        torch.testing.assert_close(small(x), outputs(net, 0, x), rtol=1e-12, atol=1e-12)
        assert count(small) < 0.4 * count(to_plain(net, 0))


# Tasks, and networks of other methods


def test_a_task_must_be_finished_or_in_training() -> None:
    net = to_hat(MODELS["mlp"](), 3, images(2))
    wanted = "compact: task 1 is neither finished nor in training: train it and call finish_task(1)"
    with pytest.raises(RuntimeError, match=re.escape(wanted)):
        compact(net, 1)
    net.begin_task(1)
    torch.testing.assert_close(compact(net, 1)(images(4)), outputs(net.eval(), 1, images(4)))
    with pytest.raises(RuntimeError, match="task 0 is neither"):
        compact(net, 0)
    with pytest.raises(ValueError, match=r"HATNetwork\.compact: task is 3, wanted an int from 0"):
        compact(net, 3)


class Branching(nn.Module):
    """A forward whose path depends on values, which no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(-h if h.sum() < 0 else h)


def test_a_network_without_a_graph_is_refused_with_a_way_out() -> None:
    net = to_hat(Branching(), 1, torch.randn(2, 4), sources={"a": None, "b": ["a"]})
    net.finish_task(0)
    with pytest.raises(ConversionError, match=r"compact: the network has no graph .*to_plain"):
        compact(net, 0)


@torch.no_grad()
def test_piggyback_loses_the_units_that_its_masks_cut_off() -> None:
    torch.manual_seed(0)
    net = to_piggyback(MODELS["conv"](), 1, classes=[3])
    net.begin_task(0)
    net.layers["4"].scores.fill_(1.0)
    net.layers["4"].scores[:, 2:] = -1.0  # nothing reads channels 2 to 5 of the layer before
    net.finish_task(0)
    with pytest.raises(ValueError, match="example_inputs is missing; a PiggybackNetwork is made"):
        compact(net, 0)
    small, x = compact(net.eval(), 0, images(2)), images(5)
    torch.testing.assert_close(small(x), to_plain(net, 0)(x), rtol=0, atol=1e-6)
    assert small.get_parameter("0.weight").shape[0] == 2


def test_importances_close_nothing() -> None:
    net = to_importance(MODELS["conv"](), 2, classes=[3, 2])
    small, x = compact(net.eval(), 1, images(2)), images(5)
    assert torch.equal(small(x), to_plain(net, 1)(x))


def test_example_inputs_that_cannot_be_made_again_are_asked_for() -> None:
    class Options:
        scale = 2.0

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, options: Options) -> Tensor:
            return self.b(self.a(x).relu() * options.scale)

    x, options = torch.randn(3, 4), Options()
    net = to_hat(Scaled(), 1, (x, options))
    net.finish_task(0)
    with pytest.raises(ValueError, match=r"example_inputs is missing; .* hold a Options"):
        compact(net, 0)
    small = compact(net.eval(), 0, (x, options))
    with net.task(0):
        torch.testing.assert_close(small(x, options), net(x, options))
