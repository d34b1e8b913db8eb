"""Training of a model before its first task, by a loss that needs no labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from maskcl.compat.begin.spelling import either_name
from maskcl.compat.begin.trainers.events import Events
from maskcl.compat.begin.trainers.start import at_smallest_rate
from maskcl.compat.begin.trainers.steps import States


class Pretraining(Events):
    """The event functions of pretraining.

    The model that is pretrained is the one that was given; the method's, the base and the joint one
    begin with what it learned.
    """

    pretraining: Callable[[nn.Module], Any] | None
    optimizer_fn: Callable[[Any], Optimizer]
    model: Any
    max_num_epochs = 0
    # Of a mean loss in the scheduler; link prediction's looks at scores, the larger the better.
    _pretraining_sign = 1.0

    @either_name
    def preparePretrainLoader(self, curr_dataset: Any, curr_training_states: States) -> Any:
        """What `processPretraining` goes through in each epoch."""
        raise NotImplementedError

    @either_name
    def processPretraining(
        self, pretrain_loader: Any, curr_model: nn.Module, curr_training_states: States
    ) -> None:
        """Train a copy of the model by what ``pretraining`` makes of it, and take over its best.

        Args:
            pretrain_loader: of `preparePretrainLoader`.
            curr_model: as it was given to the trainer, not converted.
            curr_training_states: the first task's.
        """
        assert self.pretraining is not None
        learner = self.pretraining(copy.deepcopy(curr_model)).to(self.device)
        optimizer = self.optimizer_fn(list(learner.parameters()))
        scheduler = None if self.scheduler_fn is None else self.scheduler_fn(optimizer)
        best = math.inf
        for _ in range(self.max_num_epochs):
            losses = []
            for batch in pretrain_loader:
                for inputs in self._pretraining_inputs(learner, batch):
                    optimizer.zero_grad()
                    loss = learner.inference(inputs)
                    loss.backward()
                    optimizer.step()
                    losses.append(loss.item())
            mean = sum(losses) / len(losses)
            if mean < best or math.isinf(best):
                best = mean
                learner.update()
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(self._pretraining_sign * mean)
                if at_smallest_rate(optimizer, scheduler):
                    break
            elif scheduler is not None:
                scheduler.step()
        learner.processAfterTraining(curr_model)

    def _pretraining_inputs(self, learner: Any, batch: Any) -> Iterable[Any]:
        """What a pretraining method's inference gets for a batch of the loader."""
        return learner.iterator(batch, self.device)

    def _pretrain(self, dataset: Any, states: States) -> None:
        if self.pretraining is None:
            return
        self._initial.to(self.device)
        loader = self.preparePretrainLoader(dataset, states)
        self.processPretraining(loader, self._initial, states)
        self._reset_model(self.model)
