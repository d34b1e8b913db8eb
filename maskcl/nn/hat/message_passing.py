"""Convolutions of torch_geometric whose output channels carry a mask a task."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn.hat.sparse_product import is_constant_csr, sparse_product
from maskcl.nn.tasks.activations import check_activation
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.graph_convolutions import KINDS, is_geometric, is_message_passing, refusal
from maskcl.nn.tasks.narrow import Narrow
from maskcl.nn.tasks.state import Masked
from maskcl.ops import masked_activation
from maskcl.reference.masked_forward import activate


class HATMessagePassing(Masked):
    """``act(conv(x, edges)) * mask`` along the channels, of a convolution of torch_geometric.

    Where attention weighs neighbours, closed channels take no part in that either: an earlier
    task's attention is a function of what the task uses.

    Args:
        conv: a GCNConv, GraphConv, SAGEConv or GATConv; taken over. Its bias and attention vectors
            become parameters of this module, flat.
        activation, negative_slope: as for HATLinear.

    Shape: [N, in_channels], edges -> [N, out_channels]; the channels of GATConv are those of all
    heads where it concatenates them.

    Raises:
        ConversionError: the convolution is of another kind, or mixes its output's channels.
    """

    _network = "HATNetwork"
    _takes_edges = True
    bias: Tensor | None

    def __init__(
        self, conv: Any, *, activation: str = "identity", negative_slope: float = 0.01
    ) -> None:
        super().__init__()
        check_activation("HATMessagePassing", activation)
        reason = refusal(conv)
        if reason is not None:
            raise ConversionError(f"HATMessagePassing: {reason}")
        kind = KINDS[type(conv).__name__]
        heads = conv.heads if kind.attention and conv.concat else 1
        self.in_channels: int = conv.in_channels
        self.out_channels: int = conv.out_channels * heads
        self.activation, self.negative_slope = activation, negative_slope
        self.training = conv.training
        self.conv = conv
        owner, name = _owner(conv, kind.bias)
        self.bias = owner._parameters.pop(name)
        owner.register_parameter(name, None)
        self.attention = kind.attention
        for name in kind.attention:
            value = conv._parameters.pop(name)
            # Holds the place: a forward puts the gated vector there.
            conv.register_buffer(name, torch.zeros_like(value), persistent=False)
            flat = nn.Parameter(value.detach().flatten(), requires_grad=value.requires_grad)
            setattr(self, name, flat)

    def unmasked(self, x: Tensor, edges: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """conv(x, edges); further arguments are the convolution's."""
        bias, narrow = self.bias, self._narrow()
        if narrow is not None and bias is not None:
            bias = narrow.channels(bias)
        y = self._passed(None, narrow, x, edges, *args, **kwargs)
        return y if bias is None else y + bias

    def forward(self, x: Tensor, edges: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """act(conv(x, edges)) * mask; further arguments are the convolution's."""
        mask = self._mask()
        bias, narrow = self.bias, self._narrow()
        if narrow is not None and bias is not None:
            bias = narrow.channels(bias)
        y = self._passed(mask, narrow, x, edges, *args, **kwargs)
        if mask is None:
            y = y if bias is None else y + bias
            return activate(y, self.activation, self.negative_slope)
        return masked_activation(
            y,
            mask,
            bias,
            activation=self.activation,
            channel_dim=-1,
            negative_slope=self.negative_slope,
            save=self._save,
        )

    def _passed(
        self,
        mask: Tensor | None,
        narrow: Narrow | None,
        x: Tensor,
        edges: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """The convolution without its bias, attention gated, as the active task sees it."""
        own = {name: self._gated(name, mask, narrow) for name in self.attention}
        if narrow is not None:
            own |= {name: narrow.weight(w) for name, w in self.conv.named_parameters()}
            if self.attention:
                conv = _of_width(self.conv, own[self.attention[0]].shape[-1])
                return torch.func.functional_call(conv, own, (x, edges, *args), kwargs)  # type: ignore[no-any-return]
        if self._is_one_product and is_constant_csr(edges) and not args and not kwargs:
            return self._two_products(x, edges, own.get("lin.weight"))
        if own:
            y: Tensor = torch.func.functional_call(self.conv, own, (x, edges, *args), kwargs)
            return y
        return self.conv(x, edges, *args, **kwargs)

    def plain(self, closed: Tensor | None, narrow: Narrow | None = None) -> Any:
        """A copy of the convolution with its bias and attention, ``closed`` channels at 0.

        Args:
            closed: bool [out_channels], or None.
            narrow: what the copy has of the channels.
        """
        conv = copy.deepcopy(self.conv)
        for name in self.attention:
            heads = conv._buffers.pop(name).shape[1]
            conv._non_persistent_buffers_set.discard(name)
            flat = getattr(self, name).detach()
            flat = flat if narrow is None else narrow.channels(flat)
            conv.register_parameter(name, nn.Parameter(flat.clone().view(1, heads, -1)))
        owner, name = _owner(conv, KINDS[type(conv).__name__].bias)
        if self.bias is not None:
            owner.register_parameter(name, nn.Parameter(self.bias.detach().clone()))
        if narrow is not None and narrow != Narrow():
            for held in (part._parameters for part in conv.modules()):
                for key, value in held.items():
                    if value is not None and key not in self.attention:
                        part_ = narrow.weight if value.dim() > 1 else narrow.channels
                        held[key] = nn.Parameter(part_(value.detach()).clone())
            weight = next(w for w in conv.parameters() if w.dim() == 2)
            set_channels(conv, weight.shape[1], weight.shape[0])
        if self.bias is not None and closed is not None:
            owner._parameters[name].data[closed] = 0
        if closed is not None:
            for weight in (p for n, p in conv.named_parameters() if n.endswith(".weight")):
                weight.data[closed.repeat(len(weight) // len(closed))] = 0
        return conv

    def fresh_parameters(self) -> dict[str, Tensor]:
        """Parameters by name, as the convolution's ``reset_parameters`` draws them on the CPU."""
        conv = self.plain(None).cpu()
        if next(conv.parameters()).dtype != torch.float64:
            conv.float()
        conv.reset_parameters()
        own = {name: conv._parameters.pop(name).flatten() for name in self.attention}
        owner, name = _owner(conv, KINDS[type(conv).__name__].bias)
        if (bias := owner._parameters.pop(name)) is not None:
            own["bias"] = bias
        return own | {f"conv.{name}": parameter for name, parameter in conv.named_parameters()}

    @property
    def _is_one_product(self) -> bool:
        """Whether the convolution is (matrix of edges) (x W^T) and nothing else."""
        conv = self.conv
        plain = type(conv).__name__ == "GCNConv" and not conv.normalize
        return plain and conv.aggr in ("add", "sum") and not conv._explain

    def _two_products(self, x: Tensor, edges: Tensor, weight: Tensor | None) -> Tensor:
        weight = self.conv.lin.weight if weight is None else weight
        product = sparse_product(x, weight.t()) if is_constant_csr(x) else F.linear(x, weight)
        return sparse_product(edges, product)

    @property
    def parts(self) -> int:
        """Equal parts of the output's channels, one a head where heads stand side by side."""
        return self.conv.heads if self.attention and self.conv.concat else 1

    @property
    def has_mean_heads(self) -> bool:
        """Whether an output channel is the mean of several rows of the weight."""
        return bool(self.attention) and not self.conv.concat and self.conv.heads > 1

    def _gated(self, name: str, mask: Tensor | None, narrow: Narrow | None) -> Tensor:
        value = getattr(self, name)
        value = value if narrow is None else narrow.channels(value)
        if mask is not None:
            # Heads that are averaged have the same channels.
            value = value * mask.repeat(len(value) // len(mask))
        return value.view(1, self.conv.heads, -1)


class Aggregated(nn.Module):
    """A GINConv as two steps, so that the layers of its network can be followed.

    Args:
        conv: a GINConv with a fixed eps; taken over.

    Raises:
        ConversionError: eps is trained.
    """

    def __init__(self, conv: Any) -> None:
        super().__init__()
        if isinstance(conv.eps, nn.Parameter) and conv.eps.requires_grad:
            raise ConversionError(
                "GINConv: train_eps is True, a number that all tasks share and no mask protects;"
                " set train_eps=False"
            )
        self.training = conv.training
        self.nn = conv.nn if isinstance(conv.nn, nn.Sequential) else nn.Sequential(conv.nn)
        conv.nn = nn.Identity()
        self.aggregate = conv

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """nn((1 + eps) x + the sum of the neighbours' x)."""
        return self.nn(self.aggregate(x, edges))

    def plain(self) -> Any:
        """The GINConv, this module's parts in it."""
        self.aggregate.nn = self.nn
        return self.aggregate


def swapped_convolution(module: nn.Module) -> nn.Module | None:
    """What takes a convolution's place in a HATNetwork's model; None for all other modules."""
    if not is_geometric(module):
        return None
    if type(module).__name__ == "GINConv":
        return Aggregated(module)
    trains = is_message_passing(module) and any(p.requires_grad for p in module.parameters())
    return HATMessagePassing(module) if trains else None


def set_channels(conv: Any, ins: int, outs: int) -> None:
    """Say how many channels a convolution has, all heads together, and its linear parts."""
    for part in conv.modules():
        if hasattr(part, "in_channels"):
            part.in_channels, part.out_channels = ins, outs
    if attention := KINDS[type(conv).__name__].attention:
        conv.out_channels = outs // conv.heads
        for name in attention:
            if name in conv._buffers:  # holds the place: see HATMessagePassing
                shape = 1, conv.heads, conv.out_channels
                conv._buffers[name] = conv._buffers[name].new_zeros(shape)


def _of_width(conv: Any, channels: int) -> nn.Module:
    """The convolution as of before it grew; its parameters are put in by the caller.

    A copy of the modules alone: what they hold is shared, and their dictionaries are their own, so
    that threads of other tasks see nothing of it.
    """
    new = _shallow(conv)
    for name, part in conv._modules.items():
        new._modules[name] = None if part is None else _shallow(part)
    new.out_channels = channels
    return new  # type: ignore[no-any-return]


def _shallow(module: nn.Module) -> Any:
    new = copy.copy(module)
    for held in ("_parameters", "_buffers", "_modules"):
        setattr(new, held, dict(getattr(module, held)))
    return new


def _owner(conv: nn.Module, path: str) -> tuple[Any, str]:
    """The module that holds a parameter, and the parameter's name there."""
    parent, _, name = path.rpartition(".")
    return conv.get_submodule(parent), name
