"""Files of masks: real sizes, whole or refused, and onto the weights they were learned on only."""

from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from maskcl import TaskInference, masks
from maskcl.masks import MaskFileError, export_masks, import_masks, mask_file, read_masks
from maskcl.methods import Piggyback
from maskcl.nn import PiggybackNetwork, to_piggyback
from tests import tiny

LEVELS = ("binary", "ternary", "ternary_symmetric", "topk")


def trained(
    tasks: int = 2, *, levels: str = "binary", model: str = "mlp", norms: str = "frozen"
) -> PiggybackNetwork:
    """A network with the first tasks finished; a third of the way from the start, scores differ."""
    net = tiny.piggyback(model, 3, levels=levels, norms=norms)
    method = Piggyback(
        levels=levels, spread="uniform", density=0.4 if levels == "topk" else None, lr=1e-2
    )
    for task in range(tasks):
        tiny.train_task(net, method, task, tiny.OPTIMIZERS["adam"], steps=4)
    return net


def fingerprint(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in net.state_dict().items()}


def unchanged(net: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = net.state_dict()
    same = all(torch.equal(after[n], t) for n, t in before.items() if t.dtype != torch.float64)
    return after.keys() == before.keys() and same


@pytest.fixture(scope="module")
def net() -> PiggybackNetwork:
    """Two of three tasks finished; no test changes it."""
    return trained()


@pytest.fixture
def path(net, tmp_path) -> Path:
    """Task 1's file."""
    export_masks(net, 1, tmp_path / "task.safetensors", facts={"accuracy": 0.5})
    return tmp_path / "task.safetensors"


# --- there and back


@pytest.mark.parametrize(("model", "norms"), [("mlp", "frozen"), ("conv", "task")])
@pytest.mark.parametrize("levels", LEVELS)
def test_a_task_moves_to_another_network_of_the_same_base(levels, model, norms, tmp_path):
    net = trained(levels=levels, model=model, norms=norms)
    path = tmp_path / "m"
    size = export_masks(net, 1, path)
    assert size == path.stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    other = tiny.piggyback(model, 3, levels=levels, norms=norms)
    x, _ = tiny.samples(1, seed=1)
    for task in (None, 2):
        found = import_masks(other, path, task)
        assert torch.equal(
            tiny.logits(other, 1 if task is None else task, x), tiny.logits(net, 1, x)
        )
    assert other.finished.tolist() == [False, True, True]
    assert found.off() == net.off(1) == other.off(2)
    assert not any(p.requires_grad for p in other.parameters())
    # And on from there.
    export_masks(other, 2, tmp_path / "again")
    again = read_masks(tmp_path / "again")
    assert (again.task, again.base, again.shapes) == (2, found.base, found.shapes)
    for now, then in ((again.words, found.words), (again.own, found.own)):
        assert now.keys() == then.keys()
        assert all(torch.equal(now[name], then[name]) for name in then)


def test_what_tells_a_task_goes_with_its_masks(tmp_path):
    net = tiny.piggyback("mlp", 3)
    net.inference = TaskInference("masked")
    for task in range(2):
        tiny.train_task(net, Piggyback(lr=1e-2), task, tiny.OPTIMIZERS["adam"], steps=4)
    for task in range(2):
        export_masks(net, task, tmp_path / str(task))
    x, _ = tiny.samples(1, seed=1)
    wanted = net.infer(x)
    other = tiny.piggyback("mlp", 3)
    for task in range(2):
        import_masks(other, tmp_path / str(task))
    for found, told in zip(other.infer(x), wanted, strict=True):
        assert torch.equal(found, told)
    # Measured in another way, it is refused, and nothing has changed.
    third = tiny.piggyback("mlp", 3)
    third.inference = TaskInference("base")
    before = fingerprint(third)
    with pytest.raises(MaskFileError, match="the statistics were made with"):
        import_masks(third, tmp_path / "0")
    assert unchanged(third, before)
    # Without them masks are what they always were.
    plain = trained()
    export_masks(plain, 0, tmp_path / "plain")
    assert read_masks(tmp_path / "plain").statistics == {}


def test_a_file_says_what_it_holds(net, path):
    found = read_masks(path)
    assert (found.levels, found.task, found.base) == ("binary", 1, net.base_hash())
    assert found.shapes == {"1": (16, 36), "4": (12, 16)}
    assert found.facts == {"accuracy": 0.5}
    assert found.words_bytes == 4 * (16 * 36 // 32 + 12 * 16 // 32)
    assert found.own_bytes == 4 * (2 * 12 + 2)
    assert found.own.keys() == {"model.6.heads.weight", "model.6.heads.bias"}
    for name, words in net.words(1).items():
        assert torch.equal(found.words[name], words)


def test_other_programs_can_read_it(net, path):
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        words = file.get_tensor("words.1")
    assert metadata["format"] == "maskcl-masks"
    assert metadata["version"] == "1"
    assert metadata["base_sha256"] == net.base_hash()
    assert words.dtype == torch.int32
    bits = [(int(words[i // 32]) >> (i % 32)) & 1 for i in range(40)]
    mask = net.model[1]
    with net.task(1):
        kept = (mask.masked_weight() != 0).flatten()[:40]
    assert bits == kept.int().tolist()


def test_resnet50_is_3_2_megabytes_a_task(tmp_path):
    """25.6 M weights: a bit each and at most 1 % besides, as a file."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        plain = models.resnet50()
    plain = plain.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*plain.parameters(), *plain.buffers()]:
            tensor.zero_()
    assert 25.5e6 < sum(p.numel() for p in plain.parameters()) < 25.6e6
    net = to_piggyback(plain, 2)
    generator = torch.Generator().manual_seed(0)

    def words(layer) -> torch.Tensor:
        kept = torch.rand(layer.weight.numel(), generator=generator) < 0.5
        bits = nn.functional.pad(kept, (0, -len(kept) % 32)).view(-1, 32).to(torch.int64)
        packed = (bits << torch.arange(32)).sum(1)
        return packed.to(torch.int32)

    drawn = {name: words(layer) for name, layer in net.layers.items()}
    weights = sum(layer.weight.numel() for layer in net.layers.values())
    assert weights > 25.5e6
    net.set_words(1, drawn)
    size = export_masks(net, 1, tmp_path / "resnet50")
    assert size == (tmp_path / "resnet50").stat().st_size
    assert size <= 3.2e6 * 1.01
    assert size >= weights / 8
    found = read_masks(tmp_path / "resnet50")
    assert all(torch.equal(found.words[name], w) for name, w in drawn.items())


# --- what is no such file


def test_truncated_anywhere_it_is_refused_and_nothing_changes(net, path):
    target, data = tiny.piggyback(tasks=3), path.read_bytes()
    before = fingerprint(target)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(MaskFileError, match="is damaged") as error:
            import_masks(target, path)
        assert "\n" not in str(error.value)
    path.write_bytes(data + b"\0")
    with pytest.raises(MaskFileError, match="is damaged"):
        import_masks(target, path)
    assert unchanged(target, before)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_a_bit_flipped_anywhere_is_refused_and_nothing_changes(path, flip):
    target, data = tiny.piggyback(tasks=3), path.read_bytes()
    before = fingerprint(target)
    for i in range(len(data)):
        altered = bytearray(data)
        altered[i] ^= flip
        path.write_bytes(bytes(altered))
        with pytest.raises(MaskFileError):
            import_masks(target, path)
    assert unchanged(target, before)
    path.write_bytes(data)
    import_masks(target, path)
    assert not unchanged(target, before)


class Bomb:
    def __reduce__(self):
        return os._exit, (3,)


def test_foreign_files_are_refused_and_not_unpickled(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "m"
    with pytest.raises(MaskFileError, match="does not exist"):
        read_masks(path)
    with pytest.raises(MaskFileError, match="cannot be read"):
        read_masks(tmp_path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(MaskFileError, match="damaged or no file of masks"):
        read_masks(path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(MaskFileError, match="damaged or no file of masks"):
        read_masks(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(MaskFileError, match="a safetensors file but no file of masks"):
        read_masks(path)
    save_file({"a": torch.zeros(1)}, path, {"format": "maskcl-checkpoint", "version": "1"})
    with pytest.raises(MaskFileError, match="safetensors file but no file of masks"):
        read_masks(path)
    save_file({"a": torch.zeros(1)}, path, {"format": mask_file.FORMAT, "version": "2"})
    with pytest.raises(MaskFileError, match="format version 2, this maskcl reads 1"):
        read_masks(path)
    save_file({"a": torch.zeros(1)}, path, {"format": mask_file.FORMAT, "version": "1"})
    with pytest.raises(MaskFileError, match="is damaged: its SHA-256 is missing"):
        read_masks(path)


def bits_past_the_end(found):
    shapes = found.shapes | {"4": (11, 16)}
    words = found.words["4"].clone()[:6]
    words[-1] = -1
    return {"shapes": shapes, "words": found.words | {"4": words}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: {"levels": "soft"}, "levels is 'soft', wanted one of binary"),
        (lambda f: {"levels": "ternary"}, "words of layer 1 are torch.int32 [18], wanted"),
        (lambda f: {"shapes": f.shapes | {"1": (16, 37)}}, "wanted torch.int32 [19] for 592"),
        (lambda f: {"shapes": f.shapes | {"1": (-16, -36, 2)}}, "[18], wanted torch.int32 [36]"),
        (lambda f: {"shapes": {"1": (16, 36)}}, "layer 4 has a shape or words, wanted both"),
        (lambda f: {"words": {"1": f.words["1"]}}, "layer 4 has a shape or words, wanted both"),
        (lambda f: {"words": f.words | {"4": f.words["4"].float()}}, "are torch.float32 [6]"),
        (bits_past_the_end, "words of layer 4 have bits set past its 176 weights"),
        (lambda f: {"task": -1}, "is damaged: task -1"),
    ],
)
def test_content_that_does_not_agree_is_refused(path, change, said):
    """Written with a right digest, as another program might."""
    found = read_masks(path)
    mask_file.write_masks(path, dataclasses.replace(found, **change(found)))
    target = tiny.piggyback(tasks=3)
    before = fingerprint(target)
    with pytest.raises(MaskFileError) as error:
        import_masks(target, path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert unchanged(target, before)


def test_a_weight_cannot_be_both_0_and_minus_1(tmp_path):
    net = trained(levels="ternary")
    export_masks(net, 0, tmp_path / "m")
    found = read_masks(tmp_path / "m")
    words = found.words["1"].clone()
    words[1] |= ~words[0]
    changed = dataclasses.replace(found, words=found.words | {"1": words})
    mask_file.write_masks(tmp_path / "m", changed)
    with pytest.raises(MaskFileError, match="words of layer 1 make a weight both 0 and -1"):
        read_masks(tmp_path / "m")


# --- what it does not fit


def test_another_base_is_refused_with_both_hashes(net, path):
    target = tiny.piggyback(tasks=3)
    with torch.no_grad():
        target.model[4].bias[3] += 1e-3
    before = fingerprint(target)
    with pytest.raises(MaskFileError, match="learned on another base") as error:
        import_masks(target, path)
    assert net.base_hash() in str(error.value)
    assert target.base_hash() in str(error.value)
    assert net.base_hash() != target.base_hash()
    assert unchanged(target, before)


def narrow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Dropout(0.0),
                         nn.Linear(16, 11), nn.ReLU(), nn.Linear(11, 2))  # fmt: skip


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: tiny.piggyback(levels="ternary"), "its levels are 'binary', the network's"),
        (lambda: tiny.piggyback(narrow), "layer 4 has shape [12, 16], the network's [11, 16]"),
        (lambda: tiny.piggyback("residual"), "layer 1 is only in the file"),
        (lambda: to_piggyback(tiny.mlp(), 3), "layer 6 is only in the network"),
        (lambda: wider_head(), "heads.weight is torch.float32 [2, 12], the network's torch"),
        (lambda: without_bias(), "model.6.heads.bias is only in the file"),
    ],
)
def test_another_network_is_refused_and_stays_as_it_is(path, build, said):
    target = build()
    before = fingerprint(target)
    with pytest.raises(MaskFileError) as error:
        import_masks(target, path)
    assert said in str(error.value)
    assert unchanged(target, before)


def wider_head() -> PiggybackNetwork:
    torch.manual_seed(0)
    return to_piggyback(tiny.mlp(), 3, classes=[2, 3, 2])


def without_bias() -> PiggybackNetwork:
    torch.manual_seed(0)
    model = tiny.mlp()
    model[6].bias = None
    return to_piggyback(model, 3, classes=[2, 2, 2])


def test_a_finished_task_is_replaced_only_if_asked(path):
    target = trained(3)
    x, _ = tiny.samples(1, seed=1)
    before, kept = fingerprint(target), tiny.logits(target, 2, x)
    with pytest.raises(MaskFileError, match="it is finished, and replace was not asked for"):
        import_masks(target, path, 2)
    for task in (3, -1, True, "1"):
        with pytest.raises(MaskFileError, match="the network has tasks 0 to 2"):
            import_masks(target, path, task)
    assert unchanged(target, before)
    import_masks(target, path, 2, replace=True)
    assert torch.equal(tiny.logits(target, 2, x), tiny.logits(target, 1, x))
    assert not torch.equal(tiny.logits(target, 2, x), kept)


def test_a_task_in_training_is_not_overwritten(path):
    target = tiny.piggyback(tasks=3)
    Piggyback().begin_task(target, 1)
    before = fingerprint(target)
    with pytest.raises(MaskFileError, match="it is in training"):
        import_masks(target, path, replace=True)
    assert unchanged(target, before)
    # Another task's training goes on.
    import_masks(target, path, 2)
    assert target.training_task == 1
    assert all(p.requires_grad for p in target.task_parameters(1))


# --- how it is written


def test_an_unfinished_task_and_facts_that_are_no_json_write_nothing(net, tmp_path):
    with pytest.raises(RuntimeError, match="task 2 is not finished"):
        export_masks(net, 2, tmp_path / "m")
    for facts, error in (({"a": object()}, TypeError), ({"a": float("nan")}, ValueError)):
        with pytest.raises(error):
            export_masks(net, 0, tmp_path / "m", facts=facts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_other(net, path, monkeypatch, fails):
    old = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, full)
    with pytest.raises(OSError, match="No space"):
        export_masks(net, 0, path)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_digest_in_the_facts_does_not_mislead(net, tmp_path):
    facts = {"content_sha256": "0" * 64, "x": '"content_sha256":"' + "0" * 64 + '"'}
    export_masks(net, 0, tmp_path / "m", facts=facts)
    assert masks.read_masks(tmp_path / "m").facts == facts
