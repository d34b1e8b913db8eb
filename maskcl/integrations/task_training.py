"""A task from its beginning to its end, in a loop that belongs to another library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maskcl.methods import Method, TaskData
from maskcl.nn import TaskNetwork
from maskcl.nn.tasks.active import Entering
from maskcl.ops import task_progress

Group = dict[str, Any]


class TaskTraining:
    """The hooks of a method, for one task and whatever optimizers the loop has.

    Args:
        method: for example ``maskcl.HAT()``.
        net: of its kind.
        task: that begins.
        seed: as for ``method.begin_task``.

    Attributes:
        state: the method's.
        term: what the method added to the loss in the last `forward`.

    Raises:
        RuntimeError: the task is finished, or earlier ones are no longer what they were.
        TypeError, ValueError: the network is of another kind, or has no such task.
    """

    def __init__(self, method: Method, net: TaskNetwork, task: int, seed: int = 0) -> None:
        self.method, self.net, self.task, self.seed = method, net, task, seed
        self.state = method.begin_task(net, task, seed=seed)
        self.term: Tensor | float = 0.0
        self._optimizers: list[Optimizer] = []
        self._guards: list[Any] = []

    def holds(self, optimizers: Sequence[Optimizer]) -> bool:
        """Whether these are the optimizers that `protect` was given."""
        mine = self._optimizers
        return len(mine) == len(optimizers) and all(a is b for a, b in zip(mine, optimizers))

    def protect(self, optimizers: Sequence[Optimizer]) -> None:
        """Keep these optimizers off what earlier tasks need, in the place of those before."""
        self.release()
        self._optimizers = list(optimizers)
        made = (self.method.protect(o, self.net, self.state) for o in self._optimizers)
        self._guards = [guard for guard in made if guard is not None]

    def release(self) -> None:
        """Give the optimizers their own steps back."""
        for guard in self._guards:
            guard.remove()
        self._optimizers, self._guards = [], []

    def entered(self) -> Entering[TaskNetwork]:
        """The task with the masks that train, for ``with``."""
        return self.net.task(self.task, self.state.scale)

    def forward(self, *inputs: Any) -> Any:
        """The network's output under the masks that train; ``term`` is the method's then."""
        with self.entered():
            outputs = self.net(*inputs)
            self.term = self.method.loss_term(self.net, self.state)
        return outputs

    def before_step(self, epoch: int, epochs: int, step: int, steps: int) -> None:
        """Set the masks' scale; all counted from 0, ``steps`` of an epoch."""
        self.term = 0.0  # of a step whose samples are all of other tasks
        progress = task_progress(epoch, max(epochs, epoch + 1), step, max(steps, step + 1))
        self.method.before_step(self.net, self.state, progress)

    def after_backward(self, scaler: torch.amp.GradScaler | None = None) -> None:
        """Between the backward of a step's last batch and the optimizer's step.

        Gradients of protected elements are 0 then, so that a norm that the loop clips by is that of
        what may move.
        """
        self.method.after_backward(self.net, self.state, scaler=scaler)
        if getattr(self.state, "is_fused", False):
            exact = getattr(self.method, "protection", "exact") == "exact"
            self.state.protection.clamp_(exact=exact)

    def after_step(self) -> None:
        """After each step of an optimizer."""
        self.method.after_step(self.net, self.state)

    def end(self, data: TaskData) -> None:
        """Finish the task and let the optimizers go."""
        self.method.end_task(self.net, self.state, data)
        self.release()


def network_of(caller: str, module: nn.Module) -> TaskNetwork:
    """The one network of tasks inside a module.

    Raises:
        TypeError: there is none.
        ValueError: there are several.
    """
    found = [inner for inner in module.modules() if isinstance(inner, TaskNetwork)]
    if not found:
        raise TypeError(
            f"{caller}: {type(module).__name__} holds no network of tasks (maskcl.nn.to_hat,"
            " to_piggyback or to_importance make one)"
        )
    if len(found) > 1:
        raise ValueError(
            f"{caller}: {type(module).__name__} holds {len(found)} networks of tasks, wanted one"
        )
    return found[0]


class Regrouped:
    """An optimizer that was made for all tasks, on the parameters of one until `undo`.

    The parameters that the method groups by themselves (what decides about masks never decays) keep
    the settings of the group that they were in but for the method's own. Moments of before are
    dropped, as in an optimizer made anew.

    Args:
        caller: named in the error.
        optimizer: any of ``torch.optim``.
        groups: of ``method.parameter_groups``.

    Raises:
        ValueError: more groups are needed, and a scheduler already knows how many there are.
    """

    def __init__(self, caller: str, optimizer: Optimizer, groups: Sequence[Group]) -> None:
        self._optimizer = optimizer
        self._before = [(group, list(group["params"])) for group in optimizer.param_groups]
        home = {id(p): at for at, (_, params) in enumerate(self._before) for p in params}
        inside: list[list[Any]] = [[] for _ in self._before]
        extra: list[Group] = []
        for wanted in groups:
            settings = {key: value for key, value in wanted.items() if key != "params"}
            fitting = [at for at, (group, _) in enumerate(self._before) if _has(group, settings)]
            first = fitting[0] if fitting else 0  # for what came with the task
            for at, (group, _) in enumerate(self._before):
                mine = [p for p in wanted["params"] if home.get(id(p), first) == at]
                if at in fitting:
                    inside[at] += mine
                elif mine:
                    extra.append({**group, **settings, "params": mine})
        if extra and any("initial_lr" in group for group, _ in self._before):
            raise ValueError(
                f"{caller}: the optimizer has a scheduler and {len(self._before)} groups, and the"
                f" task needs {len(self._before) + len(extra)}, as what decides about masks has"
                f" {', '.join(_settings(extra, groups))} of its own: make the optimizer of"
                " method.parameter_groups(net, 0)"
            )
        for (group, _), params in zip(self._before, inside):
            group["params"][:] = params  # the same list, which LBFGS holds
        optimizer.param_groups[:] = [group for group, _ in self._before] + extra
        optimizer.state.clear()

    def undo(self) -> None:
        """Give all groups back, with the rates that they have by now; moments are dropped."""
        for group, params in self._before:
            group["params"][:] = params
        self._optimizer.param_groups[:] = [group for group, _ in self._before]
        self._optimizer.state.clear()


def _has(group: Group, settings: Group) -> bool:
    """Whether a group has the settings: a rate before its scheduler; Rprop knows no decay."""
    return all(
        group.get(f"initial_{key}", group.get(key, value)) == value
        for key, value in settings.items()
    )


def _settings(extra: Sequence[Group], groups: Sequence[Group]) -> list[str]:
    """Names of the settings that groups have to themselves."""
    return sorted({key for group in groups for key in group if key != "params"} & set(extra[0]))
