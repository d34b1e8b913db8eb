"""Runs of masked linear layers in a sequential model, each as one op in training.

In networks of a few hundred units a call costs more than what it computes: modules, checks and
nodes of the graph are then paid once a run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.hat.fused_activation import FusedActivation
from maskcl.nn.hat.layers import HATLinear
from maskcl.nn.tasks.active import ActiveTask
from maskcl.ops.masked_forward import keeps_output
from maskcl.ops.masked_products import masked_linears


class Run:
    """Neighbouring layers with one activation, each behind the one before."""

    def __init__(self, layers: list[HATLinear]) -> None:
        self.layers = layers
        self.activation = layers[0].activation
        self.slope = layers[0].negative_slope
        self._slots = [layer._slots[0] for layer in layers if layer._slots]

    def output(self, x: Any, masks: tuple[Tensor, ...]) -> Tensor | None:
        """The last layer's output; None where the op would give another, or not take x.

        Args:
            x: the first layer's input.
            masks: of all layers of the network.
        """
        if not isinstance(x, Tensor) or x.dim() == 0 or torch.is_autocast_enabled(x.device.type):
            return None
        dtype, device = x.dtype, x.device
        if not keeps_output("masked_linears", dtype, self.activation, self.slope, "auto"):
            return None
        weights, biases, columns = [], [], x.shape[-1]
        for layer in self.layers:
            held = layer._parameters  # the module's own attributes take several times as long
            weight, bias = held.get("weight"), held.get("bias")
            if weight is None or weight.dtype is not dtype or weight.device != device:
                return None
            rows, wanted = weight.shape
            if wanted != columns or (bias is not None and bias.dtype is not dtype):
                return None
            columns = rows
            weights.append(weight)
            biases.append(bias)
        own = [masks[slot] for slot in self._slots]
        return masked_linears(x, weights, biases, own, self.activation, self.slope)


class LayerRuns:
    """How a model is run when all its modules are called one after the other.

    Args:
        model: of the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._modules = _modules_of(model)
        self._steps = _steps_of(self._modules)

    def run(self, active: ActiveTask, args: tuple[Any, ...]) -> Any:
        """The model's output where it may be run so, else None.

        A hook anywhere, which wants to see its module's call, sees it.
        """
        if type(self._model) is not nn.Sequential or len(args) != 1 or not self._may_run(active):
            return None
        x = args[0]
        for run, modules in self._steps:
            output = None if run is None else run.output(x, active.parts or ())
            if output is None:
                for module in modules:
                    x = module(x)
            else:
                x = output
        return x

    def _may_run(self, active: ActiveTask) -> bool:
        if not (torch.is_grad_enabled() and active.parts and active.parts[0].requires_grad):
            return False
        modules = _modules_of(self._model)
        if modules != self._modules:
            self._modules, self._steps = modules, _steps_of(modules)
        if nn.modules.module._has_any_global_hook() or _has_hooks(self._model):
            return False
        # Of the other modules ``__call__`` sees to their own hooks.
        return not any(_has_hooks(m) for run, found in self._steps if run for m in found)


def _modules_of(model: nn.Module) -> list[nn.Module]:
    """Of a sequential model; one module may come twice."""
    if type(model) is not nn.Sequential:
        return []
    return [module for module in model._modules.values() if module is not None]


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _steps_of(modules: list[nn.Module]) -> list[tuple[Run | None, list[nn.Module]]]:
    steps: list[tuple[Run | None, list[nn.Module]]] = []
    layers: list[HATLinear] = []
    members: list[nn.Module] = []

    def close() -> None:
        if members:
            steps.append((Run(list(layers)), list(members)))
            layers.clear()
            members.clear()

    for module in modules:
        if type(module) is FusedActivation and members:
            members.append(module)
        elif not _is_plain(module):
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


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a layer whose output is what the op gives."""
    return (
        type(module) is HATLinear
        and "forward" not in vars(module)
        and module._slots is not None
        and len(module._slots) == 1
        and module._save == "auto"
    )


def _alike(first: nn.Module, second: nn.Module) -> bool:
    return (first.activation, first.negative_slope) == (second.activation, second.negative_slope)
