from __future__ import annotations

import copy
import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskcl.compat.clarena import backbones
from maskcl.compat.clarena.backbones import MLP, HATMaskBackbone, HATMaskMLP
from tests.compat.clarena_tiny import FEATURES, mlp

LAYERS = {"fc/0": 16, "fc/1": 12, "fc/2": 9}


def fill(backbone: HATMaskBackbone, low: float, high: float) -> None:
    with torch.no_grad():
        for embedding in backbone.embeddings():
            embedding.uniform_(low, high)


def stored(*tasks: int, **options: Any) -> HATMaskMLP:
    """A backbone with masks of these tasks."""
    backbone = mlp(**options)
    for task in tasks:
        backbone.setup_task_id(task)
        backbone.initialize_task_embedding("N01")
        backbone.store_mask()
        backbone.store_bn()
    return backbone


@pytest.mark.parametrize(
    ("module", "names"),
    {
        "backbones": "CLBackbone HATMaskBackbone MLP CLMLP HATMaskMLP ResNet18 CLResNet152"
        " HATMaskResNet50",
        "backbones.base": "Backbone CLBackbone HATMaskBackbone",
        "backbones.mlp": "MLP CLMLP",
        "backbones.hat_mask_mlp": "HATMaskMLP",
        "backbones.resnet": "ResNet34 CLResNet101",
        "backbones.hat_mask_resnet": "HATMaskResNet152",
        "cl_algorithms": "CLAlgorithm HAT AdaHAT",
        "cl_algorithms.hat": "HAT",
        "cl_algorithms.adahat": "AdaHAT",
        "cl_algorithms.base": "CLAlgorithm",
        "cl_algorithms.regularizers": "HATMaskSparsityReg",
        "heads": "HeadsTIL HeadDIL",
        "cl_heads": "HeadsTIL",
    }.items(),
)
def test_modules_and_names_are_clarenas(module: str, names: str) -> None:
    found = importlib.import_module(f"maskcl.compat.clarena.{module}")
    assert set(names.split()) <= set(vars(found)) & set(found.__all__)


def test_layers_by_name_before_and_behind() -> None:
    backbone = mlp()
    assert backbone.weighted_layer_names == backbone.masked_layer_names == list(LAYERS)
    assert backbone.get_layer_by_name("fc/1") is backbone.get_layer("fc/1") is backbone.fc[1]
    assert backbone.get_layer_by_name(None) is None
    assert backbone.preceding_layer_name(None) is None
    assert backbone.preceding_layer_name("fc/0") is None
    assert backbone.preceding_layer_name("fc/2") == backbone.next_layer_name("fc/0") == "fc/1"
    assert backbone.next_layer_name("fc/2") is None
    assert backbone.get_layer_by_name("fc/7") is None
    for ask in (backbone.preceding_layer_name, backbone.next_layer_name, backbone.weighted_layer):
        with pytest.raises(ValueError, match="fc/7"):
            ask("fc/7")


@pytest.mark.parametrize("task", [0, -1, True, "1", None])
def test_setup_task_id_takes_an_id(task: Any) -> None:
    with pytest.raises(ValueError, match="task_id"):
        mlp().setup_task_id(task)


@pytest.mark.parametrize(("mode", "low", "high"), [("U-11", -1, 1), ("U01", 0, 1), ("U-10", -1, 0)])
def test_uniform_embeddings(mode: str, low: float, high: float) -> None:
    backbone = HATMaskMLP(2, [4000], 1, "sigmoid")
    backbone.initialise_task_embedding(mode)
    values = backbone.embeddings()[0].detach()
    assert values.min() >= low and values.max() <= high
    assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.05)


def test_normal_embeddings_last_ones_and_unknown_ones() -> None:
    backbone = HATMaskMLP(2, [4000], 1, "sigmoid")
    fill(backbone, 3, 3)
    backbone.initialize_task_embedding("last")
    assert (backbone.flat_embedding() == 3).all()
    backbone.initialize_task_embedding("N01")
    values = backbone.embeddings()[0].detach()
    assert float(values.mean()) == pytest.approx(0, abs=0.1)
    assert float(values.std()) == pytest.approx(1, abs=0.1)
    for mode in ("masked", "unmasked", "U-1-1"):
        with pytest.raises(ValueError, match=mode):
            backbone.initialize_task_embedding(mode)


