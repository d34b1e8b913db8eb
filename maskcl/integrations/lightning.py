"""Lightning 2 (lightning.pytorch or pytorch_lightning): a callback that trains one task a fit.

``Trainer(callbacks=[MaskCallback(maskcl.HAT(), task=k)]).fit(module, loader)`` trains task k of the
network of tasks inside ``module``; docs/integrations/lightning.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.integrations.task_training import TaskTraining, network_of
from maskcl.methods import Method, TaskData
from maskcl.methods.loss_scaling import NOT_SCALED

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[assignment]
    except ImportError as error:
        raise ImportError(
            "maskcl.integrations.lightning needs Lightning: pip install lightning"
        ) from error

__all__ = ["MaskCallback"]

Forward = Callable[[nn.Module, Any], tuple[Tensor, Tensor | None]]


class MaskCallback(Callback):
    """A method of maskcl in Lightning's loop; one ``fit`` trains one task.

    The task is active in every batch of training, validation, test and prediction, so that the
    module's steps call the network as they call any other. It ends with the training: place the
    callback behind those that write weights there.

    Args:
        method: for example ``maskcl.HAT()``.
        task: of the network; those before it are finished.
        seed: of embeddings and scores.
        forward: (network, batch) -> outputs and targets, for methods that measure on the task's
            samples at its end; by default a batch is the network's arguments and the targets.

    Raises:
        TypeError: (fit) the module holds no network of tasks.
        ValueError: (fit) it holds several, or the checkpoint is of another task or method.
        RuntimeError: (fit) the task is finished, an earlier one is not or is no longer what it
            was, or gradients or steps go past Lightning's hooks.
    """

    def __init__(
        self, method: Method, *, task: int, seed: int = 0, forward: Forward | None = None
    ) -> None:
        self.method, self.task, self.seed, self.forward = method, task, seed, forward
        self._run: TaskTraining | None = None
        self._restored: dict[str, int] | None = None
        self._active = ExitStack()
        self._hooks: list[Any] = []
        self._is_due = False  # gradients have come that the method has not seen
        self._is_announced = False  # an optimizer is about to step, by Lightning's hook
        self._stepped: set[int] | None = None  # with the batch's last gradients; None before any

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin the task, before ``configure_optimizers``."""
        self._net = network_of("MaskCallback", pl_module)
        self._restored = None
        if stage == "fit":
            self._run = TaskTraining(self.method, self._net, self.task, self.seed)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint inside the task needs besides the module."""
        state = {} if self._run is None else self._run.state.state_dict()
        return {"method": repr(self.method), "task": self.task, "seed": self.seed, "state": state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on inside the task; see ``on_load_checkpoint``."""
        if self._run is not None:
            self._run.state.load_state_dict(state_dict["state"])

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Begin again on the loaded network, which knows other finished tasks than the new one."""
        if self._run is None:
            return
        mine = checkpoint["callbacks"].get(self.state_key)
        for name in ("method", "task", "seed"):
            found = None if mine is None else mine[name]
            if found != self.state_dict()[name]:
                raise ValueError(
                    f"MaskCallback: the checkpoint's {name} is {found}, wanted"
                    f" {self.state_dict()[name]}, this callback's"
                )
        if trainer.strategy.restore_checkpoint_after_setup:
            raise RuntimeError(
                f"MaskCallback: {type(trainer.strategy).__name__} loads a checkpoint after the"
                " optimizers are made, wanted a strategy that loads it before (auto, ddp)"
            )
        loaded = {name: tensor.clone() for name, tensor in self._net.state_dict().items()}
        self._run = TaskTraining(self.method, self._net, self.task, self.seed)
        self._net.load_state_dict(loaded)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Protect the optimizers.

        Raises:
            RuntimeError: a task before this one is not finished.
        """
        net, run = self._net, self._training
        if not bool(net.finished[: self.task].all()):
            first = net.finished.tolist().index(False)
            raise RuntimeError(
                f"MaskCallback: task {self.task} is to begin and task {first} is not finished:"
                " nothing would protect it; a state from within its training was loaded?"
                f" net.finish_task({first}) finishes it (HAT, Piggyback)"
            )
        self._protect(trainer, run)
        if len(trainer.optimizers) == 1 and math.isfinite(trainer.estimated_stepping_batches):
            steps = int(trainer.estimated_stepping_batches)
            self.method.check_plan(net, run.state, trainer.optimizers[0], max(steps, 1))

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the masks' scale, and make the task active with the masks that train."""
        self._leave()
        run, every = self._training, trainer.accumulate_grad_batches
        if not run.holds(trainer.optimizers):
            self._protect(trainer, run)
        batches = trainer.num_training_batches
        if not math.isfinite(batches):
            raise ValueError(
                "MaskCallback: the training data does not say how many batches an epoch has, which"
                " masks' scale rises by: wanted a loader with a length, or limit_train_batches=N"
            )
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else 1
        step = batch_idx // every
        run.before_step(trainer.current_epoch, epochs, step, math.ceil(batches / every))
        self._is_announced, self._stepped = False, None
        self._active.enter_context(run.entered())

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        """Add the method's term to the loss, in place; once a step of the optimizer."""
        run = self._training
        if self._is_due:
            return
        term = self.method.loss_term(run.net, run.state)
        if isinstance(term, Tensor):
            scaler = self._scaler(trainer)
            scale = 1.0 if scaler is None else scaler.get_scale()
            loss.add_((term * scale).to(loss.dtype))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Remember that there are gradients."""
        self._is_due = True
        self._stepped = set()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        """The method's part of the gradients, before Lightning clips them."""
        if self._is_due:
            scaler = self._scaler(trainer)
            if scaler is None and pl_module.automatic_optimization:
                scaler = NOT_SCALED  # not by one of another trainer's that is still alive
            self._training.after_backward(scaler)
            self._is_due = False
        elif not pl_module.automatic_optimization and (
            self._stepped is None or id(optimizer) in self._stepped
        ):
            raise RuntimeError(
                "MaskCallback: an optimizer steps and no gradient has come by Lightning: call"
                " self.manual_backward(loss) rather than loss.backward()"
            )
        self._stepped = {*(self._stepped or ()), id(optimizer)}
        self._is_announced = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Finish the task; its outputs keep their bits from here on."""
        self._leave()
        self._unhook()
        batches = functools.partial(self._batches, trainer)
        data = TaskData(batches) if self.forward is None else TaskData(batches, self.forward)
        self._training.end(data)
        self._run = None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Raise where callbacks behind this one wrote what finished tasks need, at the end."""
        if not self._net.is_sharded:  # a strategy's teardown takes shards from their device
            self._net.check_kept("MaskCallback")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the task unfinished, and the optimizers as they were."""
        self._leave()
        self._unhook()
        if self._run is not None:
            self._run.release()
            self._run = None

    def _enter(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Make the task active with its masks as they count."""
        self._leave()
        self._active.enter_context(self._net.task(self.task))

    def _leave(self, *args: Any, **kwargs: Any) -> None:
        self._active.close()

    on_validation_batch_start = on_test_batch_start = on_predict_batch_start = _enter
    on_train_batch_end = on_validation_batch_end = _leave
    on_test_batch_end = on_predict_batch_end = _leave

    @property
    def _training(self) -> TaskTraining:
        if self._run is None:
            raise RuntimeError("MaskCallback: no task is in training: it begins in Trainer.fit")
        return self._run

    def _scaler(self, trainer: Any) -> Any:
        return getattr(trainer.precision_plugin, "scaler", None)

    def _protect(self, trainer: Any, run: TaskTraining) -> None:
        self._unhook()
        self._is_due = False
        run.protect(trainer.optimizers)
        for optimizer in trainer.optimizers:
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    def _after_step(self, *args: Any) -> None:
        if self._is_due or not self._is_announced:
            raise RuntimeError(
                "MaskCallback: an optimizer has stepped past Lightning's hooks, with gradients that"
                " the method has not seen: step what self.optimizers() gives"
            )
        self._is_announced = False
        self._training.after_step()

    def _unhook(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _batches(self, trainer: Any) -> Iterator[Any]:
        for batch in trainer.train_dataloader:
            converted = trainer.precision_plugin.convert_input(batch)
            yield trainer.strategy.batch_to_device(converted)
