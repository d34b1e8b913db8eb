"""What docs/integrations/lightning.md says of the settings that a loop may have."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset

import maskcl
from maskcl.methods import PlanWarning
from tests.integrations.small_tasks import (
    BATCH,
    METHODS,
    SAMPLES,
    TASKS,
    learn,
    network,
    outputs,
    samples,
)

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging  # noqa: E402

from maskcl.integrations.lightning import MaskCallback  # noqa: E402
from tests.integrations.test_lightning import Module, fit, loader, two  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
MASKS = ["hat", "piggyback"]


def trainer(*callbacks, **options):
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
        enable_model_summary=False, callbacks=[*callbacks], **options,
    )  # fmt: skip


def cycled(net):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def on_plateaus(net):
    optimizer = torch.optim.RMSprop(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": schedule, "monitor": "validation"},
    }


def lbfgs(net):
    return torch.optim.LBFGS([p for p in net.parameters() if p.requires_grad], lr=0.05, max_iter=2)


def rprop(net):
    return torch.optim.Rprop(net.parameters())


class Alternate(Module):
    def training_step(self, batch, number):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
            self.untoggle_optimizer(optimizer)


class Gather(Module):
    def training_step(self, batch, number):
        self.manual_backward(self.loss(batch) / 2)
        for optimizer in self.optimizers() if number % 2 else ():
            optimizer.step()
            optimizer.zero_grad()


class Skip(Module):
    def training_step(self, batch, number):
        return None if number % 2 else self.loss(batch)


LOOPS = {
    "a cycle": (Module, cycled), "plateaus": (Module, on_plateaus), "lbfgs": (Module, lbfgs),
    "rprop": (Module, rprop), "in turns": (Alternate, two), "gathered by hand": (Gather, two),
    "batches without a loss": (Skip, rprop),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("loop", LOOPS)
def test_finished_tasks_keep_their_outputs(name, loop):
    kind, optimizers = LOOPS[loop]
    method, net, kept = METHODS[name](), network(name), []
    for task in range(TASKS):
        fit(kind(net, optimizers), method, task)
        kept.append(outputs(net, task))
    for task, before in enumerate(kept):
        assert torch.equal(before, outputs(net, task))


def test_decay_on_what_decides_about_masks_is_warned_of():
    def decayed(net):
        return torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)

    for name, what in (("hat", "embedding"), ("piggyback", "scores")):
        with pytest.warns(PlanWarning, match=f"weight decay on .*{what}"):
            fit(Module(network(name), decayed), METHODS[name](), 0)


class PastBoth(Module):
    """Neither the gradients nor the steps are Lightning's."""

    def training_step(self, batch, number):
        self.loss(batch).backward()
        for optimizer in self.optimizers(use_pl_optimizer=False):
            optimizer.step()


class PastSecond(Module):
    """The second gradients of a batch are not Lightning's."""

    def training_step(self, batch, number):
        for backward in (self.manual_backward, torch.Tensor.backward):
            backward(self.loss(batch))
            for optimizer in self.optimizers():
                optimizer.step()


@pytest.mark.parametrize(
    ("kind", "what"), [(PastBoth, "stepped past Lightning"), (PastSecond, "manual_backward")]
)
def test_what_goes_past_lightning_is_refused(kind, what):
    with pytest.raises(RuntimeError, match=what):
        fit(kind(network("mas"), two), maskcl.MAS(), 0)


def test_a_step_of_ones_own_beside_lightnings_is_refused():
    class Past(Module):
        def training_step(self, batch, number):
            self.loss(batch).backward()
            self.optimizers(use_pl_optimizer=False).step()
            return self.loss(batch)

    with pytest.raises(RuntimeError, match="stepped past Lightning"):
        fit(Past(network("mas")), maskcl.MAS(), 0)


@pytest.mark.parametrize("name", MASKS)
def test_validation_in_a_fit_sees_other_tasks_too(name):
    net, method, found = network(name), METHODS[name](), []

    class Look(Module):
        def validation_step(self, batch, number):
            mine = self.net(batch[0])
            with self.net.task(1):  # the one in training, under hard masks
                found.append((mine, self.net(batch[0])))
            with self.net.task(0):
                found.append((self.net(samples(0)[0]), kept))

    fit(Module(net), method, 0)
    kept = outputs(net, 0)
    fit(Look(net), method, 1)
    assert found and all(torch.equal(*pair) for pair in found)