@pytest.mark.parametrize("batches", [2, 7, 469])
def test_the_scale_is_right_at_both_ends(batches: int) -> None:
    backbone = mlp()
    flat = backbone.flat_embedding().detach()
    small = flat.abs() < 0.2

    def scale(batch_idx: int) -> float:
        mask = backbone.get_mask("train", s_max=50.0, batch_idx=batch_idx, num_batches=batches)
        joined = torch.cat([*mask.values()]).detach().double()
        return float((torch.logit(joined) / flat)[small].median())

    assert scale(0) == pytest.approx(1 / 50, rel=1e-3)
    assert scale(batches - 1) == pytest.approx(50, rel=1e-3)
    assert scale(1) == pytest.approx(1 / 50 + (50 - 1 / 50) / (batches - 1), rel=1e-2)


def test_one_batch_has_the_largest_scale() -> None:
    backbone = mlp()
    mask = backbone.get_mask("train", s_max=50.0, batch_idx=0, num_batches=1)
    last = backbone.get_mask("validation", s_max=50.0)
    assert all(torch.equal(mask[name], last[name]) for name in LAYERS)


def test_masks_by_stage() -> None:
    backbone = stored(1, 2)
    embedding = backbone.task_embedding_t["fc/1"].weight[0].detach()
    train = backbone.get_mask("train", s_max=30.0, batch_idx=2, num_batches=5)
    s = 1 / 30 + (30 - 1 / 30) * 2 / 4
    torch.testing.assert_close(train["fc/1"].detach(), torch.sigmoid(s * embedding))
    assert train["fc/1"].requires_grad
    validation = backbone.get_mask("validation", s_max=30.0)
    torch.testing.assert_close(validation["fc/1"].detach(), torch.sigmoid(30 * embedding))
    test = backbone.get_mask("test", test_task_id=2)
    assert torch.equal(test["fc/1"], (embedding > 0).float())
    assert torch.equal(test["fc/1"], backbone.te_to_binary_mask()["fc/1"])
    assert torch.equal(backbone.get_mask("test", task_id=1)["fc/1"], backbone.masks[1]["fc/1"])
    given = backbone.get_mask("test", test_mask=backbone.masks[1])
    assert torch.equal(given["fc/2"], backbone.masks["1"]["fc/2"])
    ones = backbone.get_mask("unlearning_test")
    for mask in (train, validation, test, ones):
        assert {name: list(m.shape) for name, m in mask.items()} == {
            name: [units] for name, units in LAYERS.items()
        }
    assert all((m == 1).all() for m in ones.values())


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("stage is 'valid'", {"stage": "valid"}),
        ("s_max is None", {"stage": "train", "batch_idx": 0, "num_batches": 2}),
        ("batch_idx is None", {"stage": "train", "s_max": 9.0, "num_batches": 2}),
        ("num_batches is None", {"stage": "train", "s_max": 9.0, "batch_idx": 0}),
        ("batch is 2", {"stage": "train", "s_max": 9.0, "batch_idx": 2, "num_batches": 2}),
        ("batch is -1", {"stage": "train", "s_max": 9.0, "batch_idx": -1, "num_batches": 2}),
        ("s_max is 0.5", {"stage": "validation", "s_max": 0.5}),
        ("s_max is '9'", {"stage": "validation", "s_max": "9"}),
        (
            "s_max is inf",
            {"stage": "train", "s_max": float("inf"), "batch_idx": 0, "num_batches": 2},
        ),
        ("s_max is None", {"stage": "validation"}),
        ("test_task_id is None", {"stage": "test"}),
        ("task 3 has no stored mask", {"stage": "test", "test_task_id": 3}),
        (r"test_mask\['fc/0'\] is missing", {"stage": "test", "test_mask": {}}),
    ],
)
def test_a_bad_stage_or_missing_argument_is_a_value_error(
    match: str, options: dict[str, Any]
) -> None:
    backbone = stored(1)
    with pytest.raises(ValueError, match=match):
        backbone.get_mask(**options)
    with pytest.raises(ValueError, match=match):
        backbone(torch.zeros(2, FEATURES), **options)


