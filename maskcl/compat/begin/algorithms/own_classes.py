"""What BeGin's methods that ask for the task keep of classes: whose task each is."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from maskcl.compat.begin.spelling import either_name
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.compat.begin.trainers.steps import States


class ClassesOfTasks(BaseTrainer):
    """Keeps ``model.class_to_task``: int64 [C], -1 for classes of tasks that are to come."""

    def initTrainingStates(self, scenario: Any, model: Any, optimizer: Optimizer) -> States:
        """``class_to_task``, which becomes the model's before the first task."""
        return {"class_to_task": -torch.ones(model.classifier.num_outputs, dtype=torch.long)}

    @either_name
    def processBeforeTraining(
        self,
        task_id: int,
        curr_dataset: Any,
        curr_model: Any,
        curr_optimizer: Optimizer,
        curr_training_states: States,
    ) -> None:
        """As for all trainers; and the task's classes are noted."""
        super().processBeforeTraining(
            task_id, curr_dataset, curr_model, curr_optimizer, curr_training_states
        )
        if "class_to_task" in curr_training_states:
            curr_model.class_to_task = curr_training_states.pop("class_to_task")
        seen = self._seen_labels(curr_dataset)
        curr_model.class_to_task[seen[seen >= 0].unique().cpu().long()] = task_id
