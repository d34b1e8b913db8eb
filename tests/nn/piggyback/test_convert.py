"""to_piggyback on ordinary models, and to_plain back again."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from maskcl.nn import (
    ConversionError,
    ConversionWarning,
    PiggybackConv2d,
    PiggybackEmbedding,
    PiggybackLinear,
    TaskHeads,
    TaskLayerNorm,
    to_piggyback,
    to_plain,
)
from maskcl.nn.tasks.frozen_modules import FrozenNorm
from maskcl.nn.tasks.state import TaskAware
from tests.nn.piggyback.zoo import FROZEN, SELECT, begin, frozen, logits, train
from tests.nn.zoo import MODELS

# --- conversion


def test_the_model_stays_as_it_is_and_shares_nothing() -> None:
    model = MODELS["conv"]()
    before = copy.deepcopy(model.state_dict())
    net = to_piggyback(model, 2, classes=[2, 2])
    train(net, 0)
    assert [type(m) for m in model.modules()] == [type(m) for m in MODELS["conv"]().modules()]
    assert all(p.requires_grad for p in model.parameters()) and model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    ours = {t.data_ptr() for t in net.state_dict().values()}
    assert ours.isdisjoint(t.data_ptr() for t in model.state_dict().values() if t.numel())


@pytest.mark.parametrize("name", list(FROZEN))
@torch.no_grad()
def test_with_every_weight_on_it_is_the_pretrained_model(name: str) -> None:
    make, inputs = FROZEN[name]
    model = make().train()
    model(inputs(16))
    net = to_piggyback(model, 1)
    net.begin_task(0)  # constant scores above the threshold
    assert set(net.off(0).values()) == {0.0}
    model.eval()
    wanted = model(inputs(9))
    torch.testing.assert_close(logits(net, 0, inputs(9)), wanted, rtol=1e-5, atol=1e-6)
    net.finish_task(0)
    torch.testing.assert_close(logits(net, 0, inputs(9)), wanted, rtol=1e-5, atol=1e-6)


def test_every_plain_layer_becomes_one_with_masks() -> None:
    net = frozen("tokens", norms="task")
    kinds = {name: type(layer) for name, layer in net.layers.items()}
    assert kinds == {
        "embed": PiggybackEmbedding,
        "block.linear1": PiggybackLinear,
        "block.linear2": PiggybackLinear,
    }
    assert net.model.embed.padding_idx == 0
    assert isinstance(net.model.head, TaskHeads)
    assert isinstance(net.model.block.norm1, TaskLayerNorm)
    assert not net.model.position.requires_grad
    assert type(net.model.block.self_attn) is nn.MultiheadAttention
    conv = frozen("grouped", levels="ternary")
    assert [type(m) for m in conv.layers.values()] == [PiggybackConv2d] * 4
    assert all(m.levels == "ternary" and m.words.shape[:2] == (3, 2) for m in conv.layers.values())


def test_heads_replace_the_last_linear_or_the_one_that_is_named() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(4, 3), "aux": nn.Linear(4, 2)})
    assert list(to_piggyback(model, 1).layers) == ["fc", "aux"]
    net = to_piggyback(model, 2, classes=[5, 6])
    assert list(net.layers) == ["fc"]
    assert [h.out_features for h in net.model["aux"].heads] == [5, 6]
    net = to_piggyback(model, 2, classes=[5, 6], head="fc")
    assert list(net.layers) == ["aux"] and isinstance(net.model["fc"], TaskHeads)
    assert type(net.model["fc"].heads[0]) is nn.Linear
    alone = to_piggyback(nn.Linear(3, 2), 1)
    assert list(alone.layers) == [""]


def test_layers_that_share_a_weight_keep_sharing_it_with_a_mask_each() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(12, 6)
            self.twice = nn.Linear(6, 6)
            self.out = nn.Linear(6, 12, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.twice(self.twice(self.embed(x))))

    net, x = to_piggyback(Tied(), 1), torch.arange(12)
    assert net.model.embed.weight is net.model.out.weight
    assert list(net.layers) == ["embed", "twice", "out"]
    begin(net, 0)
    with net.task(0):
        net(x).square().sum().backward()
    assert all(bool(s.grad.any()) for s in net.scores())
    net.finish_task(0)
    assert not torch.equal(net.words(0)["embed"], net.words(0)["out"])
    plain = to_plain(net, 0)
    assert not torch.equal(plain.embed.weight, plain.out.weight)
    torch.testing.assert_close(plain(x), logits(net, 0, x))
    fresh = to_piggyback(Tied(), 1)
    fresh.load_state_dict(net.state_dict())
    assert fresh.base_hash() == net.base_hash()


@torch.no_grad()  # a pruned weight with a graph can't be copied
def test_a_layer_with_a_computed_weight_stays_frozen() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        prune.l1_unstructured(nn.Linear(4, 2), "weight", 0.5),
    )
    net, x = to_piggyback(model, 1), torch.randn(3, 4)
    net.begin_task(0)
    assert list(net.layers) == ["0"]
    assert [n for n, p in net.named_parameters() if p.requires_grad] == ["model.0.scores"]
    torch.testing.assert_close(logits(net, 0, x), model(x))


class Scaled(nn.BatchNorm2d):
    """As libraries of models have them: an ordinary norm with more in its forward."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_norms_of_any_class_are_frozen_and_copied_whole() -> None:
    norms = [
        nn.BatchNorm2d(3),
        Scaled(3),
        nn.SyncBatchNorm(3),
        nn.InstanceNorm2d(3, track_running_stats=True),
    ]
    net = to_piggyback(nn.Sequential(nn.Conv2d(3, 3, 1), *norms), 1).train()
    begin(net, 0)
    x = torch.randn(4, 3, 5, 5)
    before = copy.deepcopy(net.state_dict())
    with net.task(0):
        wanted = net(x)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    for other in (net, copy.deepcopy(net), torch.load(file, weights_only=False)):
        other.train()
        with other.task(0):
            assert torch.equal(other(x), wanted)
        for old, new in zip(norms, other.model[1:]):
            assert isinstance(new, type(old)) and isinstance(new, FrozenNorm) and not new.training
        for key, value in other.state_dict().items():
            assert torch.equal(value, before[key]), key
    plain = to_plain(net, 0)
    assert [type(m) for m in plain[1:]] == [type(m) for m in norms]
    torch.testing.assert_close(plain(x), wanted)
    assert plain.train()[1].training


