"""Multi-layer perceptron with HAT's masks on maskcl's fused ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from maskcl.compat.clarena.backbones.fused import check_activation_layer, masked_layer
from maskcl.compat.clarena.backbones.handed_masks import Masks
from maskcl.compat.clarena.backbones.masked import HATMaskBackbone
from maskcl.compat.clarena.backbones.norms import NormsByTask, check_mode
from maskcl.compat.clarena.backbones.plain_mlp import MLP
from maskcl.compat.clarena.spelling import MASK, is_at, older_order, spellings

__all__ = ["HATMaskMLP"]


class HATMaskMLP(HATMaskBackbone, MLP):
    """An MLP whose every layer, the last too, has masked units.

    Positional arguments may be in the order of today or in that of versions before 1.1, which had
    no batch_normalization: a bool in its place is the bias.

    Args:
        input_dim: as for MLP.
        hidden_dims: as for MLP.
        output_dim: as for MLP.
        gate: "sigmoid".
        activation_layer: class of the activations, without parameters, or None.
        batch_normalization: None, "shared" by all tasks (they then forget) or "independent", one
            a task (also ``batch_normalisation``).
        bias: as for MLP.
        dropout: as for MLP.
        kwargs: for the next class of a multiple inheritance.

    Attributes:
        fc_bns: where each task has its own BatchNorms, task ID as a string -> those of the layers.

    Raises:
        ValueError: gate, activation_layer or batch_normalization is not as above.
    """

    @older_order(
        "input_dim hidden_dims output_dim gate activation_layer bias dropout", is_at(5, bool)
    )
    @spellings(batch_normalisation="batch_normalization")
    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        output_dim: int,
        gate: str,
        activation_layer: Callable[[], nn.Module] | None = nn.ReLU,
        batch_normalization: str | None = None,
        bias: bool = True,
        dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_mode("HATMaskMLP", batch_normalization)
        check_activation_layer("HATMaskMLP", activation_layer)
        super().__init__(
            output_dim=output_dim,
            gate=gate,
            input_dim=input_dim,
            hidden_dims=hidden_dims,
            activation_layer=activation_layer,
            batch_normalization=batch_normalization is not None,
            bias=bias,
            dropout=dropout,
            **kwargs,
        )
        HATMaskBackbone.sanity_check(self)
        self.batch_normalization = batch_normalization
        self.embed_units()
        if batch_normalization == "independent":
            self.fc_bns = NormsByTask(self.fc_bn)

    @property
    def original_fc_bn_state_dict(self) -> dict[str, Any]:
        """What each task's BatchNorms begin with, where each task has its own."""
        return self.fc_bns.start

    @spellings(task_id="test_task_id")
    def get_bn(self, stage: str, test_task_id: int | None) -> Any:
        """The BatchNorms at a stage: a task's own in tests where each has its own; None for none.

        Raises:
            ValueError: the task has none.
        """
        if self.batch_normalization is None:
            return None
        task = self.norm_task(stage, test_task_id)
        return self.fc_bn if task is None else self.fc_bns.of(task)

    @older_order("input stage s_max batch_idx num_batches test_mask", is_at(5, MASK))
    @spellings(task_id="test_task_id")
    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        stage: str,
        s_max: float | None = None,
        batch_idx: int | None = None,
        num_batches: int | None = None,
        test_task_id: int | None = None,
        test_mask: Masks | None = None,
    ) -> tuple[Tensor, Masks, dict[str, Tensor]]:
        """[N, ..] -> (features [N, output_dim], masks, by layer its masked units).

        Arguments behind ``input`` are `get_mask`'s, and so are the errors.
        """
        mask = self.get_mask(stage, s_max, batch_idx, num_batches, test_task_id, test_mask)
        norms = self.get_bn(stage, test_task_id)
        x, activations = input.flatten(1), {}
        for i, name in enumerate(self.weighted_layer_names):
            activation = self.fc_activation[i] if self.activation else None
            norm = None if norms is None else norms[i]
            x = masked_layer(self.fc[i], x, mask[name], activation, norm)
            activations[name] = x
            if self.dropout:
                x = self.fc_dropout[i](x)
        return x, mask, activations
