"""The output layer of BeGin's models: which classes were seen, and which may answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn import mask_logits


class AdaptiveLinear(nn.Module):
    """A linear layer whose outputs are masked until their class has been observed.

    A masked logit is the lowest finite number of its dtype.

    Args:
        in_channels: of the layer.
        out_channels: classes, C.
        bias: as for ``nn.Linear``.
        accum: whether the mask of a task has the classes of the tasks before in it.

    Attributes:
        lin: the layer; after a conversion, where heads are a network's, ``nn.Identity``.
        num_outputs: C.
        observed: bool [C], classes that any task has shown.
        output_masks: for each call of `observe_outputs`, bool [C]; None before the first.

    Shape: [n, in_channels] -> [n, C].
    """

    observed: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, bias: bool = True, accum: bool = True
    ) -> None:
        super().__init__()
        self.lin: nn.Module = nn.Linear(in_channels, out_channels, bias)
        self.num_outputs = out_channels
        self.bias, self.accum = bias, accum
        self.register_buffer("observed", torch.zeros(out_channels, dtype=torch.bool))
        self.output_masks: list[Tensor] | None = None

    @property
    def masks_so_far(self) -> list[Tensor]:
        """``output_masks``; [] before the first."""
        return self.output_masks or []

    def reset_parameters(self) -> None:
        """Draw the layer's weights anew; what was observed stays."""
        if isinstance(self.lin, nn.Linear):
            self.lin.reset_parameters()

    def observe_outputs(self, new_outputs: Tensor, verbose: bool = True) -> None:
        """Let the classes among ``new_outputs`` answer from here on.

        Args:
            new_outputs: integer labels of any shape; negative ones are no class and are left out.
            verbose: without effect.

        Raises:
            ValueError: a label is not below ``num_outputs``.
        """
        labels = new_outputs[new_outputs >= 0].unique().to(self.observed.device)
        if labels.numel() and int(labels.max()) >= self.num_outputs:
            raise ValueError(
                f"observe_outputs: new_outputs has {int(labels.max())}, wanted classes from 0 to"
                f" {self.num_outputs - 1}"
            )
        mask = torch.zeros_like(self.observed)
        mask[labels.long()] = True
        self.observed |= mask
        masks = self.masks_so_far
        if self.accum and masks:
            mask |= masks[-1].to(mask.device)
        self.output_masks = [*masks, mask]

    def get_output_mask(self, task_ids: Tensor | None = None) -> Tensor:
        """The last mask, bool [C]; or for each of ``task_ids`` its own, none for unseen tasks.

        Raises:
            RuntimeError: no outputs were observed yet, and the last mask is wanted.
        """
        masks = [mask.to(self.observed.device) for mask in self.masks_so_far]
        if task_ids is None:
            if not masks:
                raise RuntimeError("get_output_mask: no outputs were observed yet")
            return masks[-1]
        table = torch.stack([*masks, torch.zeros_like(self.observed)])
        return table[task_ids.clamp(max=len(masks)).to(table.device)].to(task_ids.device)

    def forward(self, x: Tensor, task_masks: Tensor | None = None) -> Tensor:
        """Logits, masked but for ``task_masks`` (bool [n, C]) or, without, the observed classes."""
        allowed = self.observed if task_masks is None else task_masks.to(x.device)
        return mask_logits(self.lin(x), allowed)

    def get_extra_state(self) -> Tensor:
        """Masks so far, bool [tasks, C]."""
        return torch.stack([*self.masks_so_far, torch.zeros_like(self.observed)])[:-1].cpu()

    def set_extra_state(self, state: Any) -> None:
        """Take over `get_extra_state`'s masks."""
        self.output_masks = list(state.to(self.observed.device)) or None