def test_torchs_transformer_layers_do_not_read_weights_past_the_masks() -> None:
    """In evaluation mode they would hand their layers' weights to a fused kernel."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    net, x = to_piggyback(model, 1, norms="task"), torch.randn(3, 5, 8)
    pad = torch.arange(5) >= torch.tensor([5, 4, 3])[:, None]
    net.begin_task(0, init=-1.0)  # every weight of the four linear layers is off
    net.finish_task(0)
    net.eval()
    with torch.no_grad():
        for module in model.modules():
            if type(module) is nn.Linear:
                module.weight.zero_()
        wanted = model.train()(x), model.eval()(x, src_key_padding_mask=pad)
        with net.task(0):
            torch.testing.assert_close(net(x), model.eval()(x), rtol=1e-4, atol=1e-5)
            found = net(x, src_key_padding_mask=pad)
        plain = to_plain(net, 0)
        assert plain.layers[0].activation_relu_or_gelu == layer.activation_relu_or_gelu == 1
        assert plain.use_nested_tensor is model.use_nested_tensor is True
        torch.testing.assert_close(found[~pad], wanted[1][~pad], rtol=1e-4, atol=1e-5)
        out = plain(x, src_key_padding_mask=pad)
        torch.testing.assert_close(out[~pad], found[~pad], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "options", "kind", "message"),
    [
        (nn.ReLU, {}, ConversionError, "ReLU has no nn.Linear, nn.Conv1d to 3d or nn.Embedding"),
        (
            lambda: nn.Sequential(nn.Embedding(4, 4, max_norm=1.0)),
            {},
            ConversionError,
            r"module '0' \(Embedding\) has max_norm=1.0, which rewrites the weights",
        ),
        (
            lambda: nn.Sequential(nn.EmbeddingBag(4, 4, max_norm=1.0), nn.Linear(4, 4)),
            {},
            ConversionError,
            r"module '0' \(EmbeddingBag\) has max_norm=1.0",
        ),
        (
            lambda: nn.Embedding(4, 4, sparse=True),
            {},
            ConversionError,
            r"module '' \(Embedding\) has sparse=True, which scores have no gradient for",
        ),
        (
            lambda: nn.Embedding(4, 4, scale_grad_by_freq=True),
            {},
            ConversionError,
            "has scale_grad_by_freq=True",
        ),
        (lambda: nn.LazyLinear(3), {}, ConversionError, "has no shape yet: run the model once"),
        (MODELS["mlp"], {"classes": [2]}, ValueError, "classes has 1 entries, wanted 2, one a"),
        (MODELS["mlp"], {"head": "1"}, ValueError, "head is '1', wanted None without classes"),
        (
            MODELS["mlp"],
            {"head": "2", "classes": [2, 2]},
            ConversionError,
            "found '1', '4', '6', wanted '2' among them",
        ),
        (
            lambda: nn.Conv2d(1, 1, 1),
            {"classes": [2, 2]},
            ConversionError,
            "found none, wanted a model with one",
        ),
        (MODELS["mlp"], {"levels": "soft"}, ValueError, "levels is 'soft', wanted one of binary"),
        (MODELS["mlp"], {"norms": "none"}, ValueError, "norms is 'none', wanted one of frozen"),
        (MODELS["mlp"], {"num_tasks": 0}, ValueError, "num_tasks is 0, wanted at least 1"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    make: Callable[[], nn.Module], options: dict, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match="to_piggyback: .*" + message):
        to_piggyback(make(), **{"num_tasks": 2, **options})


# --- to_plain


@pytest.mark.parametrize("norms", ["frozen", "task"])
@pytest.mark.parametrize("levels", list(SELECT))
@pytest.mark.parametrize("name", list(FROZEN))
@torch.no_grad()
def test_plain_modules_have_the_same_outputs_for_every_task(
    name: str, levels: str, norms: str
) -> None:
    net, (make, inputs) = frozen(name, levels, norms), FROZEN[name]
    with torch.enable_grad():
        for task in range(3):
            train(net, task, inputs, finish=task < 2)
    before = copy.deepcopy(net.state_dict())
    for task in range(3):
        plain = to_plain(net, task)
        modules = list(plain.modules())
        assert not any(isinstance(m, (TaskAware, FrozenNorm)) or m.training for m in modules)
        assert [type(m) for m in modules] == [type(m) for m in make().modules()]
        wanted = logits(net, task, inputs(9))
        torch.testing.assert_close(plain(inputs(9)), wanted, rtol=1e-5, atol=1e-6)
        assert all(p.requires_grad and p.grad is None for p in plain.parameters())
        for parameter in plain.parameters():
            parameter.zero_()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_plain_convolutions_have_the_same_bits() -> None:
    net = to_piggyback(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)), 1)
    begin(net, 0)
    net.finish_task(0)
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(to_plain(net, 0)(x), logits(net, 0, x))


def test_resnet18_there_and_back() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    net = to_piggyback(models.resnet18(), 2, classes=[3, 4]).eval()
    assert len(net.layers) == 20
    x = torch.randn(2, 3, 64, 64)
    begin(net, 1)
    with net.task(1):
        net(x).square().mean().backward()
    assert all(bool(s.grad.any()) for s in net.scores())
    net.finish_task(1)
    bits = sum(words.numel() * 32 for words in net.words(1).values())
    weights = sum(layer.weight.numel() for layer in net.layers.values())
    assert weights == 11_166_912 <= bits < 1.001 * weights
    plain = to_plain(net, 1)
    assert [type(m) for m in plain.modules()] == [type(m) for m in models.resnet18().modules()]
    with torch.no_grad():
        # Convolutions of one masked weight each, and an ordinary head: the same bits.
        assert torch.equal(plain(x), logits(net, 1, x))


def test_plain_of_a_task_without_masks_is_refused() -> None:
    net = frozen("mlp")
    with pytest.raises(RuntimeError, match="task 1 is neither finished nor in training"):
        to_plain(net, 1)
    with pytest.raises(ValueError, match="task is 3, wanted an int from 0 to 2"):
        to_plain(net, 3)


def test_a_forward_that_reads_a_weight_itself_gets_the_bases() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(self.fc(x), self.fc.weight)

    model, x = Reads(), torch.randn(2, 3)
    net = to_piggyback(model, 1)
    net.begin_task(0, init=-1.0)
    with net.task(0):
        torch.testing.assert_close(net(x), F.linear(model.fc.bias, model.fc.weight).expand(2, 3))


def conv1d_of_transformers() -> type[nn.Module]:
    """A stand-in with transformers' name, sizes, weight [in, out] and forward."""

    class Conv1D(nn.Module):
        def __init__(self, nf: int, nx: int) -> None:
            super().__init__()
            self.nf, self.nx = nf, nx
            self.weight = nn.Parameter(torch.randn(nx, nf) * 0.3)
            self.bias = nn.Parameter(torch.randn(nf))

        def forward(self, x: Tensor) -> Tensor:
            flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
            return flat.view(*x.shape[:-1], self.nf)

    Conv1D.__module__ = "transformers.pytorch_utils"
    return Conv1D


