"""Multi-layer perceptron without masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from maskcl.compat.clarena.backbones.plain import Backbone, CLBackbone
from maskcl.compat.clarena.spelling import older_order, spellings

__all__ = ["CLMLP", "MLP"]


def _is_of_0_1(self: Any, *args: Any) -> bool:
    """Whether dropout stands where bias does today: (.., activation_layer, bias, dropout)."""
    return len(args) == 6 and isinstance(args[5], float)


class MLP(Backbone):
    """Linear layers ``fc/0``, ``fc/1``, .., each with BatchNorm, activation and dropout if wanted.

    Args:
        input_dim: of the input behind flattening.
        hidden_dims: of all layers but the last; may be empty.
        output_dim: of the last layer.
        activation_layer: class of the activations, or None.
        batch_normalization: BatchNorm behind each linear layer (also ``batch_normalisation``).
        bias: of the linear layers.
        dropout: probability, or None for no such layers.
        kwargs: for the next class of a multiple inheritance.
    """

    @older_order("input_dim hidden_dims output_dim activation_layer bias dropout", _is_of_0_1)
    @spellings(batch_normalisation="batch_normalization")
    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        output_dim: int,
        activation_layer: Callable[[], nn.Module] | None = nn.ReLU,
        batch_normalization: bool = False,
        bias: bool = True,
        dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(output_dim=output_dim, **kwargs)
        self.input_dim = input_dim
        self.hidden_dims = list(hidden_dims)
        self.num_fc_layers = len(self.hidden_dims) + 1
        self.batch_normalization: Any = bool(batch_normalization)
        self.activation = activation_layer is not None
        self.dropout = dropout is not None
        widths = [input_dim, *self.hidden_dims, output_dim]
        self.fc = nn.ModuleList(
            nn.Linear(before, after, bias) for before, after in pairwise(widths)
        )
        if self.batch_normalization:
            self.fc_bn = nn.ModuleList(nn.BatchNorm1d(width) for width in widths[1:])
        if activation_layer is not None:
            self.fc_activation = nn.ModuleList(activation_layer() for _ in widths[1:])
        if dropout is not None:
            self.fc_dropout = nn.ModuleList(nn.Dropout(dropout) for _ in widths[1:])
        self.weighted_layer_names = [f"fc/{i}" for i in range(self.num_fc_layers)]

    def forward(
        self, input: Tensor, stage: str | None = None, task_id: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """[N, ..] -> (features [N, output_dim], by layer what is behind its activation).

        ``stage`` and ``task_id`` are for other backbones.
        """
        x, activations = input.flatten(1), {}
        for i, name in enumerate(self.weighted_layer_names):
            x = self.fc[i](x)
            if self.batch_normalization:
                x = self.fc_bn[i](x)
            if self.activation:
                x = self.fc_activation[i](x)
            activations[name] = x
            if self.dropout:
                x = self.fc_dropout[i](x)
        return x, activations


CLBackbone.register(MLP)
CLMLP = MLP
