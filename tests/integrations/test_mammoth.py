"""A stand-in has Mammoth's hook order, as it is no package; a checkout runs where there is one."""

import argparse
import gzip
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.integrations.small_tasks import BATCH, EPOCHS, METHODS, SAMPLES, TASKS, batches, samples

SIZE = (2, 4)


class ContinualModel(nn.Module):
    """What MaskModel uses of ``models.utils.continual_model``, in Mammoth's order."""

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__()
        self.net, self.loss, self.args, self.dataset = backbone, loss, args, dataset
        self.num_classes, self.device = dataset.N_CLASSES, torch.device("cpu")
        self.opt = self.get_optimizer()
        self.current_task = self.epoch_iteration = 0

    def get_optimizer(self, params=None, lr=None):
        found = list(self.net.parameters() if params is None else params)
        return torch.optim.SGD(found, lr=self.args.lr, momentum=0.9, weight_decay=0.1)

    def get_offsets(self, task):
        return 2 * task, 2 * task + 2

    def meta_begin_task(self, dataset):
        self.opt.zero_grad(set_to_none=True)
        self.opt = self.get_optimizer()
        self.begin_task(dataset)

    def meta_observe(self, *args, epoch):
        loss = self.observe(*args, epoch=epoch)
        self.epoch_iteration += 1
        return loss

    def meta_end_task(self, dataset):
        self.end_task(dataset)
        self.current_task += 1


@pytest.fixture
def mask_model(monkeypatch):
    stand_in = ModuleType("models.utils.continual_model")
    stand_in.ContinualModel = ContinualModel
    for name in ("models", "models.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "models.utils.continual_model", stand_in)
    monkeypatch.delitem(sys.modules, "maskcl.integrations.mammoth", raising=False)
    yield importlib.import_module("maskcl.integrations.mammoth").MaskModel
    sys.modules.pop("maskcl.integrations.mammoth", None)


class Loader:
    """A task's samples [n, 1, 2, 4] with labels that count all classes."""

    def __init__(self, task):
        self.task = task

    def __len__(self):
        return SAMPLES // BATCH

    def __iter__(self):
        for x, y in batches(self.task):
            yield x.unflatten(1, (1, *SIZE)), y + 2 * self.task, x


def made(mask_model, name, **options):
    dataset = SimpleNamespace(N_TASKS=TASKS, N_CLASSES_PER_TASK=2, N_CLASSES=6, SIZE=SIZE)
    given = {"mask_method": name, "mask_options": options, "mask_head": None}
    args = SimpleNamespace(**given, lr=0.1, seed=None, n_epochs=EPOCHS)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 6))
    return mask_model(backbone, F.cross_entropy, args, None, dataset=dataset)


def train(model, task, *, has_scheduler=False):
    dataset = SimpleNamespace(train_loader=Loader(task))
    model.net.train()
    model.meta_begin_task(dataset)
    if has_scheduler:
        model.opt = model.get_optimizer()
    for epoch in range(EPOCHS):
        model.epoch_iteration = 0
        for x, y, plain in dataset.train_loader:
            model.meta_observe(x, y, plain, epoch=epoch)
    model.meta_end_task(dataset)
    model.net.eval()


def answer(model, task):
    with torch.no_grad():
        return model(samples(task)[0].unflatten(1, (1, *SIZE)), task)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("has_scheduler", [False, True])
def test_tasks_are_learned_in_turn(mask_model, name, has_scheduler):
    options = {"piggyback": {"lr": 0.05}, "ewc": {"strength": 0.1}}.get(name, {})
    model, kept = made(mask_model, name, **options), []
    for task in range(TASKS):
        before = [p.detach().clone() for p in model.net.task_parameters(task)]
        train(model, task, has_scheduler=has_scheduler)
        kept.append(answer(model, task))
        assert before and torch.isinf(kept[-1]).sum() == 4 * SAMPLES
    assert model.net.finished.all()
    if name in ("hat", "piggyback"):
        for task, outputs in enumerate(kept):
            assert torch.equal(outputs, answer(model, task))


def test_an_optimizer_put_in_meanwhile_is_protected(mask_model):
    model = made(mask_model, "hat")
    train(model, 0)
    kept = answer(model, 0)
    dataset = SimpleNamespace(train_loader=Loader(1))
    model.meta_begin_task(dataset)
    model.opt = torch.optim.AdamW(model.net.parameters(), lr=0.1)
    for x, y, plain in dataset.train_loader:
        model.meta_observe(x, y, plain, epoch=0)
    model.meta_end_task(dataset)
    assert torch.equal(kept, answer(model, 0))


