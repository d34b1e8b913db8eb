"""to_hat: what it keeps, what it refuses, and how a caller says what tracing cannot tell."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn import ConversionError, HATConv2d, HATLinear, HATNetwork, TaskBatchNorm1d, to_hat
from tests.nn.zoo import MODELS, assert_restores, images


class Two(nn.Module):
    """Two layers with ``between`` applied to the first's output."""

    def __init__(self, between: object, hidden: int = 6, inputs: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, hidden)
        self.fc2 = nn.Linear(inputs or hidden, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.between(self.fc1(x)))


def hat(model: nn.Module, tasks: int = 2, **options: object) -> HATNetwork:
    return to_hat(model, tasks, torch.randn(2, 4), **options)


@pytest.mark.parametrize("name", list(MODELS))
def test_with_all_units_open_the_network_computes_what_the_model_did(name: str) -> None:
    model = MODELS[name]().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    net = to_hat(model, 2, images(2), init="dense")
    assert not net.training
    with torch.no_grad(), net.task(1):
        torch.testing.assert_close(net(images(5)), model(images(5)))
    net.finish_task(0)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert not any(isinstance(m, HATLinear | HATConv2d) for m in model.modules())


def test_conversion_draws_nothing_but_heads_and_embeddings() -> None:
    model = MODELS["residual"]()
    torch.manual_seed(3)
    a = to_hat(model, 2, images(2), classes=[2, 2])
    torch.manual_seed(3)
    b = to_hat(model, 2, images(2), classes=[2, 2])
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_unfused_conversion_gives_the_same_outputs() -> None:
    model = MODELS["conv"]()
    nets = [to_hat(model, 1, images(2), fuse=fuse, init="uniform") for fuse in (True, False)]
    nets[1].load_state_dict(nets[0].state_dict())
    assert nets[0].model[1].activation == "relu"
    assert nets[1].model[1].activation == "identity"
    outs = []
    for net in nets:
        with net.eval().task(0), torch.no_grad():
            outs.append(net(images(4)))
    torch.testing.assert_close(*outs)


def test_output_layer_has_no_units_even_behind_other_operations() -> None:
    class Post(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = MODELS["mlp"]()

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            h = self.body(x)
            return {"probabilities": F.softmax(h, 1).view(h.size(0), -1), "first": h[:, 0] + 1}

    net = to_hat(Post(), 2, images(2))
    assert set(net.units) == {"body.1", "body.4"}
    with net.task(0):
        assert set(net(images(3))) == {"probabilities", "first"}


def test_a_size_read_off_a_hidden_value_does_not_make_its_layer_an_output() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.fc1(x)
            return self.fc2(torch.relu(h)).reshape(h.size(0), h.shape[1] // 3, -1)

    assert set(hat(Sized()).units) == {"fc1"}


def test_frozen_layers_and_parameters_stay_as_they_are() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5)).requires_grad_(
                False
            )
            self.shift = nn.Parameter(torch.randn(5), requires_grad=False)
            self.fc1, self.fc2 = nn.Linear(5, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(torch.relu(self.fc1(self.frozen(x) + self.shift)))

    net = hat(Backbone())
    assert set(net.units) == {"fc1"}
    assert net.topology.feeds["fc1"] is None
    net.begin_task(0)
    assert not any(p.requires_grad for p in net.model.frozen.parameters())


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.SiLU(), nn.Tanh(), nn.Sigmoid(),
        nn.LeakyReLU(0.3),
    ],
    ids=lambda m: repr(m),
)  # fmt: skip
def test_an_activation_behind_its_layer_is_fused(activation: nn.Module) -> None:
    net, x = hat(Two(activation)).eval(), torch.randn(5, 4)
    assert net.model.fc1.activation != "identity"
    with net.task(0), torch.no_grad():
        open_units = (net.embeddings[0] > 0).float()
        wanted = net.model.fc2.weight @ (activation(_linear(net.model.fc1, x)) * open_units).t()
        torch.testing.assert_close(net(x), wanted.t() + net.model.fc2.bias)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize(
    "activation", [nn.ELU(), nn.Hardswish(), nn.ReLU6(), nn.Mish(), nn.Softsign(), nn.Hardtanh()]
)
def test_other_activations_that_keep_zero_stay_modules(activation: nn.Module) -> None:
    net = hat(Two(activation))
    assert net.topology.feeds["fc2"].tolist() == [list(range(6))]
    assert net.model.between is not activation
    assert isinstance(net.model.between, type(activation))


