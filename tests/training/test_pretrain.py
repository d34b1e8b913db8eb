"""A plain backbone: what training promises, and the folder that keeps it."""

import json
import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from maskcl import models
from maskcl.scenarios import Pretraining
from maskcl.training.pretrain import BaseError, accuracy, read_base, train_backbone, write_base

pytest.importorskip("safetensors", reason="bases are safetensors files")

FACTS = {"model": "mlp", "hidden": [8], "input_shape": [1, 2, 2], "outputs": 2, "source": "made"}


def points(count, seed):
    """Two classes that a line tells apart."""
    x = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, (x.sum((1, 2, 3)) > 0).long())


def data():
    return Pretraining("made", "points", points(200, 0), points(100, 1), 2, (1, 2, 2))


def model(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return models.mlp((1, 2, 2), 2, hidden=(8,), dropout=dropout)


def train(net, **more):
    settings = {"epochs": 8, "batch_size": 10, **more}
    return train_backbone(net, data(), lambda p: torch.optim.Adam(p, lr=0.02), **settings)


def test_training_learns_and_measures_on_what_was_held_out():
    net = model()
    before = accuracy(net, data().held_out, torch.device("cpu"))
    found = train(net)
    assert found > 0.95 > before
    net.eval()
    x, y = data().held_out.tensors
    assert found == (net(x).argmax(1) == y).double().mean().item()
    assert not net.training


def test_the_seed_decides_order_and_dropout_and_the_callers_generators_stay():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    nets = []
    for seed in (0, 0, 1):
        net = model(dropout=0.5)
        torch.set_rng_state(before)
        train(net, seed=seed, epochs=1)
        assert torch.equal(torch.get_rng_state(), before)
        nets.append(net)
    same, other = (
        all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), net.parameters(), strict=True))
        for net in nets[1:]
    )
    assert same and not other


def test_each_epoch_is_told():
    seen = []
    train(model(), epochs=3, on_epoch=lambda *figures: seen.append(figures))
    assert [epoch for epoch, _, _ in seen] == [0, 1, 2]
    assert seen[-1][1] < seen[0][1]
    assert seen[-1][2] > 0.8


def test_a_loss_that_is_not_finite_stops_it():
    net = model()
    with torch.no_grad():
        net[1].weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"the loss is nan in epoch 1; try a smaller"):
        train(net)


def test_a_base_comes_back_bit_for_bit_with_its_facts(tmp_path):
    net = model()
    train(net)
    content = write_base(tmp_path / "base", net, {**FACTS, "accuracy": 0.5})
    base = read_base(tmp_path / "base")
    assert base.facts == content
    assert base.facts["accuracy"] == 0.5
    assert not base.model.training
    x = torch.randn(3, 1, 2, 2)
    assert torch.equal(base.model(x), net(x))


def test_statistics_of_norms_come_back_too(tmp_path):
    net = models.resnet18((1, 4, 4), 2, width=2)
    facts = {"model": "resnet18", "input_shape": [1, 4, 4], "outputs": 2, "source": "made"}
    # A width that `build` does not make: the folder says so instead of loading a part.
    write_base(tmp_path / "narrow", net, facts)
    with pytest.raises(BaseError, match=r"does not fit its config.json"):
        read_base(tmp_path / "narrow")
    net = models.resnet18((1, 4, 4), 2)
    net.train()(torch.randn(8, 1, 4, 4))
    write_base(tmp_path / "base", net, facts)
    x = torch.randn(2, 1, 4, 4)
    assert torch.equal(read_base(tmp_path / "base").model(x), net.eval()(x))


def test_an_existing_folder_stays_as_it_is(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "mine").write_text("kept")
    with pytest.raises(OSError, match="base"):
        write_base(tmp_path / "base", model(), FACTS)
    assert [p.name for p in tmp_path.rglob("*")] == ["base", "mine"]


def test_facts_that_are_no_json_leave_nothing_behind(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_base(tmp_path / "base", model(), {**FACTS, "accuracy": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "other"}, "is something else"),
        ({"version": 2}, "has version 2, this maskcl reads 1"),
        ({"model": None}, "model is None, wanted text"),
        ({"model": "vgg"}, "describes no network: unknown model 'vgg'"),
        ({"input_shape": [1, "x"]}, "input_shape[1] is 'x', wanted a whole number"),
        ({"outputs": "2"}, "outputs is '2', wanted a whole number"),
        ({"outputs": 3}, "does not fit its config.json"),
        ({"hidden": [4]}, "does not fit its config.json"),
        ({"sha256": "0"}, "has SHA-256"),
    ],
)
def test_facts_that_do_not_fit_are_refused(tmp_path, change, sentence):
    content = write_base(tmp_path / "base", model(), FACTS)
    (tmp_path / "base" / "config.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(BaseError) as caught:
        read_base(tmp_path / "base")
    assert sentence in str(caught.value)


def test_what_is_no_base_is_refused(tmp_path):
    with pytest.raises(BaseError, match="holds no base"):
        read_base(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(BaseError, match="holds no base"):
        read_base(tmp_path / "file")
    write_base(tmp_path / "base", model(), FACTS)
    (tmp_path / "base" / "config.json").write_text("{")
    with pytest.raises(BaseError, match="cannot be read"):
        read_base(tmp_path / "base")
    shutil.rmtree(tmp_path / "base")
    write_base(tmp_path / "base", model(), FACTS)
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "base" / "base.safetensors")
    with pytest.raises(BaseError, match="is damaged"):
        read_base(tmp_path / "base")
