"""What BeGin's MAS trainers keep in the states: importances, and weights after the last task."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from maskcl.compat.begin.spelling import either_name
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.compat.begin.trainers.steps import States
from maskcl.nn import ImportanceNetwork


class MASNames(BaseTrainer):
    """Gives the states what the network keeps of earlier tasks, for penalties of one's own.

    ``importances`` and ``params`` are dicts by the names of ``model.named_parameters()``. They are
    views of what the network charges for; of what no penalty holds importances are 0.
    """

    def initTrainingStates(self, scenario: Any, model: Any, optimizer: Optimizer) -> States:
        """``importances`` and ``params``, zeros."""
        return {
            what: {name: torch.zeros_like(p) for name, p in model.named_parameters()}
            for what in ("importances", "params")
        }

    @either_name
    def processAfterTraining(
        self,
        task_id: int,
        curr_dataset: Any,
        curr_model: Any,
        curr_optimizer: Optimizer,
        curr_training_states: States,
    ) -> None:
        """As for all trainers; then the states have the new importances and weights."""
        super().processAfterTraining(
            task_id, curr_dataset, curr_model, curr_optimizer, curr_training_states
        )
        net = getattr(curr_model, "core", None)
        if not isinstance(net, ImportanceNetwork) or "importances" not in curr_training_states:
            return
        for name in net.names(heads=self.method.heads):
            curr_training_states["importances"][f"core.model.{name}"] = net.importances[name]
            curr_training_states["params"][f"core.model.{name}"] = net.anchors[name]
