"""Runs of piggyback layers in a sequential model, each as one node of the graph in training.

In networks of a few hundred units a call costs more than what it computes: modules, checks and
nodes are then paid once a run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from maskcl.nn.piggyback.cut import Cut
from maskcl.nn.piggyback.layers import PiggybackLinear
from maskcl.nn.tasks.active import ActiveTask
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.sequential import are_watched, has_own_forward, modules_of
from maskcl.ops._autograd import is_transformed
from maskcl.ops._check import is_autocast
from maskcl.ops._numbers import changes
from maskcl.ops.piggyback_runs import piggyback_linears, traced_piggyback_linears
from maskcl.shards import gather


class Run:
    """Neighbouring layers, each behind the one before or behind that one's ReLU."""

    def __init__(self) -> None:
        self.layers: list[PiggybackLinear] = []
        self.relus: list[bool] = []
        self.members: list[nn.Module] = []

    def output(self, x: Tensor, active: ActiveTask) -> Tensor:
        """The last module's output."""
        found = self._parts(x, active) if isinstance(x, Tensor) else None
        if found is None:
            for module in self.members:
                x = module(x)
            return x
        cut: Cut = active.record
        levels = self.layers[0].levels
        if torch.compiler.is_compiling():
            select = None, levels, cut.threshold, cut.inclusive, 1.0
            return traced_piggyback_linears(x, *found, self.relus, select)
        select = None, levels, float(cut.threshold), cut.inclusive, 1.0
        return piggyback_linears(x, *found, self.relus, select)

    def _parts(
        self, x: Tensor, active: ActiveTask
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]] | None:
        """Weights, scores and biases; None where a layer would find something else to do."""
        if x.dim() != 2 or x.layout is not torch.strided:
            return None
        dtype, device, width = x.dtype, x.device, x.shape[1]
        weights: list[Tensor] = []
        scores: list[Tensor] = []
        biases: list[Tensor | None] = []
        for layer in self.layers:
            held = layer._parameters  # the module's own attributes take several times as long
            weight, score, bias = held.get("weight"), held.get("scores"), held.get("bias")
            if weight is None or score is None or active.own[layer.place] is not None:
                return None
            if weight.dtype is not dtype or weight.device != device or weight.shape[1] != width:
                return None
            if bias is None and layer.bias is not None:  # computed from other parameters
                return None
            width = weight.shape[0]
            weights.append(weight)
            scores.append(gather(score))
            biases.append(bias)
        return weights, scores, biases


class LayerRuns:
    """How a model is run when all its modules are called one after the other.

    Args:
        model: of the network, which may get another.
    """

    def __init__(self, model: nn.Module) -> None:
        self._follow(model, modules_of(model))

    def output(self, model: nn.Module | None, active: ActiveTask, args: tuple[Any, ...]) -> Any:
        """The model's output where the task trains and the model may be run so, else None.

        A hook anywhere, which wants to see its module's call, sees it.
        """
        cut: Cut | None = active.record
        if cut is None or len(args) != 1 or not self._may_run(model, args[0]):
            return None
        # A threshold that differs from call to call is no constant of a graph.
        if torch.compiler.is_compiling() and changes(cut.threshold):
            return None
        x = args[0]
        for step in self._steps:
            if isinstance(step, Run):
                x = step.output(x, active)
            elif type(step) is TaskHeads:
                x = _of_head(step, x, active.own[step.place])
            else:
                x = step(x)
        return x

    def _may_run(self, model: nn.Module | None, x: Any) -> bool:
        if type(model) is not nn.Sequential or not isinstance(x, Tensor):
            return False
        if is_transformed():  # which have rules for single layers
            return False
        if is_autocast(x.device.type):
            return False
        modules = modules_of(model)
        if model is not self._model or modules != self._modules:
            if torch.compiler.is_compiling():
                return False  # what is compiled for the old modules would be compiled once more
            self._follow(model, modules)
        # Of modules in no run ``__call__`` sees to their own hooks.
        return not (_has_any_global_hook() or are_watched(self._looked_at))

    def _follow(self, model: nn.Module, modules: list[nn.Module]) -> None:
        self._model, self._modules, self._steps = model, modules, _steps_of(modules)
        self._looked_at = [model]
        for step in self._steps:
            if isinstance(step, Run):
                self._looked_at += step.members
            elif type(step) is TaskHeads:
                self._looked_at.append(step)


def _of_head(heads: TaskHeads, x: Tensor, head: nn.Module) -> Any:
    """What ``heads(x)`` is, without the modules' calls where nothing would see them."""
    if type(head) is nn.Linear and not are_watched([head]):
        held = head._parameters
        weight = held.get("weight")
        if weight is not None and "bias" in held:
            return F.linear(x, weight, held["bias"])
    return heads(x)


def _steps_of(modules: list[nn.Module]) -> list[Run | nn.Module]:
    steps: list[Run | nn.Module] = []
    for module in modules:
        last = steps[-1] if steps else None
        if has_own_forward(module):
            steps.append(module)
        elif type(module) is PiggybackLinear and module.levels != "topk":
            run = last if isinstance(last, Run) else Run()
            if run is not last:
                steps.append(run)
            run.layers.append(module)
            run.relus.append(False)
            run.members.append(module)
        elif type(module) is nn.ReLU and isinstance(last, Run) and not last.relus[-1]:
            last.relus[-1] = True
            last.members.append(module)
        else:
            steps.append(module)
    return steps
