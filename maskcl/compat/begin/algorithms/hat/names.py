"""What BeGin's HAT trainers have besides the events: masks of each layer, and the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.compat.begin.algorithms.own_classes import ClassesOfTasks
from maskcl.compat.begin.spelling import either_name
from maskcl.compat.begin.trainers.steps import States, Stats
from maskcl.nn.hat.network import HATNetwork
from maskcl.nn.tasks.active import active_of


class HATNames(ClassesOfTasks):
    """The masks of a HAT trainer, layer by layer, in the order in which the model computes them.

    They are the network's, which applies, anneals, protects and saves them: what is given here is
    for looking at, and for a loss of one's own.

    Attributes:
        gate: the sigmoid.
        masking: a place for each layer's mask, which `get_mask` fills.
    """

    lamb: Any

    def __init__(
        self,
        model: Any,
        scenario: Any,
        optimizer_fn: Callable[[Any], Optimizer],
        loss_fn: Callable[..., Tensor],
        device: torch.device | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, scenario, optimizer_fn, loss_fn, device, **kwargs)
        self.gate = nn.Sigmoid()
        self.masking: list[Tensor | None] = [None] * len(self._network.units)

    @property
    def _network(self) -> HATNetwork:
        return self.model.core

    @property
    def embedding_list(self) -> list[LayerScores]:
        """The scores of each layer's units."""
        return [LayerScores(self._network, span) for span in self._network.units.values()]

    @property
    def mask_pre(self) -> list[Tensor] | None:
        """For each layer, 1 for units that an earlier task uses; None before there is one."""
        if not bool(self._network.finished.any()):
            return None
        used = self._network.used().float()
        return [used[span] for span in self._network.units.values()]

    @property
    def mask_back(self) -> dict[str, Tensor] | None:
        """By parameter, 0 for elements that are protected, else 1; None before there are any."""
        if not bool(self._network.finished.any()):
            return None
        found = self._network.protection()
        sides = zip(found.parameters, found.out_tasks, found.in_tasks, strict=True)
        free = [((out[:, None] & into[None, :]) == 0).all(-1).float() for _, out, into in sides]
        return {
            f"core.{name}": (mask[:, 0] if p.dim() == 1 else mask).expand_as(p)
            for name, p, mask in zip(found.names, found.parameters, free, strict=True)
        }

    def get_mask(self, task_id: Any, model: Any, s: float, m: list[Any], e: Sequence[Any]) -> Any:
        """Each layer's soft mask, gate(s * score).

        Args:
            task_id: whose.
            model: without effect.
            s: the scale.
            m: a list, into which they are put.
            e: ``embedding_list``.

        Returns:
            m.
        """
        for place, scores in enumerate(e):
            m[place] = self.gate(s * scores(torch.as_tensor(task_id)))
        return m

    def get_view_for(self, name: str, parameter: Tensor, masks: Sequence[Tensor]) -> Any:
        """How much masks take of a layer's elements: the smaller of a weight's two ends.

        Args:
            name: as in ``model.named_parameters()``.
            parameter: of that name.
            masks: one a layer, in the order of ``embedding_list``.

        Returns:
            Of the parameter's shape; None where it is of no layer with a mask.
        """
        layers = enumerate(self._network.units)
        place = next((i for i, layer in layers if f".{layer}." in name), None)
        if place is None:
            return None
        out = masks[place].detach().flatten()
        if parameter.dim() == 1:
            return out
        into = masks[place - 1].detach().flatten() if place else torch.ones_like(parameter[0])
        return torch.minimum(out[:, None], into[None, :]).expand_as(parameter)

    def criterion(self, outputs: Tensor, targets: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """The loss, and ``lamb`` times the share of the free units that masks take (eq. 5)."""
        before = self.mask_pre or [torch.zeros_like(mask) for mask in masks]
        free = [1 - used.to(mask.device).view_as(mask) for used, mask in zip(before, masks)]
        taken = sum((mask * share).sum() for mask, share in zip(masks, free))
        count = sum(share.sum() for share in free)
        return self.loss_fn(outputs, targets) + self.lamb * taken / torch.as_tensor(count).clamp(1)

    @either_name
    def inference(self, model: Any, curr_batch: Any, curr_training_states: States | None) -> Stats:
        """A batch's predictions and loss, and ``hat_masks``, each layer's as they were applied.

        The states have ``current_task``, in evaluation nothing else.
        """
        results = super().inference(model, curr_batch, curr_training_states)
        if isinstance(model.core, HATNetwork):
            active = active_of(model.core._state)
            results["hat_masks"] = [] if active is None else list(active.parts or ())
        return results

    @either_name
    def processTrainIteration(
        self, model: Any, optimizer: Optimizer, curr_batch: Any, curr_training_states: States
    ) -> Stats | None:
        """As for all trainers, with ``current_task`` in the states."""
        curr_training_states["current_task"] = self.curr_task
        return super().processTrainIteration(model, optimizer, curr_batch, curr_training_states)

    def _eval_states(self, task: int) -> States:
        return {"current_task": task}


class HATNamesOfLinks(HATNames):
    """As `HATNames`; BeGin's trainers of links and of graphs take the model too."""

    def get_view_for(  # type: ignore[override]
        self, name: str, curr_model: Any, parameter: Tensor, masks: Sequence[Tensor]
    ) -> Any:
        """See `HATNames.get_view_for`; ``curr_model`` is without effect."""
        return super().get_view_for(name, parameter, masks)


class HATNamesOfGraphs(HATNamesOfLinks):
    """As `HATNamesOfLinks`; BeGin's trainer of graphs takes two arguments in the other order."""

    def get_mask(  # type: ignore[override]
        self, model: Any, task_id: Any, s: float, m: list[Any], e: Sequence[Any]
    ) -> Any:
        """See `HATNames.get_mask`."""
        return super().get_mask(task_id, model, s, m, e)


class LayerScores:
    """One layer's scores in a HAT network, in the place of BeGin's embedding.

    Args:
        network: whose.
        span: the layer's units among all.
    """

    def __init__(self, network: HATNetwork, span: slice) -> None:
        self._network, self._span = network, span

    @property
    def weight(self) -> Tensor:
        """[tasks, units], a copy."""
        return torch.stack([scores[self._span] for scores in self._network.embeddings]).detach()

    def __call__(self, task: Tensor) -> Tensor:
        """A task's scores [units]; gradients reach the network's."""
        return self._network.embeddings[int(task)][self._span]
