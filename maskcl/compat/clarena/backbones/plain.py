"""Backbones and the names of their layers."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any

from torch import Tensor, nn

from maskcl.compat.clarena.checks import check_task_id


class Backbone(nn.Module):
    """Base of all backbones. It can be told its task, as those of version 1.0 could.

    Args:
        output_dim: features that heads are given; None for a part of a backbone.
        disable_unlearning: what the pipelines of CLArena's newest commits give to all backbones;
            none here unlearns.
        kwargs: for the next class of a multiple inheritance; what none of them knows is a
            TypeError.

    Attributes:
        weighted_layer_names: names of the layers with weights from input to output, as in
            ``named_modules()`` with "/" for "."; a subclass fills it.
        task_id: of the current task, from 1; None before the first ``setup_task_id``.
        processed_task_ids: all so far, in their order.
    """

    def __init__(
        self, output_dim: int | None, *, disable_unlearning: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.output_dim = output_dim
        self.weighted_layer_names: list[str] = []
        self.task_id: int | None = None
        self.processed_task_ids: list[int] = []

    @property
    def masked_layer_names(self) -> list[str]:
        """``weighted_layer_names``, as versions before 1.0 called it."""
        return self.weighted_layer_names

    @property
    def seen_task_ids(self) -> list[int]:
        """``processed_task_ids``, as versions before 1.1 called it."""
        return self.processed_task_ids

    @property
    def batch_normalisation(self) -> Any:
        """``batch_normalization``, as versions before 1.1 spelled it."""
        return getattr(self, "batch_normalization", None)

    def setup_task_id(self, task_id: int) -> None:
        """Go to a task; before its first forward.

        Raises:
            ValueError: task_id is not an int of at least 1.
        """
        check_task_id("setup_task_id", task_id)
        self.task_id = task_id
        if task_id not in self.processed_task_ids:
            self.processed_task_ids.append(task_id)

    def get_layer_by_name(self, layer_name: str | None) -> Any:
        """The module of this name; None for None, and where there is none.

        Args:
            layer_name: with "/" for "."; where it names a layer from outside of this module
                (``conv2x/0/conv1`` in the block ``conv2x/0``), its longest ending that is here.
        """
        if layer_name is None:
            return None
        parts = layer_name.split("/")
        for start in range(len(parts)):
            try:
                return self.get_submodule(".".join(parts[start:]))
            except AttributeError:
                continue
        return None

    get_layer = get_layer_by_name

    def weighted_layer(self, layer_name: str) -> Any:
        """The module of one of ``weighted_layer_names``.

        Raises:
            ValueError: there is none of this name.
        """
        layer = self.get_layer_by_name(layer_name)
        if layer is None:
            raise ValueError(f"{type(self).__name__} has no layer {layer_name!r}")
        return layer

    def preceding_layer_name(self, layer_name: str | None) -> str | None:
        """The weighted layer before; None for the first, and for None.

        Raises:
            ValueError: there is no weighted layer of this name.
        """
        return None if layer_name is None else self._neighbour(layer_name, -1)

    def next_layer_name(self, layer_name: str) -> str | None:
        """The weighted layer behind; None for the last.

        Raises:
            ValueError: there is no weighted layer of this name.
        """
        return self._neighbour(layer_name, 1)

    def _neighbour(self, layer_name: str, step: int) -> str | None:
        names = self.weighted_layer_names
        if layer_name not in names:
            raise ValueError(
                f"layer {layer_name!r} is not among the weighted layers, {', '.join(names)}"
            )
        place = names.index(layer_name) + step
        return names[place] if 0 <= place < len(names) else None

    def forward(self, input: Tensor, stage: str) -> Any:
        """(features [N, output_dim], by layer what it hands on); a subclass says how.

        Args:
            input: [N, ..].
            stage: "train", "validation" or "test".
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward, wanted one of its own")


class CLBackbone(Backbone, metaclass=ABCMeta):
    """A backbone of continual learning; what it can do, Backbone can.

    ``MLP`` and ``ResNet..`` are registered with it rather than derived from it: they are its
    instances, as in version 1.0, and ``(CLBackbone, MLP)`` can be bases, as in 1.1.
    """

    def forward(self, input: Tensor, stage: str, task_id: int | None = None) -> Any:
        """As Backbone's; a subclass, or the next class of a multiple inheritance, says how.

        Args:
            input: [N, ..].
            stage: "train", "validation" or "test".
            task_id: that the input is of, for backbones that ask.
        """
        return super().forward(input, stage)
