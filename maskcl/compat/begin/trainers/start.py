"""How models and optimizers began, and back to it; parameters that come later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.nn.tasks.network import TaskNetwork


class Start:
    """Base of `Steps`; the trainer calls `_remember` once.

    Attributes:
        init_lrs: the learning rate of each group of an optimizer of the given model.
    """

    init_lrs: list[float]
    _initial: nn.Module
    _convert: Callable[[nn.Module], nn.Module]

    def _remember(self, given: nn.Module, chance: Tensor, optimizer: Optimizer) -> None:
        """Keep how things are.

        Args:
            given: the model as it was given; not to be changed.
            chance: state of torch's generator before it was converted.
            optimizer: of its parameters.
        """
        self._initial, self._chance = given, chance
        self._names = {name for name, _ in given.named_parameters()}
        self._added: dict[str, Tensor] = {}
        self._rates: WeakKeyDictionary[Optimizer, list[float]] = WeakKeyDictionary()
        self.init_lrs = [float(group["lr"]) for group in optimizer.param_groups]

    def _reset_model(self, target_model: nn.Module) -> None:
        """Give a model the weights that it began with: as given, or as converted.

        Args:
            target_model: the trainer's, or one like that which it was given.
        """
        fresh = self._initial
        if isinstance(getattr(target_model, "core", None), TaskNetwork):
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self._chance)
                fresh = self._convert(self._initial)
        wanted = target_model.state_dict()
        added = {name: value for name, value in self._added.items() if name in wanted}
        target_model.load_state_dict({**fresh.state_dict(), **added})

    def _reset_optimizer(self, target_optimizer: Optimizer) -> None:
        """Forget moments, and set the rates that it began with."""
        target_optimizer.state.clear()
        rates = self._rates.get(target_optimizer, self.init_lrs)
        for group, rate in zip(target_optimizer.param_groups, rates):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def add_parameters(self, target_model: nn.Module, target_optimizer: Optimizer) -> None:
        """Let an optimizer train parameters that a model has got since it was given.

        They are a group of their own, with the optimizer's defaults; moments and rates begin anew,
        gradients are dropped. Of a converted model what belongs to other tasks is left alone.

        Args:
            target_model: with the new parameters.
            target_optimizer: of it.
        """
        target_model.zero_grad()
        here = {id(p) for group in target_optimizer.param_groups for p in group["params"]}
        core = getattr(target_model, "core", None)
        network = {id(p) for p in core.parameters()} if isinstance(core, TaskNetwork) else set()
        missing = {
            name: parameter
            for name, parameter in target_model.named_parameters()
            if id(parameter) not in here and id(parameter) not in network
        }
        new = {name: p.detach().clone() for name, p in missing.items() if name not in self._names}
        self._added |= new
        if missing:
            rates = self._rates.get(target_optimizer, self.init_lrs)
            target_optimizer.add_param_group({"params": list(missing.values())})
            rate = float(target_optimizer.param_groups[-1]["lr"])
            self._rates[target_optimizer] = [*rates, rate]
            self._reset_optimizer(target_optimizer)

    def _noted(self, optimizer: Optimizer) -> Optimizer:
        """The optimizer, its rates kept for `_reset_optimizer`."""
        self._rates[optimizer] = [float(group["lr"]) for group in optimizer.param_groups]
        return optimizer


def at_smallest_rate(optimizer: Optimizer, scheduler: Any) -> bool:
    """Whether a plateau's scheduler has brought the rate down to its ``min_lr``."""
    return abs(optimizer.param_groups[0]["lr"] - scheduler.min_lrs[0]) < 1e-9