def test_the_conv1d_of_transformers_is_masked_and_comes_back() -> None:
    kind = conv1d_of_transformers()
    model = nn.Sequential(nn.Linear(6, 8), kind(12, 8), nn.GELU(), kind(8, 12))
    net = to_piggyback(model, 2)
    assert list(net.layers) == ["0", "1", "3"] and net.masked_share == 1.0
    x = torch.randn(2, 5, 6)
    net.begin_task(0, init=1.0, spread="uniform", threshold=0.0)
    with net.task(0):
        net(x).square().sum().backward()
    assert all(bool(scores.grad.any()) for scores in net.scores())
    kept = {name: layer.scores.detach() > 0 for name, layer in net.layers.items()}
    net.finish_task(0)
    for name, mask in kept.items():
        model.get_submodule(name).weight.data.mul_(mask)
    plain = to_plain(net, 0)
    assert [type(m) for m in plain] == [nn.Linear, kind, nn.GELU, kind]
    with torch.no_grad(), net.task(0):
        torch.testing.assert_close(net(x), model(x))
        torch.testing.assert_close(plain(x), model(x))


def test_a_model_that_masks_hardly_reach_is_warned_of_with_names() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model = nn.Sequential(nn.Linear(8, 4, bias=True), nn.Linear(4, 8), Own(), nn.Linear(8, 2))
    with pytest.warns(ConversionWarning, match=r"reach 50\.0 % .* '2' \(Own, 64\)"):
        net = to_piggyback(model, 2, classes=[2, 2])
    assert net.masked_share == 0.5 and list(net.unmasked_weights()) == ["2.weight"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_piggyback(nn.Sequential(*model[:2]), 2).masked_share == 1.0
