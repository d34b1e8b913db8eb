"""One batch under the hard masks of several tasks, in a sequential model of linear layers.

The first layer's product is the same for all tasks, whose masks only choose among its units. Behind
it each task has its own weights alone: rows and columns of the units that it uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from maskcl.nn.hat.fused_activation import FusedActivation
from maskcl.nn.hat.layer_runs import is_output, is_plain
from maskcl.nn.hat.layers import HATLinear
from maskcl.nn.hat.unit_tasks import UnitTasks
from maskcl.nn.tasks.activations import keeps_zero
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.sequential import are_watched, modules_of
from maskcl.nn.tasks.state import TaskAware
from maskcl.ops._check import is_autocast
from maskcl.reference.masked_forward import activate

_VERSION = attrgetter("_version")
_NOTHING_TO_DO = (FusedActivation, nn.Identity, nn.Dropout, nn.AlphaDropout)


@dataclass
class _Layers:
    """A sequential model as it is run.

    Attributes:
        front: modules before the first layer, which know of no task.
        hidden: the masked layers, each with the activations behind it that it does not compute.
        last: the output layer or the heads.
        inner: all modules whose calls are left out.
    """

    front: list[nn.Module] = field(default_factory=list)
    hidden: list[tuple[HATLinear, list[nn.Module]]] = field(default_factory=list)
    last: nn.Module | None = None
    inner: list[nn.Module] = field(default_factory=list)

    @property
    def linear(self) -> list[HATLinear]:
        """The masked layers."""
        return [layer for layer, _ in self.hidden]

    def heads(self) -> list[nn.Module]:
        """One a task, or the one that tasks share."""
        assert self.last is not None
        own = self.last.heads._modules if isinstance(self.last, TaskHeads) else {"": self.last}
        return [head for head in own.values() if head is not None]


Weights = tuple[Tensor, Tensor | None]
"""Of a layer: [outputs, inputs] and the bias as a column, [outputs, 1]."""

Parts = tuple[Tensor | None, list[Weights]]
"""A task's units of the first layer (None: all), and the weights of the layers behind it."""


@dataclass
class _Kept:
    """What tasks use of the weights, until one of these is written or replaced.

    Attributes:
        tensors: what it follows from.
        seen: the network's version, how often each tensor was written, and where it lies.
        first: the first layer's weight and bias, as they are.
        parts: by task.
    """

    tensors: list[Tensor]
    seen: list[int]
    first: Weights
    parts: dict[int, Parts] = field(default_factory=dict)


class LinearLayers:
    """Runs a HATNetwork's model for several finished tasks at once, where it can."""

    def __init__(self) -> None:
        self._followed: tuple[list[nn.Module], _Layers | None] = [], None

    def outputs(
        self, net: UnitTasks, tasks: Sequence[int], args: tuple[Any, ...]
    ) -> list[Tensor] | None:
        """Each task's output; None, with nothing done, where its modules have to be called."""
        layers = self._layers_of(net.model)
        if layers is None or len(args) != 1 or not tasks:
            return None
        heads = layers.heads()
        if not _may_run(net, layers, heads) or (kept := _kept(net, layers, heads)) is None:
            return None
        x = args[0]
        for module in layers.front:
            x = module(x)
        if not _fits(x, kept.first[0]):  # the layer says why
            return None
        rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
        # Units are rows, so that to choose some of them moves whole lines of memory.
        hidden = _product(rows.t(), *kept.first, *layers.hidden[0])
        outputs = []
        for task in tasks:
            parts = kept.parts.get(task)
            if parts is None:
                with torch.inference_mode(False), torch.no_grad():
                    head = heads[task] if heads[1:] else heads[0]
                    parts = kept.parts[task] = _cut_out(net, layers, head, task)
            y = _behind(hidden, layers, *parts)
            outputs.append(y if x.dim() == 2 else y.view(*x.shape[:-1], y.shape[-1]))
        return outputs

    def _layers_of(self, model: nn.Module) -> _Layers | None:
        modules = modules_of(model)
        seen, layers = self._followed
        if seen != modules:
            layers = _follow(modules)
            self._followed = modules, layers
        return layers


def _follow(modules: list[nn.Module]) -> _Layers | None:
    """The layers of a model whose units reach the next layer as they are; None for another."""
    found = _Layers()
    for module in modules:
        if found.last is not None:
            return None
        if is_plain(module):
            assert isinstance(module, HATLinear)
            found.hidden.append((module, []))
        elif found.hidden and is_output(module):
            found.last = module
        elif found.hidden and _acts_on_elements(module):
            if not isinstance(module, _NOTHING_TO_DO):
                found.hidden[-1][1].append(module)
        elif found.hidden or any(isinstance(m, TaskAware) for m in module.modules()):
            return None
        else:
            found.front.append(module)
            continue
        found.inner.append(module)
    return found if found.last is not None else None


