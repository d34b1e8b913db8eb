"""The hooks that HAT and AdaHAT share: start, step, end and evaluation of a task."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from maskcl.compat.clarena.backbones.handed_masks import Masks
from maskcl.compat.clarena.cl_algorithms.compensation import compensate_
from maskcl.compat.clarena.cl_algorithms.guarded import GuardedAlgorithm
from maskcl.compat.clarena.cl_algorithms.older_forward import is_before_1_1, takes_test_mask
from maskcl.compat.clarena.cl_algorithms.regularizers import HATMaskSparsityReg
from maskcl.compat.clarena.spelling import older_order
from maskcl.ops import epoch_progress, hat_scale

EMBEDDING_CLAMP = 6.0
"""Embeddings stay within this after each step (HAT, section 2.5)."""

Outputs = dict[str, Any]


class MaskedAlgorithm(GuardedAlgorithm):
    """What trains a HATMaskBackbone; a subclass says how gradients are adjusted."""

    s_max: float
    clamp_threshold: float
    task_embedding_init_mode: str
    mark_sparsity_reg: HATMaskSparsityReg
    # Whether rates follow from the layers' shares, and from the summative mask.
    _is_adaptive: ClassVar[bool] = False

    def clip_grad_by_adjustment(
        self, network_sparsity: dict[str, Tensor] | None = None
    ) -> tuple[Any, Any, Tensor]:
        """Adjust the backbone's gradients."""
        raise NotImplementedError

    def on_train_start(self) -> None:
        """Draw the task's embedding, unless a checkpoint has brought it; guard the optimizer.

        Raises:
            RuntimeError: no task is set up.
        """
        backbone, optimizer = self.backbone, self.begin_optimizer()
        task = backbone.current_task()
        if int(backbone.embedding_task) != task:
            backbone.initialize_task_embedding(self.task_embedding_init_mode)
            backbone.initialize_independent_bn()
            backbone.embedding_task.fill_(task)
        self.release_optimizer()
        if self.adjustment_mode == "hat":
            self.guard_optimizer(optimizer)

    def on_train_end(self) -> None:
        """Store the task's mask and BatchNorm; from here on they are protected."""
        self.backbone.store_mask()
        self.backbone.store_bn()
        self.release_optimizer()

    @older_order("input stage batch_idx num_batches task_id", is_before_1_1)
    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        stage: str,
        task_id: int | None = None,
        batch_idx: int | None = None,
        num_batches: int | None = None,
    ) -> Any:
        """(logits [N, classes], masks, by layer its masked units); or logits alone, if set so.

        Args:
            input: of the backbone.
            stage: "train", "validation" or "test".
            task_id: whose head, and at stage "test" whose stored mask; None: the current task's
                head.
            batch_idx: at stage "train", from 0.
            num_batches: at stage "train".

        Raises:
            ValueError: as for the backbone's ``get_mask``.
        """
        train, tested = stage == "train", task_id if stage == "test" else None
        test: dict[str, Any] = {"test_task_id": tested}
        if takes_test_mask(type(self.backbone).forward):
            test = {"test_mask": None if tested is None else self.masks[tested]}
        feature, mask, activations = self.backbone(
            input,
            stage=stage,
            s_max=self.s_max if stage in ("train", "validation") else None,
            batch_idx=batch_idx if train else None,
            num_batches=num_batches if train else None,
            **test,
        )
        logits = self.heads(feature, self.task_id if task_id is None else task_id)
        if self.if_forward_func_return_logits_only:
            return logits
        return logits, mask, activations

    def compensate_task_embedding_gradients(self, batch_idx: int, num_batches: int) -> None:
        """Compensate the embeddings' gradients for the scale at a batch (HAT, section 2.5).

        Raises:
            ValueError: batch_idx is not one of num_batches, counted from 0.
        """
        scale = hat_scale(epoch_progress(batch_idx, num_batches), self.s_max)
        compensate_(self.backbone.embeddings(), scale, self.s_max, self.clamp_threshold)

    def training_step(self, batch: Any, batch_idx: int, num_batches: int | None = None) -> Outputs:
        """One step on a batch (x, y), backward and optimizer included.

        Args:
            batch: inputs and targets.
            batch_idx: of the epoch, from 0.
            num_batches: of the epoch; None: the trainer's.

        Returns:
            loss, loss_cls, hat_mask_sparsity_reg (also as loss_reg), acc, preds, logits, mask,
            activations, input, target, adjustment_rate_weight and _bias, capacity.

        Raises:
            RuntimeError: ``on_train_start`` has not run.
            ValueError: num_batches is not known, or batch_idx is not one of them.
        """
        x, y = batch
        num_batches = self.count_batches(num_batches)
        optimizer = self.optimizers() if self.is_driven() else self.optimizer
        if optimizer is None:
            raise RuntimeError(f"{type(self).__name__}: no optimizer, call on_train_start first")
        if self.adjustment_mode == "hat":
            self.guard_optimizer(optimizer)
        optimizer.zero_grad()
        task = self.task_id
        logits, mask, activations = self.forward(x, "train", task, batch_idx, num_batches)
        found = self.evaluate(logits, y)
        reg, network_sparsity = self._sparsity(mask)
        loss = found["loss_cls"] + reg
        if self.is_driven():
            self.manual_backward(loss)
        else:
            loss.backward()
        weight, bias, capacity = self.clip_grad_by_adjustment(network_sparsity=network_sparsity)
        self.compensate_task_embedding_gradients(batch_idx, num_batches)
        optimizer.step()
        with torch.no_grad():
            for embedding in self.backbone.embeddings():
                embedding.clamp_(-EMBEDDING_CLAMP, EMBEDDING_CLAMP)
        return {
            **found,
            "loss": loss,
            "hat_mask_sparsity_reg": reg,
            "loss_reg": reg,
            "activations": activations,
            "logits": logits,
            "mask": mask,
            "input": x,
            "target": y,
            "adjustment_rate_weight": weight,
            "adjustment_rate_bias": bias,
            "capacity": capacity,
        }

    def _sparsity(self, mask: Masks) -> tuple[Tensor, dict[str, Tensor] | None]:
        """The loss's term and, where rates follow from them, the layers' shares."""
        used, regulariser = self.backbone.used_units(), self.mark_sparsity_reg
        if type(regulariser) is not HATMaskSparsityReg:  # one of the user's own
            return regulariser(mask, self.backbone.by_layer(used))
        term = regulariser.term(torch.cat(list(mask.values())), used)
        if not self._is_adaptive:
            return term, None
        return term, regulariser.shares(mask, self.backbone.by_layer(used))

    def validation_step(self, batch: Any, batch_idx: int | None = None) -> Outputs:
        """preds, loss_cls and acc of the current task at scale s_max."""
        x, y = batch
        logits, _, _ = self.forward(x, "validation", self.task_id)
        return self.evaluate(logits, y)

    def test_step(
        self, batch: Any, batch_idx: int | None = None, dataloader_idx: int = 0
    ) -> Outputs:
        """preds, loss_cls and acc of the task of a test loader, with its stored mask."""
        x, y = batch
        task_id = self.get_test_task_id_from_dataloader_idx(dataloader_idx)
        logits, _, _ = self.forward(x, "test", task_id)
        return self.evaluate(logits, y)