def test_wrong_options_are_said(mask_model):
    with pytest.raises(ValueError, match=r"mask_options: .*sparsty"):
        made(mask_model, "hat", sparsty=0.5)
    with pytest.raises(ValueError, match="sparsity is -1"):
        made(mask_model, "hat", sparsity=-1)
    with pytest.raises(ValueError, match="task_label is None"):
        made(mask_model, "hat")(torch.zeros(1, 1, *SIZE))


def test_without_mammoth_a_sentence_says_where_it_belongs():
    with pytest.raises(ImportError, match="inside a checkout of"):
        importlib.import_module("maskcl.integrations.mammoth")


def test_options_are_a_json_object_on_the_command_line(mask_model, capsys):
    parser = mask_model.get_parser(argparse.ArgumentParser())
    read = parser.parse_args
    assert read(["--mask_method", "hat"]).mask_options == {}
    words = ["--mask_method", "hat", "--mask_options"]
    assert read([*words, '{"sparsity": 0.5}']).mask_options == {"sparsity": 0.5}
    for wrong, said in (('{"spars', "is no JSON"), ("[1]", "is no JSON object, wanted")):
        with pytest.raises(SystemExit):
            read([*words, wrong])
        assert said in capsys.readouterr().err


def test_mammoth_may_read_the_default_options_itself(mask_model):
    """It calls an option's type on the default, and a checkpoint's options are a dict already."""
    parser = mask_model.get_parser(argparse.ArgumentParser())
    (action,) = (action for action in parser._actions if action.dest == "mask_options")
    assert action.type(action.default) == {}
    assert action.type({"sparsity": 0.5}) == {"sparsity": 0.5}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """MASKCL_MAMMOTH is a checkout whose requirements are installed; it reads MNIST here."""
    if not {"MASKCL_MAMMOTH", "MASKCL_DATA"} <= os.environ.keys():
        pytest.skip("MASKCL_MAMMOTH or MASKCL_DATA is not set: no checkout of Mammoth or no MNIST")
    folder = tmp_path_factory.mktemp("checkout") / "mammoth"
    skip = shutil.ignore_patterns("data", ".git")
    shutil.copytree(os.environ["MASKCL_MAMMOTH"], folder, ignore=skip)
    for dataset in (folder / "datasets").glob("seq_*.py"):  # main.py imports them all
        if "open_clip" in dataset.read_text():  # and these load CLIP's weights when imported
            dataset.unlink()
    line = "from maskcl.integrations.mammoth import MaskModel\n"
    (folder / "models" / "masks.py").write_text(line)
    for reader in ("MNIST", "MyMNIST"):  # torchvision looks for files under the class's name
        raw = folder / "data" / "MNIST" / reader / "raw"
        raw.mkdir(parents=True)
        for packed in (Path(os.environ["MASKCL_DATA"]) / "MNIST" / "raw").glob("*.gz"):
            (raw / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    return folder


def run_checkout(folder, *words):
    """The accuracies after each task, of a few batches of each."""
    every = (
        "main.py --model maskcl --dataset seq-mnist --optimizer adam --lr 0.001 --n_epochs 1"
        " --debug_mode 1 --num_workers 0 --non_verbose 1"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, *every.split(), *words]
    done = subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\s*Raw accuracy values: .*Task-IL (\[.*\])$", done.stderr, re.MULTILINE)
    return [json.loads(row) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_checkout_runs_it(checkout, name):
    rows = run_checkout(checkout, "--mask_method", name)
    assert [len(row) for row in rows] == [1, 2, 3, 4, 5]
    if name in ("hat", "piggyback"):
        assert all(row == rows[-1][: len(row)] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hat", "piggyback"])
def test_a_checkout_goes_on_from_its_checkpoint(checkout, name):
    saving = ("--savecheck", "task", "--ckpt_name", name, "--stop_after", "2")
    first = run_checkout(checkout, "--mask_method", name, *saving)
    (saved,) = (checkout / "checkpoints").glob(f"{name}_*_1.pt")
    going_on = ("--loadcheck", str(saved), "--start_from", "2", "--stop_after", "5")
    rows = run_checkout(checkout, "--mask_method", name, *going_on)
    assert [len(row) for row in rows] == [3, 4, 5]
    assert all(row[:2] == first[-1] for row in rows)