REFUSED = {
    "function": (
        Two(torch.sigmoid),
        "function sigmoid() at .*does not keep the 0 of a closed unit",
    ),
    "method": (Two(lambda x: x.exp()), "tensor method .exp() at .*does not keep the 0"),
    "module": (Two(nn.Softplus()), "module 'between' (Softplus) at .*does not keep the 0"),
    "shift": (Two(lambda x: x + 1), "function add() at .*adds 1 to closed units"),
    "unfollowed": (Two(lambda x: torch.cumsum(x, 1)), "function cumsum() at .*cannot be followed"),
    "einsum": (
        Two(lambda x: torch.einsum("ni,ij->nj", x, torch.eye(6))),
        "function einsum() at .*cannot be",
    ),
    "parametrized range": (Two(nn.Hardtanh(0.5, 1.0)), "module 'between' (Hardtanh)"),
    "later use": (Two(lambda x: torch.relu(x.cos())), "tensor method .cos() at .*does not keep"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_followed_is_refused_by_node_with_the_remedy(case: str) -> None:
    model, message = REFUSED[case]
    message = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(ConversionError, match=message) as caught:
        hat(model)
    text = str(caught.value)
    assert "module 'fc2' (HATLinear) reads units that cannot be told: node " in text
    assert "sources={'fc2': ['fc1', ...]}" in text
    assert "sources={'fc2': None}" in text
    assert __file__ in text or "module 'between'" in text


def test_sources_by_hand_name_the_layers_that_feed_a_module() -> None:
    model = Two(
        lambda x: torch.relu(x).repeat_interleave(torch.tensor([2] * 6), 1).cumsum(1), 6, 12
    )
    with pytest.raises(ConversionError, match="repeat_interleave"):
        hat(model)
    net = hat(model, sources={"fc2": ["fc1"]})
    assert net.topology.feeds["fc2"].tolist() == [[u for u in range(6) for _ in range(2)]]


def test_sources_none_protects_as_if_every_task_used_every_input() -> None:
    model = Two(torch.sigmoid)
    net, x = hat(model, sources={"fc2": None}).eval(), torch.randn(7, 4)
    assert net.topology.feeds["fc2"] is None
    with torch.no_grad():
        net.embeddings[0].copy_(torch.tensor([1.0, 1, 1, -1, -1, -1]))
        net.finish_task(0)
        protection = net.protection()
        assert protection.fraction()["model.fc2.weight"] == 1.0
        assert protection.fraction()["model.fc1.weight"] == 0.5
        with net.task(0):
            before = net(x)
            saved = protection.snapshot()
            for parameter in protection.parameters:
                parameter.normal_()
            protection.restore_(saved)
            assert torch.equal(net(x), before)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"fc3": ["fc1"]}, "'fc3' is no weight layer or norm"),
        ({"fc2": ["fc2"]}, "'fc2' is no masked layer; there are: fc1"),
        ({"fc2": "fc1"}, "wanted a list of layer names or None"),
        ({"fc2": []}, "wanted a list of layer names or None"),
    ],
)
def test_wrong_sources_are_refused(sources: dict[str, object], message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        hat(Two(nn.ReLU()), sources=sources)


def test_sources_that_do_not_divide_the_inputs_are_refused() -> None:
    with pytest.raises(
        ConversionError, match="'fc1' has 6 units, wanted a divisor of the 8 inputs"
    ):
        hat(Two(lambda x: F.pad(x.sort().values, (1, 1)), 6, 8), sources={"fc2": ["fc1"]})


class Branching(nn.Module):
    """Its path depends on the values, which no tracer can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc1(x))
        if x.sum() > 0:
            x = x * 2
        return self.fc2(self.norm(x))


def test_a_model_that_cannot_be_traced_is_refused_or_told_by_hand() -> None:
    with pytest.raises(ConversionError, match=r"Branching cannot be traced .*sources="):
        hat(Branching())
    with pytest.raises(ConversionError, match="norm missing; wanted every layer and norm"):
        hat(Branching(), sources={"fc1": None, "fc2": ["fc1"]})
    net = hat(Branching(), classes=[2, 3], sources={"fc1": None, "norm": ["fc1"]}).eval()
    assert net.units == {"fc1": slice(0, 6)}
    x = torch.randn(5, 4)
    net.finish_task(1)
    with torch.no_grad(), net.task(1):
        before = net(x)
        assert before.shape == (5, 3)
        saved = net.protection().snapshot()
        for parameter in net.protection().parameters:
            parameter.normal_()
        net.protection().restore_(saved)
        assert torch.equal(net(x), before)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.PReLU(), r"parameter 'between.weight' \(PReLU\)"),
        (nn.Bilinear(6, 6, 6), r"parameter 'between.weight' \(Bilinear\)"),
        (nn.InstanceNorm1d(6, affine=True), r"parameter 'between.weight' \(InstanceNorm1d\)"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), "parameter 'between.bias'"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_parameters_that_nothing_protects_are_refused_by_name(layer: nn.Module, name: str) -> None:
    with pytest.raises(ConversionError, match=name + ".* shared by all tasks.*requires_grad_"):
        hat(Two(layer))


def test_running_statistics_that_tasks_would_share_are_refused() -> None:
    with pytest.raises(
        ConversionError, match=r"module '1' \(BatchNorm1d\) keeps running statistics"
    ):
        HATNetwork(
            nn.Sequential(HATLinear(4, 6), nn.BatchNorm1d(6, affine=False), HATLinear(6, 2)),
            1,
            torch.randn(2, 4),
        )

    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4))
            self.register_buffer("var", torch.ones(4))
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(F.batch_norm(x, self.mean, self.var, training=True))

    with pytest.raises(ConversionError, match=r"function batch_norm\(\).* all tasks share"):
        hat(Functional())


def test_writing_into_a_buffer_is_refused() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))
            self.fc1, self.fc2 = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(torch.relu(self.fc1(x - self.seen.add_(x.mean(0)))))

    with pytest.raises(ConversionError, match="writes into 'seen', which all tasks share"):
        hat(Counter())


def test_tied_parameters_are_refused() -> None:
    model = Two(nn.Linear(6, 6))
    model.fc2 = nn.Linear(6, 6)
    model.fc2.weight = model.between.weight
    with pytest.raises(ConversionError, match=r"'between\.weight' is also 'fc2\.weight'"):
        hat(model)


def test_a_layer_that_the_forward_never_calls_is_refused() -> None:
    model = Two(nn.ReLU())
    model.auxiliary = nn.Linear(6, 2)
    with pytest.raises(ConversionError, match="'auxiliary': not called by the forward"):
        hat(model)


def test_classes_need_one_linear_output_layer() -> None:
    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(x)

    with pytest.raises(ConversionError, match=r"found 'a' \(Linear\), 'b' \(Linear\)"):
        hat(TwoHeads(), classes=[2, 2])
    with pytest.raises(ConversionError, match=r"found '0' \(Conv2d\)"):
        to_hat(nn.Sequential(nn.Conv2d(1, 2, 4), nn.Flatten()), 2, images(2), classes=[2, 2])
    assert hat(TwoHeads()).units == {}


def test_a_model_that_is_one_layer_has_no_units() -> None:
    net = hat(nn.Linear(4, 3), classes=[2, 3])
    with net.task(1, 2.0):
        assert net(torch.randn(5, 4)).shape == (5, 3)
        assert net.sparsity().item() == 0


def test_a_norm_called_on_different_units_is_refused() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.norm(self.b(self.norm(self.a(x)))))

    with pytest.raises(ConversionError, match=r"'norm' .*is called on values of different units"):
        hat(Shared())


def test_a_value_read_again_after_something_was_added_into_it_is_refused() -> None:
    class Aliased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu(self.a(x))
            same = h.view(-1, 4)
            h += self.b(x)
            return self.d(self.c(h) + same)

    with pytest.raises(
        ConversionError,
        match=r"function iadd\(\).* writes into 'relu', .* read again later as 'view'",
    ):
        hat(Aliased())


@pytest.mark.parametrize("inner", ["relu_", "iadd", "imul", "module"])
def test_writing_in_place_into_a_masked_output_keeps_its_gradient(inner: str) -> None:
    """Backward needs a masked output itself, unless the network knows that it is overwritten."""

    class Writes(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            self.in_place = in_place
            self.a, self.b, self.last = HATLinear(4, 6), HATLinear(4, 6), HATLinear(6, 2)
            self.relu = nn.ReLU(inplace=in_place)

        def forward(self, x: Tensor) -> Tensor:
            h, other = self.a(x), self.b(x)
            if inner == "module":
                h = self.relu(h)
            elif not self.in_place:
                h = {"relu_": h.relu(), "iadd": h + other, "imul": h * 2}[inner]
            elif inner == "relu_":
                h.view(-1, 6).relu_()
            elif inner == "iadd":
                h += other
            else:
                h *= 2
            return self.last(h)

    x, grads = torch.randn(8, 4), []
    torch.manual_seed(0)
    state = None
    for in_place in (True, False):
        net = HATNetwork(Writes(in_place), 1, torch.randn(2, 4))
        state = state or net.state_dict()
        net.load_state_dict(state)
        with net.task(0, 1.0):
            net(x).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_batch_norm_over_positions_of_a_sequence_masks_before_it_mixes_units() -> None:
    """[N, L, C] with a BatchNorm over L: its statistics run over units, so they must be masked."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(5), nn.Linear(6, 2))
    net = to_hat(model, 2, torch.randn(3, 5, 4)).eval()
    assert net.topology.moved == set()
    assert isinstance(net.model[1], TaskBatchNorm1d)
    assert net.topology.masks["1"][1] == 2
    net.finish_task(0)
    assert_restores(net, torch.randn(3, 5, 4))


def test_channels_and_positions_made_one_dimension_by_view_are_followed() -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 6, 3, padding=1), nn.Linear(96, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x).relu()
            return self.fc(x.view(x.size(0), -1))

    net = to_hat(Viewed(), 1, images(2))
    feeds = net.topology.feeds["fc"]
    assert feeds is not None
    assert torch.equal(feeds, torch.arange(6).repeat_interleave(16).unsqueeze(0))
