"""What a quadratic penalty takes of a network at every step, looked up once."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, is_
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
        self._holders: list[dict[str, Any]] = []
        self._keys: list[str] = []
        self._tensors: list[Any] = []
        self._parameters: list[Any] = []
        self._trained: list[bool] = []
        self._lists: Lists = [], [], []
        self.are_sharded = False

    def get(self) -> Lists:
        """As ``ImportanceNetwork.anchored`` gives them now; anchors and importances of own rows."""
        if not self._is_known():
            self._net.take_shards()
            places = self._net.places(self._names)
            self._holders, self._keys, self._tensors = map(list, zip(*places, strict=True))
            self._parameters = [t for t in self._tensors if isinstance(t, nn.Parameter)]
            self._trained = [*map(_TRAINED, self._parameters)]
            self._lists = self._net.anchored(self._names)
            self.are_sharded = any(map(is_sharded, self._lists[0]))
            if self.are_sharded:
                parameters, *others = self._lists
                anchors, importances = ([*map(cut, kind, parameters)] for kind in others)
                self._lists = parameters, anchors, importances
        return self._lists

    def sum_of(self, penalty: Tensor) -> Tensor:
        """The penalty of all rows; where parameters are sharded, of all processes' together."""
        return total(penalty, self._lists[0]) if self.are_sharded else penalty

    def _is_known(self) -> bool:
        # In every step: no line of Python runs for a parameter.
        held = map(dict.get, self._holders, self._keys)
        if not (self._holders and all(map(is_, held, self._tensors))):
            return False
        return [*map(_TRAINED, self._parameters)] == self._trained
