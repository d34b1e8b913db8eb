"""What a quadratic penalty takes of a network at every step, looked up once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from maskcl.nn import ImportanceNetwork

Lists = tuple[list[nn.Parameter], list[Tensor], list[Tensor]]


class AnchoredLists:
    """Parameters, anchors and importances, for as long as the network holds the same tensors.

    Args:
        net: the network.
        names: of the parameters.
    """

    def __init__(self, net: ImportanceNetwork, names: Sequence[str]) -> None:
        self._net = net
        self._names = names
        self._places: list[tuple[dict[str, Any], str, Any]] = []
        self._trained: list[bool] = []
        self._parameters: list[nn.Parameter] = []
        self._lists: Lists = [], [], []

    def get(self) -> Lists:
        """As ``ImportanceNetwork.anchored`` gives them now."""
        if not self._is_known():
            self._places = self._net.places(self._names)
            self._parameters = [t for _, _, t in self._places if isinstance(t, nn.Parameter)]
            self._trained = [p.requires_grad for p in self._parameters]
            self._lists = self._net.anchored(self._names)
        return self._lists

    def _is_known(self) -> bool:
        if not self._places:
            return False
        for holder, name, tensor in self._places:
            if holder.get(name) is not tensor:
                return False
        return [p.requires_grad for p in self._parameters] == self._trained
