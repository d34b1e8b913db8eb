"""What a quadratic penalty takes of a network at every step, looked up once."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from maskcl.shard_sums import total
from maskcl.shards import cut, is_sharded

if TYPE_CHECKING:
    from maskcl.nn import ImportanceNetwork

_TRAINED = attrgetter("requires_grad")
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
        self._parameters: list[Any] = []
        self._trained: list[bool] = []
        self._lists: Lists = [], [], []
        self.are_sharded = False

    def get(self) -> Lists:
        """As ``ImportanceNetwork.anchored`` gives them now; anchors and importances of own rows."""
        if not self._is_known():
            self._net.take_shards()
            self._places = []  # until all is known: what raises is asked for again
            places = self._net.places(self._names)
            self._parameters = [t for _, _, t in places if isinstance(t, nn.Parameter)]
            self._trained = [*map(_TRAINED, self._parameters)]
            self._lists = self._net.anchored(self._names)
            self.are_sharded = any(map(is_sharded, self._lists[0]))
            if self.are_sharded:
                parameters, *others = self._lists
                anchors, importances = ([*map(cut, kind, parameters)] for kind in others)
                self._lists = parameters, anchors, importances
            self._places = places
        return self._lists

    def sum_of(self, penalty: Tensor) -> Tensor:
        """The penalty of all rows; where parameters are sharded, of all processes' together."""
        return total(penalty, self._lists[0]) if self.are_sharded else penalty

    def _is_known(self) -> bool:
        # A plain loop, in every step: it takes less than maps.
        try:
            for holder, name, tensor in self._places:
                if holder[name] is not tensor:
                    return False
        except KeyError:
            return False
        return bool(self._places) and [*map(_TRAINED, self._parameters)] == self._trained
