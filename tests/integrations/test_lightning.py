import logging
import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import maskcl
from tests.integrations.small_tasks import (
    BATCH,
    EPOCHS,
    METHODS,
    TASKS,
    assert_same_bits,
    learn,
    network,
    outputs,
    samples,
)
from tests.pages import blocks, page

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.plugins.precision import MixedPrecision  # noqa: E402

from maskcl.integrations.lightning import MaskCallback  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def adam(net):
    return torch.optim.Adam(net.parameters(), lr=0.01)


def two(net):
    found = [p for p in net.parameters() if p.requires_grad]
    momentum = torch.optim.SGD(found[::2], lr=0.05, momentum=0.9, weight_decay=0.1)
    return [momentum, torch.optim.RMSprop(found[1::2], lr=0.005)]


class Module(pl.LightningModule):
    def __init__(self, net, optimizers=adam):
        super().__init__()
        self.net, self.optimizers_of = net, optimizers
        self.automatic_optimization = optimizers is not two

    def loss(self, batch):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, number):
        loss = self.loss(batch)
        if not self.automatic_optimization:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def validation_step(self, batch, number):
        self.log("validation", self.loss(batch))

    def configure_optimizers(self):
        return self.optimizers_of(self.net)


def loader(task):
    return DataLoader(TensorDataset(*samples(task)), batch_size=BATCH)


def fit(module, method, task, *, callbacks=(), checkpoint=None, **options):
    given = {"max_epochs": EPOCHS, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=1, callbacks=[MaskCallback(method, task=task), *callbacks], **given,
    )  # fmt: skip
    trainer.fit(module, loader(task), loader(task), ckpt_path=checkpoint)
    return trainer


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_what_a_loop_of_ones_own_learns(name):
    method, mine, theirs = METHODS[name](), network(name), network(name)
    for task in range(2):
        learn(method, mine, task)
        fit(Module(theirs), method, task)
    assert_same_bits(mine, theirs)


HABITS = {
    "accumulation": (adam, {"accumulate_grad_batches": 2}),
    "clipping": (adam, {"gradient_clip_val": 0.01}),
    "bf16": (adam, {"precision": "bf16-mixed"}),
    "double": (adam, {"precision": "64-true"}),
    "two optimizers by hand": (two, {}),
}


@pytest.mark.parametrize("name", ["hat", "piggyback"])
@pytest.mark.parametrize("habit", [*HABITS, "float16"])
def test_finished_tasks_keep_their_outputs(name, habit):
    optimizers, options = HABITS.get(habit, (adam, {}))
    method, net = METHODS[name](), network(name)
    module, kept = Module(net, optimizers), []
    for task in range(TASKS):
        if habit == "float16":
            options = {"plugins": [MixedPrecision("16-mixed", "cpu")]}
        fit(module, method, task, **options)
        kept.append(outputs(net, task))
    for task, before in enumerate(kept):
        assert torch.equal(before, outputs(net, task))
    assert not any(map(torch.equal, kept, kept[1:]))


def test_a_norm_that_lightning_clips_by_is_that_of_what_may_move():
    method, net = maskcl.HAT(), network("hat")
    learn(method, net, 0)
    seen = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            protection = net.protection()
            before = [None if p.grad is None else p.grad.clone() for p in protection.parameters]
            protection.clamp_()
            found = zip(before, protection.parameters, strict=True)
            seen.append(all(g is None or torch.equal(g, p.grad) for g, p in found))

    fit(Module(net), method, 1, callbacks=[Watch()], gradient_clip_val=0.1)
    assert seen and all(seen)