class Predict(Module):
    def predict_step(self, batch, number):
        return self.net(batch[0])


def test_prediction_is_of_the_callbacks_task_and_says_which_is_missing():
    net = network("hat")
    for task in range(2):
        learn(maskcl.HAT(), net, task)
    for task in range(2):
        given = DataLoader(loader(task).dataset, batch_size=SAMPLES)
        found = trainer(MaskCallback(maskcl.HAT(), task=task)).predict(Predict(net), given)
        assert torch.equal(found[0], outputs(net, task))
    with pytest.raises(RuntimeError, match="no task is active"):
        trainer().predict(Predict(net), loader(0))


@pytest.mark.parametrize("name", MASKS)
def test_a_checkpoint_after_fit_has_the_finished_task(name, tmp_path):
    net, method, again = network(name), METHODS[name](), Module(network(name))
    fit(Module(net), method, 0).save_checkpoint(tmp_path / "after.ckpt")
    state = torch.load(tmp_path / "after.ckpt", weights_only=False)["state_dict"]
    again.load_state_dict(state)
    kept = outputs(net, 0)
    assert torch.equal(kept, outputs(again.net, 0))
    fit(again, method, 1)
    assert torch.equal(kept, outputs(again.net, 0))


@pytest.mark.parametrize("name", MASKS)
def test_the_best_epoch_loaded_after_fit_has_to_be_finished(name, tmp_path):
    module, method = Module(network(name)), METHODS[name]()
    save = ModelCheckpoint(tmp_path, filename="best", monitor="validation")
    fit(module, method, 0, callbacks=[save], enable_checkpointing=True)
    state = torch.load(save.best_model_path, weights_only=False)["state_dict"]
    with pytest.warns(UserWarning, match=r"tasks \[0\] are not finished"):
        module.load_state_dict(state)
    with pytest.raises(RuntimeError, match="task 0 is"):
        fit(module, method, 1)
    module.net.finish_task(0)
    kept = outputs(module.net, 0)
    fit(module, method, 1)
    assert torch.equal(kept, outputs(module.net, 0))


def test_weights_averaged_behind_the_callback_raise_when_fit_ends():
    net = network("hat")
    learn(maskcl.HAT(), net, 0)
    average, mask = StochasticWeightAveraging(0.01, 1), MaskCallback(maskcl.HAT(), task=1)
    with pytest.raises(RuntimeError, match="has changed since the last one was finished"):
        trainer(mask, average, max_epochs=4).fit(Module(net), loader(1))


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*samples(0), strict=True)


def test_data_without_a_length_needs_a_limit():
    net, data = network("hat"), DataLoader(Stream(), batch_size=BATCH)
    with pytest.raises(ValueError, match="limit_train_batches=N"):
        trainer(MaskCallback(maskcl.HAT(), task=0), max_epochs=1).fit(Module(net), data)
    limited = trainer(MaskCallback(maskcl.HAT(), task=0), max_epochs=1, limit_train_batches=4)
    limited.fit(Module(net), data)
    assert net.finished.tolist() == [True, False, False]


@pytest.mark.parametrize("name", ["mas", "ewc"])
def test_batches_of_ones_own_are_read_by_forward(name):
    class Named(Module):
        def training_step(self, batch, number):
            return F.cross_entropy(self.net(batch["x"]), batch["y"])

    data = [{"x": x, "y": y} for x, y in zip(*samples(0), strict=True)]
    nets = [network(name), network(name)]
    given = MaskCallback(METHODS[name](), task=0, forward=lambda net, b: (net(b["x"]), b["y"]))
    trainer(given, max_epochs=1).fit(Named(nets[0]), DataLoader(data, batch_size=BATCH))
    fit(Module(nets[1]), METHODS[name](), 0, max_epochs=1)
    for one, other in zip(nets[0].state_dict().values(), nets[1].state_dict().values()):
        assert torch.equal(one, other)
