"""Parameters that tasks own, opened norms, branches on sizes, weights read past their layer."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn import ConversionError, HATNetwork, TaskBatchNorm2d, TaskHeads, to_hat, to_plain
from maskcl.nn.hat.convert import FusedActivation
from maskcl.nn.hat.layers import HATLinear
from maskcl.nn.tasks.task_parameters import TaskParameter
from tests.nn.zoo import assert_restores, images


class Scaled(nn.Module):
    """A scale and a shift of its own between two layers; the shift is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.shift = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x + self.shift)) * self.scale)


def logits(net: nn.Module, task: int, x: Tensor) -> Tensor:
    assert isinstance(net, HATNetwork)
    with torch.no_grad(), net.task(task):
        return net(x)


def test_a_loose_parameter_is_each_tasks_own_and_a_frozen_one_stays() -> None:
    model = Scaled()
    net, x = to_hat(model, 2, torch.randn(2, 4)).eval(), torch.randn(5, 4)
    names = dict(net.named_parameters())
    assert torch.equal(names["model.scale_of_task.copies.1.value"], model.scale)
    assert torch.equal(names["model.shift"], model.shift)
    assert isinstance(model.scale, nn.Parameter), "the model itself stays as it is"
    own = [id(p) for p in net.task_parameters(1)]
    assert id(names["model.scale_of_task.copies.1.value"]) in own
    assert id(names["model.scale_of_task.copies.0.value"]) not in own
    net.finish_task(0)
    before = logits(net, 0, x)
    with torch.no_grad():
        names["model.scale_of_task.copies.1.value"].fill_(9.0)
    assert torch.equal(logits(net, 0, x), before)
    assert not names["model.scale_of_task.copies.0.value"].requires_grad
    assert_restores(net, x)
    # The scale keeps the 0 of closed units, so the last layer knows who feeds it.
    assert net.topology.feeds["last"].tolist() == [[*range(6)]]


def test_networks_with_loose_parameters_are_copied_saved_loaded_and_moved() -> None:
    net, x = to_hat(Scaled(), 2, torch.randn(2, 4)).eval(), torch.randn(5, 4)
    with torch.no_grad():
        net.model.scale_of_task.copies[1].value.fill_(2.0)
    wanted = logits(net, 1, x)
    assert torch.equal(logits(copy.deepcopy(net), 1, x), wanted)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    assert torch.equal(logits(torch.load(file, weights_only=False), 1, x), wanted)
    other = to_hat(Scaled(), 2, torch.randn(2, 4)).eval()
    other.load_state_dict(net.state_dict())
    assert torch.equal(logits(other, 1, x), wanted)
    assert logits(net.double(), 1, x.double()).dtype == torch.float64


def test_to_plain_puts_the_tasks_copy_back() -> None:
    net, x = to_hat(Scaled(), 2, torch.randn(2, 4)).eval(), torch.randn(5, 4)
    with torch.no_grad():
        net.model.scale_of_task.copies[1].value.fill_(2.0)
    plain = to_plain(net, 1)
    assert type(plain) is Scaled
    assert set(plain.state_dict()) == set(Scaled().state_dict())
    assert plain.scale.tolist() == [2.0] * 6
    torch.testing.assert_close(plain(x), logits(net, 1, x))
    assert isinstance(net.model.scale_of_task, TaskParameter)


def test_a_loose_parameter_that_two_modules_share_stays_shared() -> None:
    model = nn.Sequential(Scaled(), nn.Linear(2, 4), Scaled())
    model[2].scale = model[0].scale
    net = to_hat(model, 2, torch.randn(2, 4))
    assert net.model[0].scale_of_task is net.model[2].scale_of_task
    plain = to_plain(net, 1)
    assert plain[0].scale is plain[2].scale


def test_a_loose_parameter_that_a_layer_has_too_is_refused() -> None:
    model = Scaled()
    model.scale = model.first.bias
    with pytest.raises(ConversionError, match=r"'scale' of a layer .*without calling"):
        to_hat(model, 2, torch.randn(2, 4))


class NormAct(nn.BatchNorm2d):
    """A norm with its activation inside, as timm writes them."""

    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), act

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Sigmoid()])
def test_the_activation_in_a_norm_comes_out_of_it(act: nn.Module) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), NormAct(6, act), nn.Conv2d(6, 4, 2), nn.Flatten(), nn.Linear(4, 2)
    )
    dense = to_hat(model, 1, images(2), init="dense")
    for mode in (True, False):
        dense.train(mode)
        torch.testing.assert_close(logits(dense, 0, images(5)), model.train(mode)(images(5)))
    net = to_hat(model, 2, images(2)).eval()
    assert isinstance(net.model[1][0], TaskBatchNorm2d) and net.topology.moved == {"0"}
    assert isinstance(net.model[1][1], FusedActivation)
    net.finish_task(0)
    assert_restores(net, images(4))
    torch.testing.assert_close(to_plain(net, 0)(images(4)), logits(net, 0, images(4)))


