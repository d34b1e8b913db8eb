"""What lasts is written once, beside the checkpoint, and found again wherever the folder goes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from maskcl.callback import Callback
from maskcl.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_facts,
    network_state,
    remove_unnamed,
    save_checkpoint,
)
from maskcl.checkpoint.parts import LEAST, folder_of
from maskcl.methods import MAS, Piggyback
from maskcl.nn import to_hat, to_importance, to_piggyback
from maskcl.tensor_file import write_tensors
from tests import tiny
from tests.checkpoint.test_files import Stop, piggyback, trainer

BIG = LEAST // 4 + 1  # float32


def listed(path) -> dict[str, int]:
    """The parts of a checkpoint, with what tells a file from another of the same name."""
    folder = folder_of(path)
    return {f.name: f.stat().st_ino for f in folder.iterdir()} if folder.is_dir() else {}


class Watch(Callback):
    """The parts that there are at each epoch's end, of the checkpoint before it."""

    def __init__(self, directory) -> None:
        self.path, self.seen = directory / "checkpoint.safetensors", []

    def on_epoch_end(self, *_) -> None:
        if self.path.exists():
            self.seen.append((listed(self.path), self.path.stat().st_size))


def test_a_piggyback_base_is_written_once_in_a_run(tmp_path):
    watch = Watch(tmp_path)
    piggyback(tmp_path, watch).fit()
    assert len(watch.seen) == 8
    assert all(parts == watch.seen[0][0] for parts, _ in watch.seen)
    (name,) = watch.seen[0][0]
    assert name.startswith("base-")
    assert name in (tmp_path / "checkpoint.safetensors").read_bytes().decode("latin-1")
    base = {n.removeprefix("model.") for n in tiny.piggyback("conv", 3, norms="task")._base_names()}
    own = load_checkpoint(tmp_path / "checkpoint.safetensors").tensors
    assert base < {n.removeprefix("network.model.") for n in own}


def test_a_folder_that_was_moved_or_copied_goes_on(tmp_path):
    wanted = piggyback(tmp_path / "whole").fit()
    with pytest.raises(KeyboardInterrupt):
        piggyback(tmp_path / "run", Stop(1, 1)).fit()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (tmp_path / "run").rename(tmp_path / "moved")
    for name in ("copy", "moved"):
        assert piggyback(tmp_path / name).fit(resume=True).losses == wanted.losses