def test_cumulative_and_summative_masks() -> None:
    backbone = mlp()
    assert all((m == 0).all() for m in backbone.get_cumulative_mask().values())
    backbone = stored(1, 2, 5)
    one, two, five = (backbone.masks[i] for i in (1, 2, 5))
    for name in LAYERS:
        total = one[name] + two[name] + five[name]
        assert torch.equal(backbone.get_summative_mask()[name], total)
        assert torch.equal(backbone.get_cumulative_mask()[name], total.clamp(max=1))
        common = one[name] * two[name]
        for mode, wanted in (("intersection", common), ("union", one[name] + two[name] - common)):
            assert torch.equal(backbone.combine_masks([one, two], mode)[name], wanted)
    backbone.get_cumulative_mask()["fc/0"].zero_()
    assert backbone.get_cumulative_mask()["fc/0"].any(), "what is handed out is a copy"
    with pytest.raises(ValueError, match="xor"):
        backbone.combine_masks([one], "xor")


def test_more_tasks_than_a_word_has_bits() -> None:
    backbone = stored(*range(1, 68))
    masks = backbone.masks
    assert backbone.task_bits.bits.shape == (sum(LAYERS.values()), 2)
    total = torch.stack([masks[i]["fc/0"] for i in range(1, 68)]).sum(0)
    assert torch.equal(backbone.get_summative_mask()["fc/0"], total)


def test_a_task_stored_again_replaces_its_mask() -> None:
    backbone = stored(1, 2)
    backbone.setup_task_id(1)
    fill(backbone, -2, -1)
    backbone.store_mask()
    assert not backbone.masks[1]["fc/0"].any() and backbone.masks[2]["fc/0"].any()
    assert backbone.processed_task_ids == [1, 2]


@pytest.mark.parametrize("mode", ["min", "max", "mean"])
def test_measure_of_parameters(mode: str) -> None:
    backbone = mlp()
    measure = {name: torch.rand(units) for name, units in LAYERS.items()}
    weight, bias = backbone.get_layer_measure_parameter_wise(measure, "fc/1", mode)
    function = {"min": min, "max": max, "mean": lambda a, b: (a + b) / 2}[mode]
    rows, columns = measure["fc/1"].tolist(), measure["fc/0"].tolist()
    wanted = torch.tensor([[function(a, b) for b in columns] for a in rows])
    torch.testing.assert_close(weight, wanted)
    assert torch.equal(bias, measure["fc/1"])
    older = backbone.get_layer_measure_parameter_wise(
        unit_wise_measure=measure, layer_name="fc/0", aggregation=mode
    )
    assert torch.equal(older[0], measure["fc/0"][:, None].expand(16, FEATURES))
    with pytest.raises(ValueError, match="median"):
        backbone.get_layer_measure_parameter_wise(measure, "fc/1", "median")
    with pytest.raises(ValueError, match="layer_name is None"):
        backbone.get_layer_measure_parameter_wise(measure, None, "min")


def test_forward_is_the_layers_with_masks() -> None:
    backbone = mlp()
    x = torch.randn(5, 2, 3)
    y, mask, activations = backbone(x, "train", s_max=9.0, batch_idx=1, num_batches=3)
    wanted = x.flatten(1)
    for i, name in enumerate(LAYERS):
        wanted = torch.relu(backbone.fc[i](wanted)) * mask[name]
        torch.testing.assert_close(activations[name], wanted)
    assert torch.equal(y, activations["fc/2"])


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Softplus, nn.ELU, None])
def test_a_closed_unit_is_zero_behind_any_activation(activation: Any) -> None:
    backbone = mlp(activation_layer=activation)
    backbone.setup_task_id(1)
    fill(backbone, -1, 1)
    closed = backbone.store_mask()["fc/0"] == 0
    activations = backbone(torch.randn(4, FEATURES), "test", test_task_id=1)[2]
    assert (activations["fc/0"][:, closed] == 0).all()
    assert (activations["fc/0"][:, ~closed] != 0).all()


def test_layers_of_one_unit() -> None:
    backbone = HATMaskMLP(3, [1], 1, "sigmoid")
    y, mask, _ = backbone(torch.randn(4, 3), "validation", s_max=9.0)
    assert y.shape == (4, 1) and mask["fc/0"].shape == (1,)