def test_a_batch_norm_that_does_more_than_norm_is_refused() -> None:
    class Mixing(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.mean(1, keepdim=True)

    model = nn.Sequential(nn.Conv2d(1, 6, 4), Mixing(6), nn.Flatten(), nn.Linear(6, 2))
    with pytest.raises(ConversionError, match=r"'1.weight' \(Mixing\) is shared by all tasks"):
        to_hat(model, 2, images(2))


def test_a_layer_of_a_class_of_the_users_own_converts_only_if_it_computes_the_same() -> None:
    class Same(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias)

    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias)

    assert isinstance(to_hat(nn.Sequential(Same(4, 2)), 2, torch.randn(2, 4)).model[0], HATLinear)
    with pytest.raises(ConversionError, match=r"'0.weight' \(Standardised\)"):
        to_hat(nn.Sequential(Standardised(4, 2)), 2, torch.randn(2, 4))


class Branches(nn.Module):
    """Turns its features round where there are many positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        if x.shape[1] > 3:
            h = h.flip(2)
        return self.last(h).mean(1)


def test_a_branch_on_a_size_holds_for_that_size_alone() -> None:
    short, long = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    feeds = [to_hat(Branches(), 1, x).topology.feeds["last"].tolist() for x in (short, long)]
    assert feeds == [[[0, 1, 2, 3, 4, 5]], [[5, 4, 3, 2, 1, 0]]]
    net = to_hat(Branches(), 1, short)
    with net.task(0):
        assert net(torch.randn(7, 3, 4)).shape == (7, 2)
        with pytest.raises(ValueError, match=r"\(\(5, 4\),\) .* for \(\(3, 4\),\); at these"):
            net(long)
        # Two positions take the same way as three.
        assert net(short[:, :2]).shape == (2, 2) and net.topology.like == {((2, 4),)}
    net.eval().finish_task(0)
    assert net.forward_tasks(short[:, :1])[0].shape == (2, 2)
    assert net.topology.like == {((2, 4),), ((1, 4),)}
    free = to_hat(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), 1, short)
    assert logits(free, 0, long).shape == (2, 5, 2)


def test_arguments_without_an_example_take_their_defaults() -> None:
    class Optional(Branches):
        def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
            h = torch.relu(self.first(x))
            return self.last(h if scale is None else h.exp() * scale)

    x = torch.randn(2, 4)
    net = to_hat(Optional(), 1, x)
    assert net.topology.feeds["last"].tolist() == [[*range(6)]]
    # With the argument closed units would not be 0.
    with (
        net.task(0),
        pytest.raises(ValueError, match=r"arguments are x, scale, .* with x"),
    ):
        net(x, scale=x.mean())
    with net.task(0), pytest.raises(ValueError, match=r"2 arguments, .* followed with 1"):
        net(x, x.mean())
    with net.task(0):
        assert torch.equal(net(x), net(x=x, scale=None))


def test_a_switch_that_is_given_holds_for_its_value_alone() -> None:
    class Switched(Branches):
        def forward(self, x: Tensor, turned: bool = False) -> Tensor:
            h = torch.relu(self.first(x))
            return self.last(h.flip(1) if turned else h)

    x = torch.randn(2, 4)
    net = to_hat(Switched(), 1, (x, True))
    assert net.topology.feeds["last"].tolist() == [[5, 4, 3, 2, 1, 0]]
    with net.task(0):
        assert net(x, True).shape == (2, 2)
        with pytest.raises(ValueError, match=r"\(\(4,\), False\) .*for \(\(4,\), True\); at these"):
            net(x, False)


def test_a_layers_weight_read_without_calling_the_layer_is_refused() -> None:
    class Tied(Branches):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.first(x))
            return self.last(h) + self.last(
                F.linear(F.linear(h, self.first.weight.t()), self.first.weight)
            )

    with pytest.raises(ConversionError, match=r"first.weight at .*let the forward call 'first'"):
        to_hat(Tied(), 2, torch.randn(2, 4))


def test_heads_that_are_averaged_become_heads_of_tasks_each() -> None:
    class Distilled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.body(x))
            return (self.a(h) + self.b(h)) / 2

    net = to_hat(Distilled(), 2, torch.randn(2, 4), classes=[3, 5])
    assert isinstance(net.model.a, TaskHeads) and isinstance(net.model.b, TaskHeads)
    assert logits(net, 1, torch.randn(7, 4)).shape == (7, 5)


def test_a_value_may_be_read_again_by_the_name_that_a_write_gave_it() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.a(x)).clone()
            h += torch.tanh(self.b(x))
            return self.c(h.view(-1, 6)) + self.c(h)

    net = to_hat(Adds(), 2, torch.randn(2, 4)).eval()
    assert net.topology.feeds["c"].tolist() == [[*range(6)], [*range(6, 12)]]
    net.finish_task(0)
    assert_restores(net, torch.randn(5, 4))


def test_conversion_of_resnet152_records_each_call_but_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from maskcl import models

    count, create = [0], torch.fx.Tracer.create_node

    def counted(self: torch.fx.Tracer, *args: object, **kwargs: object) -> torch.fx.Node:
        count[0] += 1
        return create(self, *args, **kwargs)

    monkeypatch.setattr(torch.fx.Tracer, "create_node", counted)
    model = models.resnet152((3, 8, 8), 2, width=4)
    to_hat(model, 2, torch.randn(1, 3, 8, 8), classes=[2, 2])
    leaves = sum(not list(module.children()) for module in model.modules())
    assert count[0] < 3 * leaves