def test_a_base_that_is_missing_or_foreign_is_refused_and_nothing_is_touched(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        piggyback(tmp_path, Stop(1, 1)).fit()
    path = tmp_path / "checkpoint.safetensors"
    (base,) = folder_of(path).iterdir()
    saved, content = base.read_bytes(), path.read_bytes()

    def refused() -> str:
        with pytest.raises(CheckpointError) as error:
            piggyback(tmp_path).fit(resume=True)
        assert "\n" not in str(error.value)
        return str(error.value)

    base.unlink()
    assert f"{base} does not exist, and its checkpoint is not whole without it" in refused()
    write_tensors(base, {"network.model.0.weight": torch.zeros(3)}, {})
    assert f"{base} is not the file that its checkpoint names" in refused()
    base.write_bytes(saved[:-1])
    assert f"{base} is damaged" in refused()
    base.write_bytes(b"something else")
    assert f"{base} is damaged or no part of a checkpoint" in refused()
    base.write_bytes(saved)
    assert path.read_bytes() == content
    assert load_checkpoint(path).position["task"] == 1


def test_a_checkpoint_of_version_2_goes_on(tmp_path):
    """All in one file, numbers in its JSON."""
    wanted = piggyback(None).fit()
    with pytest.raises(KeyboardInterrupt):
        piggyback(tmp_path, Stop(1, 1)).fit()
    path = tmp_path / "checkpoint.safetensors"
    saved = load_checkpoint(path)
    shutil.rmtree(folder_of(path))
    metadata = {"format": FORMAT, "version": "2"}
    metadata |= {key: json.dumps(getattr(saved, key)) for key in ("config", "position", "facts")}
    write_tensors(path, saved.tensors, metadata)
    assert load_facts(path) == (saved.config, saved.position, saved.facts)
    found = piggyback(tmp_path).fit(resume=True)
    assert found.losses == wanted.losses
    assert [name.partition("-")[0] for name in listed(path)] == ["base"]


def test_what_no_checkpoint_names_is_removed_and_nothing_else(tmp_path):
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = {"one": torch.randn(BIG), "two": torch.randn(BIG), "three": torch.randn(3)}

    def save(where, *names):
        lasting = {f"task-{name}": {name: None} for name in names}
        save_checkpoint(where, Checkpoint({}, {}, tensors, {}, lasting))

    save(path, "one", "two", "three")  # the last is too small for a file
    save(other, "one")
    first = listed(path)
    assert [name.rpartition("-")[0] for name in sorted(first)] == ["task-one", "task-two"]
    tensors["two"] = tensors["two"] + 1
    (folder_of(path) / ".maskcl-killed.tmp").write_text("half")
    (folder_of(path) / "notes.txt").write_text("mine")
    save(path, "one", "two")
    second = listed(path)
    assert second.keys() & first.keys() == {name for name in first if "task-one" in name}
    assert second["notes.txt"]
    assert len(second) == 3
    assert second[min(second.keys() & first.keys())] == first[min(second.keys() & first.keys())]
    (folder_of(path) / "notes.txt").unlink()
    stray = folder_of(path) / "base-0.safetensors"
    stray.write_text("of a run before")
    remove_unnamed(path)
    assert not stray.exists()
    save(path)
    assert not folder_of(path).exists()
    assert all(torch.equal(t, tensors[n]) for n, t in load_checkpoint(path).tensors.items())
    assert len(listed(other)) == 1


def test_tasks_to_come_need_no_bytes_and_finished_ones_are_not_written_again(tmp_path):
    path = tmp_path / "c.safetensors"
    model = torch.nn.Sequential(torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, 2))
    net = to_piggyback(model, 50, classes=[2] * 50)
    words = sum(layer.words.nbytes for layer in net.layers.values())

    def save() -> int:
        save_checkpoint(path, Checkpoint({}, {}, *_content(net)))
        return path.stat().st_size

    before = save()
    assert before < words / 2
    for task in (0, 1):
        net.set_words(task, {n: torch.full_like(net.layers[n].words_of(0), 5) for n in net.layers})
        assert abs(save() - before) < words / 100
        tasks = sorted(name for name in listed(path) if name.startswith("task-"))
        assert [name.split("-")[1] for name in tasks] == ["0", "1"][: task + 1]
    kept = listed(path)
    save()
    assert listed(path) == kept
    state = load_checkpoint(path).tensors
    for name, tensor in net.state_dict().items():
        assert torch.equal(state[f"network.{name}"], tensor), name
    net.forget_task(0, reset=True)
    save()
    assert not any(name.startswith("task-0-") for name in listed(path))


def _content(net):
    tensors, lasting = network_state(net)
    return tensors, {}, lasting


def test_importances_are_written_where_a_task_ends(tmp_path):
    watch = Watch(tmp_path)
    net = to_importance(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 600), torch.nn.ReLU(),
                            torch.nn.Linear(600, 2)), 3, classes=[2] * 3
    )  # fmt: skip
    trainer(tmp_path, watch, net=net, method=MAS()).fit()
    names = [[n for n in parts if n.startswith("importance-")] for parts, _ in watch.seen]
    assert all(len(found) == 1 for found in names)
    # Three epochs a task: the first has none before it, and an end's counts for the next task.
    assert len({found[0] for found in names}) == 3
    assert names[0] == names[1] != names[2]


def test_frozen_layers_are_a_base_of_any_method():
    def frozen():
        model = tiny.mlp()
        model[1].requires_grad_(False)
        return model

    for net in (
        to_hat(frozen(), 2, torch.zeros(2, *tiny.SHAPE), classes=[2, 2]),
        to_importance(frozen(), 2, classes=[2, 2]),
    ):
        base = net.lasting_state()["base"]
        assert set(base) == {"model.1.weight", "model.1.bias"}
    assert "base" not in tiny.network("mlp", 2).lasting_state()
    method = Piggyback()
    net = tiny.piggyback("conv", 2, norms="task")
    tiny.train_task(net, method, 0, tiny.OPTIMIZERS["sgd"], steps=1)
    found = net.lasting_state()
    names = [name for names in found.values() for name, rows in names.items() if rows is None]
    assert len(names) == len(set(names))
    assert set(names) <= net.state_dict().keys()
    assert {n for n in found["task-0"] if n.endswith(".words")} == {
        f"model.{name}.words" for name in net.layers
    }
