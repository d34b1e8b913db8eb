"""Runs of masked linear layers in a sequential model, each as one op in training.

In networks of a few hundred units a call costs more than what it computes: modules, checks and
nodes of the graph are then paid once a run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from maskcl.nn.hat.fused_activation import FusedActivation
from maskcl.nn.hat.layers import HATLinear
from maskcl.nn.tasks.active import ActiveTask
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.sequential import are_watched, has_own_forward, modules_of
from maskcl.ops._autograd import is_transformed
from maskcl.ops._check import FLOATS, is_autocast
from maskcl.ops.gate import Gate
from maskcl.ops.gated_products import gated_linears, traced_gated_linears
from maskcl.ops.masked_forward import keeps_output
from maskcl.ops.masked_runs import masked_linears

Gates = tuple[Tensor, Tensor, Tensor, list[int], Gate]
"""The arguments of `hat_gates`."""


class Run:
    """Neighbouring layers with one activation, each behind the one before.

    Args:
        layers: with a mask.
        last: the layer without one that follows them, or the heads; None where there is none.
    """

    def __init__(self, layers: list[HATLinear], last: nn.Module | None) -> None:
        self.layers = layers
        self.last = last
        self.activation = layers[0].activation
        self.slope = layers[0].negative_slope
        self.slots = [layer._slots[0] for layer in layers if layer._slots]
        self._keeps_output = {
            dtype: keeps_output("masked_linears", dtype, self.activation, self.slope, "auto")
            for dtype in FLOATS
        }
        self._ordinary = [] if last is None or type(last) is TaskHeads else [last]

    def output(self, x: Any, active: ActiveTask) -> Tensor | None:
        """The last layer's output; None where the op would give another, or not take x."""
        found = self._weights_and_biases(x, active)
        if found is None or active.parts is None:
            return None
        masks = [active.parts[slot] for slot in self.slots]
        return masked_linears(x, *found, masks, self.activation, self.slope)

    def gated_output(self, x: Any, active: ActiveTask, gates: Gates) -> Tensor | None:
        """The same, and the masks made in the same node, for a run of all layers in their order."""
        found = self._weights_and_biases(x, active)
        if found is None:
            return None
        active.term_weight = gates[4].weight
        if torch.compiler.is_compiling():
            y, active.term = traced_gated_linears(x, *found, gates, self.activation, self.slope)
            active.has_masks = True
            return y
        y, active.term, mask = gated_linears(x, *found, gates, self.activation, self.slope)
        active.set_mask(mask, gates[3])
        return y

    def _weights_and_biases(
        self, x: Any, active: ActiveTask
    ) -> tuple[list[Tensor], list[Tensor | None]] | None:
        if not isinstance(x, Tensor) or x.dim() == 0:
            return None
        dtype, device = x.dtype, x.device
        if is_autocast(device.type) or not self._keeps_output.get(dtype):
            return None
        linear = [*self.layers, *self._ordinary]
        if type(self.last) is TaskHeads:
            head = active.own[self.last.place]
            if type(head) is not nn.Linear or are_watched([head]):
                return None
            linear.append(head)
        weights: list[Tensor] = []
        biases: list[Tensor | None] = []
        for layer in linear:
            held = layer._parameters  # the module's own attributes take several times as long
            weight, bias = held.get("weight"), held.get("bias")
            if weight is None or weight.dtype is not dtype or weight.device != device:
                return None
            if bias is not None and bias.dtype is not dtype:
                return None
            weights.append(weight)
            biases.append(bias)
        return weights, biases


class LayerRuns:
    """How a model is run when all its modules are called one after the other.

    Args:
        model: of the network, which may get another.
        masks: how many there are.
    """

    def __init__(self, model: nn.Module, masks: int) -> None:
        self._masks = masks
        self._follow(model, modules_of(model))

    def _follow(self, model: nn.Module, modules: list[nn.Module]) -> None:
        self._model, self._modules, self._steps = model, modules, _steps_of(modules)
        run = self._steps[0][0] if len(self._steps) == 1 else None
        self._looked_at = [model]
        self._looked_at += [m for run, members in self._steps if run for m in members]
        # A run that is the whole model and has all masks, in their order.
        self._whole = run if run and run.slots == list(range(self._masks)) else None

    def gated_output(
        self, model: nn.Module, active: ActiveTask, args: tuple[Any, ...], gates: Gates
    ) -> Any:
        """The model's output, and the active task's masks and term, where all is one run.

        Else None, and nothing has been done.
        """
        if is_transformed():  # which map over smaller ops
            return None
        if len(args) != 1 or active.narrow is not None or not self._may_run(model, gates[0]):
            return None
        if self._whole is None:
            return None
        return self._whole.gated_output(args[0], active, gates)

    def output(self, model: nn.Module, active: ActiveTask, args: tuple[Any, ...]) -> Any:
        """The model's output where it may be run so, else None.

        A hook anywhere, which wants to see its module's call, sees it.
        """
        if len(args) != 1 or not active.parts or active.narrow is not None:
            return None
        if not self._may_run(model, active.parts[0]):
            return None
        x = args[0]
        for run, modules in self._steps:
            output = None if run is None else run.output(x, active)
            if output is None:
                for module in modules:
                    x = module(x)
            else:
                x = output
        return x

    def _may_run(self, model: nn.Module, gates: Tensor) -> bool:
        if type(model) is not nn.Sequential:
            return False
        if not (torch.is_grad_enabled() and gates.requires_grad):
            return False
        modules = modules_of(model)
        if model is not self._model or modules != self._modules:
            if torch.compiler.is_compiling():
                return False  # what is compiled for the old modules would be compiled once more
            self._follow(model, modules)
        # Of modules in no run ``__call__`` sees to their own hooks.
        return not (_has_any_global_hook() or are_watched(self._looked_at))


def _steps_of(modules: list[nn.Module]) -> list[tuple[Run | None, list[nn.Module]]]:
    steps: list[tuple[Run | None, list[nn.Module]]] = []
    layers: list[HATLinear] = []
    members: list[nn.Module] = []

    def close(last: nn.Module | None = None) -> None:
        if members:
            steps.append((Run(list(layers), last), list(members)))
            layers.clear()
            members.clear()

    for module in modules:
        if type(module) is FusedActivation and members:
            members.append(module)
        elif members and is_output(module):
            members.append(module)
            close(module)
        elif not is_plain(module):
            close()
            steps.append((None, [module]))
        else:
            if layers and not _alike(layers[0], module):
                close()
            assert isinstance(module, HATLinear)
            layers.append(module)
            members.append(module)
    close()
    return steps


def is_plain(module: nn.Module) -> bool:
    """Whether it is a layer whose output is what the op gives."""
    return (
        type(module) is HATLinear
        and not has_own_forward(module)
        and module._slots is not None
        and len(module._slots) == 1
        and module._save == "auto"
    )


def is_output(module: nn.Module) -> bool:
    """Whether it is the network's output layer, or its heads: an ordinary product."""
    if has_own_forward(module):
        return False
    if type(module) is HATLinear:
        return module._slots is None and module.activation == "identity"
    return type(module) is TaskHeads


def _alike(first: nn.Module, second: nn.Module) -> bool:
    return (first.activation, first.negative_slope) == (second.activation, second.negative_slope)