def test_arguments_in_both_spellings_and_bad_ones() -> None:
    for name in ("batch_normalization", "batch_normalisation"):
        assert mlp(**{name: "shared"}).fc_bn[0].num_features == 16
        assert MLP(3, [2], 1, **{name: True}).fc_bn[0].num_features == 2
    with pytest.raises(TypeError, match="same argument"):
        mlp(batch_normalisation="shared", batch_normalization="shared")
    with pytest.raises(TypeError, match="batch_norm"):
        mlp(batch_norm="shared")
    with pytest.raises(ValueError, match="batch_normalization is 'each'"):
        mlp(batch_normalization="each")
    with pytest.raises(ValueError, match="gate is 'tanh'"):
        HATMaskMLP(3, [2], 1, "tanh")
    with pytest.raises(ValueError, match="PReLU"):
        mlp(activation_layer=nn.PReLU)


def test_plain_mlp() -> None:
    net = MLP(FEATURES, [5], 4, batch_normalization=True, dropout=0.5).eval()
    x = torch.randn(3, FEATURES)
    y, activations = net(x, stage="test", task_id=1)
    hidden = torch.relu(net.fc_bn[0](net.fc[0](x)))
    assert torch.equal(activations["fc/0"], hidden)
    assert torch.equal(y, torch.relu(net.fc_bn[1](net.fc[1](hidden))))
    assert isinstance(net, backbones.CLMLP) and isinstance(net, backbones.CLBackbone)


class Own(HATMaskBackbone):
    """A backbone as users write it: convolution, flattening, linear, masks by hand."""

    def __init__(self) -> None:
        super().__init__(output_dim=4, gate="sigmoid")
        self.conv = nn.Conv2d(1, 3, 3)
        self.out = nn.Linear(3 * 4, 4)
        self.weighted_layer_names += ["conv", "out"]
        self.task_embedding_t["conv"] = nn.Embedding(1, 3)
        self.task_embedding_t["out"] = nn.Embedding(1, 4)

    def forward(self, input: Tensor, stage: str, **options: Any) -> Any:
        mask = self.get_mask(stage, **options)
        x = torch.relu(self.conv(input)) * mask["conv"].view(1, -1, 1, 1)
        return torch.relu(self.out(x.flatten(1))) * mask["out"], mask, {}


def test_a_backbone_of_ones_own_with_flattening() -> None:
    backbone = Own()
    backbone.setup_task_id(1)
    backbone.store_mask()
    y, _, _ = backbone(torch.randn(2, 1, 4, 4), "test", test_task_id=1)
    assert y.shape == (2, 4)
    measure = {"conv": torch.tensor([1.0, 2.0, 3.0]), "out": torch.full((4,), 9.0)}
    weight, _ = backbone.get_layer_measure_parameter_wise(measure, "out", "min")
    assert torch.equal(weight[0], torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(4))
    protection = backbone.protection()
    assert protection.in_tasks[protection.names.index("out.weight")].shape == (12, 1)
    backbone.task_embedding_t.pop("out")
    with pytest.raises(ValueError, match="task_embedding_t lacks out"):
        backbone.get_mask("validation", s_max=2.0)


def test_masks_are_state_that_is_copied_saved_and_moved() -> None:
    backbone = stored(1, 2, batch_normalization="independent")
    twin = copy.deepcopy(backbone)
    fresh = mlp(batch_normalization="independent")
    fresh.load_state_dict(backbone.state_dict())
    x = torch.randn(4, FEATURES)
    for other in (twin, fresh, twin.to("cpu")):
        assert other.processed_task_ids == [1, 2]
        for task in (1, 2):
            for name in LAYERS:
                assert torch.equal(other.masks[task][name], backbone.masks[task][name])
            assert torch.equal(*(b(x, "test", test_task_id=task)[0] for b in (other, backbone)))
        assert torch.equal(other.protection().out_tasks[0], backbone.protection().out_tasks[0])
        assert other.protection().parameters[0] is other.fc[0].weight
    assert twin.double().get_mask("test", test_task_id=1)["fc/0"].dtype == torch.float64
    on_meta = fresh.to("meta")
    assert all(t.device.type == "meta" for t in on_meta.get_mask("validation", 2.0).values())
    assert on_meta.task_bits.bits.device.type == "meta"


def test_masks_first_asked_for_in_inference_mode_train_later() -> None:
    backbone = stored(1)
    x = torch.randn(4, FEATURES)
    with torch.inference_mode():
        backbone(x, "test", test_task_id=1)
    backbone(x, "test", test_task_id=1)[0].sum().backward()
    assert math.isfinite(float(backbone.fc[0].weight.grad.sum()))
