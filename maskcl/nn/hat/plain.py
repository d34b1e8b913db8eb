"""One task's view of a network with unit masks as an ordinary module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maskcl.nn.hat.attention import HATAttention
from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.fused_activation import FusedActivation
from maskcl.nn.hat.layers import HATLinear
from maskcl.nn.hat.message_passing import Aggregated, HATMessagePassing
from maskcl.nn.hat.network import HATNetwork
from maskcl.nn.hat.reading_hooks import free_hooks
from maskcl.nn.hat.topology import HAT_LAYERS, HATLayer
from maskcl.nn.tasks.activations import keeps_zero, module_of
from maskcl.nn.tasks.frozen_modules import thaw_norm
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.narrow import Narrow
from maskcl.nn.tasks.norms import TaskLayerNorm, TaskNorm
from maskcl.nn.tasks.own_parts import copy_for
from maskcl.nn.tasks.replace_modules import conv_options, replace_modules, with_hooks
from maskcl.nn.tasks.state import Masked, TaskAware
from maskcl.nn.tasks.task_parameters import tighten

_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class UnitMask(nn.Module):
    """Sets closed units to 0 where the layer before cannot: x times a constant along one dimension.

    Args:
        mask: [C], 0 or 1. dim: the dimension of C, counted from the front or from the end.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        """Masked input, its shape and dtype."""
        sizes = [1] * input.dim()
        sizes[self.dim] = -1
        return input * self.mask.view(sizes).to(input.dtype)


@torch.no_grad()
def plain_hat(net: HATNetwork, task: int) -> nn.Module:
    """``to_plain`` of a HATNetwork: closed units have weights and biases of 0.

    Raises:
        ValueError: no such task.
    """
    return _Exporter(net, task).run()


class _Exporter:
    def __init__(self, net: HATNetwork, task: int) -> None:
        self.task = task
        self.topology = net.topology
        mask = net.hard_mask(task).to(torch.float32)
        # The slots NONE and EVERY are the last two.
        self.table = torch.cat([mask, mask.new_zeros(1), mask.new_ones(1)])
        self.model = copy_for(net.model, task)
        self.modules = dict(self.model.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.narrow = net._state.narrow.get(task, {})
        self.fused = {m.layer: m for m in self.names if isinstance(m, FusedActivation)}

    @torch.no_grad()
    def run(self) -> nn.Module:
        root = nn.ModuleList([self.model])
        replace_modules(root, self._with_hooks)
        tighten(root, self.task)
        free_hooks(root)
        for module in root.modules():
            thaw_norm(module)
        return root[0].eval()

    def _with_hooks(self, module: nn.Module) -> nn.Module | None:
        plain = self._plain(module)
        return None if plain is None else with_hooks(plain, module)

    def _plain(self, module: nn.Module) -> nn.Module | None:
        if isinstance(module, TaskHeads):
            return module.own_module(self.task)
        if isinstance(module, FusedActivation):
            owner = self.modules[module.layer]
            assert isinstance(owner, Masked)
            return self._activation(module.original, *self._mask(module.layer, owner))
        if isinstance(module, HAT_LAYERS):
            return self._with_activation(module, self._layer(module))
        if isinstance(module, TaskNorm):
            return self._with_activation(module, self._norm(module))
        if isinstance(module, HATAttention):
            layers = {name: self._plain(child) for name, child in module.named_children()}
            return module.plain(layers)  # type: ignore[arg-type]
        return module.plain() if isinstance(module, Aggregated) else None

    def _mask(self, name: str, module: nn.Module) -> tuple[Tensor | None, int]:
        """Mask of a module's output, [C], and its dimension; None where it has none."""
        if name in self.topology.units:
            dim = -1 if isinstance(module, (HATLinear, HATMessagePassing, HATEmbedding)) else 1
            mask = self.table[self.topology.units[name]]
        elif name in self.topology.masks:
            rows, dim = self.topology.masks[name]
            mask = self.table[rows.to(self.table.device)].amax(0)
        else:
            return None, 0
        return self._narrow_of(module).channels(mask), dim

    def _narrow_of(self, module: nn.Module) -> Narrow:
        assert isinstance(module, TaskAware)
        return self.narrow.get(module.place, Narrow())

    def _with_activation(self, module: Masked, plain: nn.Module) -> nn.Module:
        name = self.names[module]
        if name in self.fused or module.activation == "identity":
            return plain
        activation = module_of(module.activation, module.negative_slope)
        return _chain(plain, self._activation(activation, *self._mask(name, module)))

    def _activation(self, activation: nn.Module, mask: Tensor | None, dim: int) -> nn.Module:
        if mask is None or keeps_zero(activation):
            return activation
        return _chain(activation, UnitMask(mask, dim))

    def _layer(self, layer: HATLayer) -> nn.Module:
        """The ordinary layer, closed units' weights and biases 0."""
        mask, _ = self._mask(self.names[layer], layer)
        closed, narrow = None if mask is None else mask == 0, self._narrow_of(layer)
        if isinstance(layer, HATMessagePassing):
            return layer.plain(closed, narrow)
        if isinstance(layer, HATEmbedding):
            return _plain_table(layer, closed, narrow)
        weight = narrow.weight(layer.weight)
        if isinstance(layer, HATLinear):
            plain: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        else:
            ins = weight.shape[1] * layer.groups
            options = {**conv_options(layer), "in_channels": ins, "out_channels": weight.shape[0]}
            plain = _CONVS[layer._space](**options, device="meta")
        for kind, value in (("weight", weight), ("bias", layer.bias)):
            value = narrow.channels(value) if kind == "bias" and value is not None else value
            value = None if value is None else nn.Parameter(value.detach().clone())
            if value is not None and closed is not None:
                value[closed] = 0
            setattr(plain, kind, value)
        return plain

    def _norm(self, norm: TaskNorm) -> nn.Module:
        """The task's norm with an affine of 0 for closed channels, else a UnitMask behind it."""
        plain = norm.own_module(self.task)
        mask, dim = self._mask(self.names[norm], norm)
        if mask is None or bool((mask == 1).all()):
            return plain
        weight, bias = getattr(plain, "weight", None), getattr(plain, "bias", None)
        axis = (
            dim + weight.dim()
            if isinstance(norm, TaskLayerNorm) and weight is not None
            else dim - 1
        )
        is_last = all(isinstance(child, nn.Identity) for child in plain.children())
        if weight is None or not 0 <= axis < weight.dim() or not is_last:
            return _chain(plain, UnitMask(mask, dim))
        sizes = [1] * weight.dim()
        sizes[axis] = -1
        for value in (weight, bias):
            if value is not None:
                value.masked_fill_(mask.view(sizes) == 0, 0)
        return plain


def _plain_table(layer: HATEmbedding, closed: Tensor | None, narrow: Narrow) -> nn.Embedding:
    """The ordinary table, closed channels 0."""
    weight = Narrow(into=narrow.out).weight(layer.weight).detach().clone()
    if closed is not None:
        weight[:, closed] = 0
    plain = nn.Embedding(
        weight.shape[0],
        weight.shape[1],
        layer.padding_idx,
        scale_grad_by_freq=layer.scale_grad_by_freq,
        device="meta",
    )
    plain.weight = nn.Parameter(weight)
    return plain


def _chain(*modules: nn.Module) -> nn.Module:
    """Modules one after the other; a Sequential is spliced in."""
    parts = [p for m in modules for p in (m if isinstance(m, nn.Sequential) else [m])]
    return nn.Sequential(*parts)