@pytest.mark.parametrize("name", ["mas", "ewc"])
def test_the_penalty_is_charged_once_a_step(name):
    """The same samples a step, in one batch or in two, give the same step but for rounding."""
    nets = [network(name), network(name)]
    for net, parts in zip(nets, (1, 2), strict=True):
        module, method = Module(net), METHODS[name]()
        learn(method, net, 0)
        trainer = pl.Trainer(
            accelerator="cpu", logger=False, enable_progress_bar=False, max_epochs=EPOCHS,
            enable_model_summary=False, enable_checkpointing=False,
            accumulate_grad_batches=parts, callbacks=[MaskCallback(method, task=1)],
        )  # fmt: skip
        data = TensorDataset(*samples(1))
        trainer.fit(module, DataLoader(data, batch_size=BATCH // parts))
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_fit_goes_on_in_a_new_process_to_the_same_bits(name, tmp_path):
    method, whole = METHODS[name](), network(name)
    for task in range(2):
        fit(Module(whole), method, task)

    class Kill(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise RuntimeError("killed")

    first = network(name)
    fit(Module(first), method, 0)
    save = ModelCheckpoint(tmp_path, filename="epoch", every_n_epochs=1)
    with pytest.raises(RuntimeError, match="killed"):
        fit(Module(first), method, 1, callbacks=[save, Kill()], enable_checkpointing=True)
    again = network(name)  # as a new process has it: no task is finished
    fit(Module(again), method, 1, checkpoint=tmp_path / "epoch.ckpt")
    assert_same_bits(whole, again)


def test_a_checkpoint_of_another_task_is_refused(tmp_path):
    net = network("hat")
    save = ModelCheckpoint(tmp_path, filename="epoch")
    fit(Module(net), maskcl.HAT(), 0, callbacks=[save], enable_checkpointing=True)
    for method, task, what in ((maskcl.HAT(), 1, "task is 0"), (maskcl.HAT(clip=1.0), 0, "method")):
        with pytest.raises(ValueError, match=what):
            fit(Module(network("hat")), method, task, checkpoint=tmp_path / "epoch.ckpt")


def test_an_interrupted_fit_gives_the_optimizer_back_and_leaves_the_task_unfinished():
    class Kill(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            raise RuntimeError("killed")

    net, made = network("hat"), []
    module = Module(net, lambda net: made.append(adam(net)) or made[-1])
    with pytest.raises(RuntimeError, match="killed"):
        fit(module, maskcl.HAT(), 0, callbacks=[Kill()])
    assert "step" not in vars(made[0]) and not net.finished.any()
    with pytest.raises(RuntimeError, match="task 1 is to begin and task 0 is not finished"):
        fit(module, maskcl.HAT(), 1)


def test_gradients_that_go_past_lightning_are_refused():
    class Past(Module):
        def training_step(self, batch, number):
            self.loss(batch).backward()
            for optimizer in self.optimizers():
                optimizer.step()

    with pytest.raises(RuntimeError, match="manual_backward"):
        fit(Past(network("mas"), two), maskcl.MAS(), 0)


def test_steps_that_go_past_lightning_are_refused():
    class Past(Module):
        def training_step(self, batch, number):
            self.manual_backward(self.loss(batch))
            for optimizer in self.optimizers(use_pl_optimizer=False):
                optimizer.step()

    with pytest.raises(RuntimeError, match="stepped past Lightning"):
        fit(Past(network("mas"), two), maskcl.MAS(), 0)


def test_a_weight_written_meanwhile_raises_at_the_end():
    class Write(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            with torch.no_grad():
                for parameter in pl_module.net.model.parameters():
                    parameter.mul_(1.5)

    net = network("hat")
    fit(Module(net), maskcl.HAT(), 0)
    with pytest.raises(RuntimeError, match="has changed since the last one was finished"):
        fit(Module(net), maskcl.HAT(), 1, callbacks=[Write()])
    assert net.finished.tolist() == [True, False, False]


@pytest.mark.parametrize("count", [0, 2])
def test_a_module_without_one_network_is_refused(count):
    module = Module(network("hat"))
    module.net = torch.nn.ModuleList(network("hat") for _ in range(count))
    with pytest.raises((TypeError, ValueError), match="network"):
        fit(module, maskcl.HAT(), 0)


def test_the_example_of_its_page(capsys, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    (example,) = blocks("python", page("integrations/lightning.md"))
    assert len(example.splitlines()) <= 40
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("max_epochs=5", "max_epochs=1"), "a page", "exec"), {})
    printed = re.findall(r"^\[.*\]$", capsys.readouterr().out, flags=re.MULTILINE)
    rows = [[float(n) for n in row[1:-1].split(",")] for row in printed]
    assert [row[-1] for row in rows] == rows[-1] and len(rows) == 5
    assert not list(tmp_path.iterdir())


def test_the_other_package_takes_the_callback_too():
    other = pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")

    class Other(other.LightningModule):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def training_step(self, batch, number):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return adam(self.net)

    mine, theirs = network("hat"), network("hat")
    learn(maskcl.HAT(), mine, 0)
    trainer = other.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        max_epochs=EPOCHS, enable_model_summary=False,
        callbacks=[MaskCallback(maskcl.HAT(), task=0)],
    )  # fmt: skip
    trainer.fit(Other(theirs), loader(0))
    assert_same_bits(mine, theirs)
