"""A stand-in has Mammoth's hook order, as it is no package; a checkout runs where there is one."""

import importlib
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


@pytest.mark.slow
def test_a_checkout_runs_it(tmp_path):
    """MASKCL_MAMMOTH is a checkout whose requirements are installed."""
    if not {"MASKCL_MAMMOTH", "MASKCL_DATA"} <= os.environ.keys():
        pytest.skip("MASKCL_MAMMOTH or MASKCL_DATA is not set: no checkout of Mammoth or no MNIST")
    folder = tmp_path / "mammoth"
    skip = shutil.ignore_patterns("data", ".git")
    shutil.copytree(os.environ["MASKCL_MAMMOTH"], folder, ignore=skip)
    line = "from maskcl.integrations.mammoth import MaskModel\n"
    (folder / "models" / "masks.py").write_text(line)
    shutil.copytree(
        Path(os.environ["MASKCL_DATA"]) / "MNIST", tmp_path / "data" / "MNIST" / "MNIST"
    )
    words = (
        "main.py --model maskcl --mask_method hat --dataset seq-mnist --optimizer adam --lr 0.001"
        " --n_epochs 1 --debug_mode 1 --device cpu --num_workers 0 --disable_log 1 --non_verbose 1"
        f" --base_path {tmp_path}/data/"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(
        [sys.executable, *words.split()], cwd=folder, env=env, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"\[Task-IL\]: [\d.]+ %", done.stdout + done.stderr)) == 5