def _acts_on_elements(module: nn.Module) -> bool:
    """Whether it maps, in evaluation, every element for itself and 0 to 0."""
    own = type(module) is not FusedActivation and not type(module).__module__.startswith("torch.nn")
    return not own and keeps_zero(module) is True


def _may_run(net: UnitTasks, layers: _Layers, heads: list[nn.Module]) -> bool:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if any(type(head) not in (nn.Linear, HATLinear) for head in heads):
        return False
    if _has_any_global_hook() or are_watched([net, net.model, *layers.inner, *heads]):
        return False
    return not any(module.training for module in layers.inner)


def _kept(net: UnitTasks, layers: _Layers, heads: list[nn.Module]) -> _Kept | None:
    """What was kept, or the place for it; None where a layer would find something else to do."""
    linear = [*layers.linear, *heads]
    parameters = [p for m in linear for p in m._parameters.values() if p is not None]
    tensors = [net.tasks, net.finished, *parameters]
    known: _Kept | None = net._state.cache.get("task forwards")
    if is_autocast(parameters[0].device.type):
        return None
    if known is not None and list(map(id, known.tensors)) != list(map(id, tensors)):
        known = None
    # A tensor of inference mode, which is not ordinary, has no version.
    if known is None and not _are_ordinary(linear, parameters):
        return None
    seen = [net._state.version, *map(_VERSION, tensors), *map(Tensor.data_ptr, tensors)]
    if known is None or known.seen != seen:
        if not _are_ordinary(linear, parameters):
            return None
        with torch.inference_mode(False), torch.no_grad():
            known = _Kept(tensors, seen, _weights(layers.linear[0], None, None))
        net._state.cache["task forwards"] = known
    return known


def _are_ordinary(linear: list[nn.Module], parameters: list[nn.Parameter]) -> bool:
    """Whether all weights are plain tensors of one dtype on one device."""
    if any(m._parameters.get("weight") is None for m in linear):  # parametrized
        return False
    dtype, device = parameters[0].dtype, parameters[0].device
    return all(
        type(p) is nn.Parameter and p.dtype is dtype and p.device == device and not p.is_inference()
        for p in parameters
    )


def _fits(x: Any, weight: Tensor) -> bool:
    if type(x) is not Tensor or x.layout is not torch.strided:
        return False
    is_like = x.dtype is weight.dtype and x.device == weight.device
    return is_like and x.dim() > 0 and x.shape[-1] == weight.shape[1]


def _cut_out(net: UnitTasks, layers: _Layers, head: nn.Module, task: int) -> Parts:
    mask = net.hard_mask(task)
    spans = list(net.units.values())
    used: list[Tensor | None] = []
    for layer in layers.linear:
        assert layer._slots is not None
        own = mask[spans[layer._slots[0]]]
        used.append(None if bool(own.all()) else own.nonzero().flatten())
    sides = zip([*layers.linear[1:], head], used, [*used[1:], None], strict=True)
    return used[0], [_weights(module, inputs, outputs) for module, inputs, outputs in sides]


def _weights(layer: nn.Module, inputs: Tensor | None, outputs: Tensor | None) -> Weights:
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    assert weight is not None
    inner = _chosen(_chosen(weight.detach(), 0, outputs), 1, inputs)
    return inner, None if bias is None else _chosen(bias.detach(), 0, outputs).unsqueeze(1)


def _chosen(x: Tensor, dim: int, index: Tensor | None) -> Tensor:
    return x if index is None else x.index_select(dim, index)


def _behind(hidden: Tensor, layers: _Layers, used: Tensor | None, cut: list[Weights]) -> Tensor:
    """[N, classes] of the first layer's units."""
    y = _chosen(hidden, 0, used)
    for stage, (weight, bias) in zip(layers.hidden[1:], cut, strict=False):
        y = _product(y, weight, bias, *stage)
    weight, bias = cut[-1]
    rows, columns = y.t(), weight.t()
    return rows @ columns if bias is None else torch.addmm(bias.t(), rows, columns)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, layer: HATLinear, behind: list[nn.Module]
) -> Tensor:
    """[units, N] behind the layer's activation, of [inputs, N]."""
    y = weight @ x if bias is None else torch.addmm(bias, weight, x)
    y = activate(y, layer.activation, layer.negative_slope)
    for module in behind:
        y = module(y)
    return y
