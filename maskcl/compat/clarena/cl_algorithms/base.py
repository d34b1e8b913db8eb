"""What the algorithms share: backbone, heads, the current task, its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.compat.clarena.backbones import Backbone, HATMaskBackbone
from maskcl.compat.clarena.cl_algorithms.module import module_class, their_class
from maskcl.compat.clarena.heads import HeadDIL, HeadsCIL, HeadsTIL
from maskcl.compat.clarena.heads.kinds import kind_of, setup_heads
from maskcl.compat.clarena.spelling import spellings

__all__ = ["CLAlgorithm"]

Heads = HeadsTIL | HeadsCIL | HeadDIL
_Module: Any = module_class()
_Theirs: Any = their_class("CLAlgorithm")


class CLAlgorithm(_Theirs, _Module):
    """Base of the algorithms: a module for Lightning's trainer, or for a loop of your own.

    Args:
        backbone: with heads' input_dim as its output_dim.
        heads: of the tasks; those of CLArena's own pipelines will do too.
        non_algorithmic_hparams: saved among ``hparams``.
        disable_unlearning: what the pipelines of CLArena's newest commits give to all algorithms;
            none here unlearns.

    Attributes:
        criterion: cross-entropy.
        task_id: of the current task; None before the first ``setup_task_id``.
        optimizer_t: what ``setup_task_id`` was given.
        lr_scheduler_t: what ``setup_task_id`` was given.
        optimizer: without a trainer, the current task's; None before ``on_train_start``.
        lr_scheduler: without a trainer, the current task's, or None.

    Raises:
        ValueError: backbone and heads do not fit.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: Heads,
        non_algorithmic_hparams: dict[str, Any] | None = None,
        *,
        disable_unlearning: bool = True,
    ) -> None:
        # Past CLArena's own class, which would begin anew.
        _Module.__init__(self)
        if non_algorithmic_hparams:
            self.save_hyperparameters(dict(non_algorithmic_hparams))
        self.backbone = backbone
        self.heads: Any = heads
        self.criterion = nn.CrossEntropyLoss()
        self.if_forward_func_return_logits_only = False
        self.task_id: int | None = None
        self.optimizer_t: Any = None
        self.lr_scheduler_t: Any = None
        self.optimizer: Any = None
        self.lr_scheduler: Any = None
        CLAlgorithm.sanity_check(self)

    def sanity_check(self) -> None:
        """Raise ValueError where backbone and heads do not fit.

        Each class asks its own in its ``__init__``, whatever a subclass makes of it.
        """
        backbone, heads = self.backbone, self.heads
        if not isinstance(backbone, Backbone) or kind_of(heads) is None:
            found = f"{type(backbone).__name__} and {type(heads).__name__}"
            raise ValueError(
                f"{type(self).__name__}: backbone and heads are {found}, wanted a CLBackbone, and"
                " HeadsCIL, HeadsTIL or HeadDIL"
            )
        if backbone.output_dim != heads.input_dim:
            raise ValueError(
                f"{type(self).__name__}: the backbone's output_dim is {backbone.output_dim}, wanted"
                f" the heads' input_dim, {heads.input_dim}"
            )

    @property
    def processed_task_ids(self) -> list[int]:
        """IDs of all tasks so far, in their order."""
        return self.backbone.processed_task_ids

    @property
    def seen_task_ids(self) -> list[int]:
        """``processed_task_ids``, as versions before 1.1 called it."""
        return self.processed_task_ids

    @spellings(num_classes_t="num_classes")
    def setup_task_id(
        self,
        task_id: int,
        num_classes: int,
        optimizer: Callable[..., Optimizer] | Optimizer,
        lr_scheduler: Callable[..., Any] | None = None,
    ) -> None:
        """Go to a task; before anything else of it.

        Args:
            task_id: from 1.
            num_classes: of the task (also ``num_classes_t``).
            optimizer: called with ``params=``, as a ``functools.partial`` of a class; or one that
                is made, which has to hold the head of the task.
            lr_scheduler: called with ``optimizer=``, or None.

        Raises:
            ValueError: task_id is not an int of at least 1, or its head has other classes.
        """
        self.backbone.setup_task_id(task_id=task_id)
        setup_heads(self.heads, task_id, num_classes)
        self.task_id = task_id
        self.optimizer_t, self.lr_scheduler_t = optimizer, lr_scheduler
        self.optimizer, self.lr_scheduler = None, None

    def forward(self, input: Tensor, stage: str, task_id: int | None = None) -> Any:
        """(logits [N, classes], by layer what it hands on); or logits alone, if set so.

        Args:
            input: of the backbone.
            stage: "train", "validation" or "test".
            task_id: whose head; None: the current task's.
        """
        feature, activations = self.backbone(input, stage=stage, task_id=task_id)
        logits = self.heads(feature, self.task_id if task_id is None else task_id)
        return logits if self.if_forward_func_return_logits_only else (logits, activations)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the task trains: weights, norms and head; embeddings in a group without decay.

        Decay would pull an embedding to 0, where chance decides about its unit.
        """
        embeddings: list[nn.Parameter] = []
        if isinstance(self.backbone, HATMaskBackbone):
            embeddings = self.backbone.embeddings()
        known = {id(p) for p in embeddings}
        others = [p for p in self.parameters() if p.requires_grad and id(p) not in known]
        groups: list[dict[str, Any]] = [{"params": others}]
        return [*groups, {"params": embeddings, "weight_decay": 0.0}] if embeddings else groups

    def configure_optimizers(self) -> dict[str, Any]:
        """The task's optimizer and, if there is one, its scheduler, as Lightning takes them."""
        optimizer = self.optimizer_t
        if not isinstance(optimizer, Optimizer):
            optimizer = optimizer(params=self.parameter_groups())
        if not self.lr_scheduler_t:
            return {"optimizer": optimizer}
        plan = {
            "scheduler": self.lr_scheduler_t(optimizer=optimizer),
            "monitor": f"task_{self.task_id}/learning_curve/val/loss_cls",
            "interval": "epoch",
            "frequency": 1,
        }
        return {"optimizer": optimizer, "lr_scheduler": plan}

    def begin_optimizer(self) -> Any:
        """The trainer's optimizer, or without a trainer one of the algorithm's own.

        Raises:
            RuntimeError: no task is set up.
        """
        if self.task_id is None:
            raise RuntimeError(f"{type(self).__name__}: no task, call setup_task_id first")
        if self.is_driven():
            return self.optimizers()
        plan = self.configure_optimizers()
        self.optimizer = plan["optimizer"]
        self.lr_scheduler = plan.get("lr_scheduler", {}).get("scheduler")
        return self.optimizer

    def attached_trainer(self) -> Any:
        """The trainer, or None."""
        try:
            return getattr(self, "trainer", None)
        except RuntimeError:  # Lightning's way to say that there is none
            return None

    def is_driven(self) -> bool:
        """Whether a trainer of Lightning runs it, whose optimizer and backward are to be used."""
        return bool(getattr(self.attached_trainer(), "optimizers", None))

    def count_batches(self, num_batches: int | None) -> int:
        """Batches of an epoch: as given, or as the trainer says.

        Raises:
            ValueError: neither says it.
        """
        if num_batches is None:
            num_batches = getattr(self.attached_trainer(), "num_training_batches", None)
        if num_batches is None:
            raise ValueError(
                f"{type(self).__name__}: num_batches is None and there is no trainer, wanted the"
                " number of batches of an epoch"
            )
        return int(num_batches)

    def get_test_task_id_from_dataloader_idx(self, dataloader_idx: int) -> int:
        """The task of a test loader: of the trainer's datamodule, else in the order of training."""
        data = getattr(self.attached_trainer(), "datamodule", None)
        ids = self.processed_task_ids if data is None else list(data.dataset_test)
        return ids[dataloader_idx]

    def set_forward_func_return_logits_only(self, forward_func_return_logits_only: bool) -> None:
        """Let ``forward`` return logits alone."""
        self.if_forward_func_return_logits_only = forward_func_return_logits_only

    def preceding_layer(self, layer_name: str) -> Any:
        """The layer before one of the backbone, or before "heads"; None before the first."""
        if layer_name == "heads":
            return self.backbone.get_layer_by_name(self.backbone.weighted_layer_names[-1])
        return self.backbone.get_layer_by_name(self.backbone.preceding_layer_name(layer_name))

    def next_layer(self, layer_name: str) -> Any:
        """The layer behind one of the backbone, the current head behind the last; None for it."""
        if layer_name == "heads":
            return None
        name = self.backbone.next_layer_name(layer_name)
        if name is not None:
            return self.backbone.get_layer_by_name(name)
        return self.heads.get_head(self.task_id)

    def evaluate(self, logits: Tensor, target: Tensor) -> dict[str, Tensor]:
        """``preds``, ``loss_cls`` and ``acc`` of a batch."""
        preds = logits.argmax(dim=1)
        acc = (preds == target).float().mean()
        return {"preds": preds, "loss_cls": self.criterion(logits, target), "acc": acc}
