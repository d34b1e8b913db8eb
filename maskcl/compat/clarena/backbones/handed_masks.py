"""Masks that are handed out as dictionaries, and taken back when an item is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TypeVar

from torch import Tensor

Key = TypeVar("Key")
Value = TypeVar("Value")
Masks = dict[str, Tensor]


class HandedMasks(dict[Key, Value]):
    """A dictionary that says what it would be before an item is written or taken away.

    Tensors are copies: to change a mask, assign a tensor, not elements of one.

    Args:
        values: what it begins with.
        write: given the whole dictionary as it is to be; raises where that cannot be.
    """

    def __init__(
        self, values: Mapping[Key, Value], write: Callable[[dict[Key, Value]], None]
    ) -> None:
        super().__init__(values)
        self._write = write

    def __setitem__(self, key: Key, value: Value) -> None:
        self._write({**self, key: value})
        super().__setitem__(key, value)

    def __delitem__(self, key: Key) -> None:
        self._write({k: v for k, v in self.items() if k != key})
        super().__delitem__(key)

    # dict's own would go past the two above.
    pop: Any = MutableMapping.pop
    popitem: Any = MutableMapping.popitem
    clear: Any = MutableMapping.clear
    update: Any = MutableMapping.update
    setdefault: Any = MutableMapping.setdefault

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (dict(self),)


class TaskMasks(HandedMasks[int, Masks]):
    """Task ID -> layer -> mask; takes an ID as a string too, as versions before 1.1 kept it."""

    def __getitem__(self, key: Any) -> Masks:
        return super().__getitem__(task_of(key))

    def __setitem__(self, key: Any, value: Masks) -> None:
        super().__setitem__(task_of(key), value)

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(task_of(key))

    def __contains__(self, key: object) -> bool:
        return super().__contains__(task_of(key))


def task_of(key: Any) -> Any:
    """A task ID that was given as a string, as an int; anything else as it is."""
    return int(key) if isinstance(key, str) and key.isdigit() else key


def check_masks(
    owner: str, masks: Any, spans: Mapping[str, slice], *, largest: float = 1
) -> dict[str, Tensor]:
    """Masks of whole numbers for all layers, as they were given.

    Args:
        owner: what they are assigned to.
        masks: layer -> [units].
        spans: layer -> its units.
        largest: number that is allowed.

    Raises:
        ValueError: a layer is missing or unknown, has other units, or other numbers.
    """
    if not isinstance(masks, Mapping) or set(masks) != set(spans):
        layers = ", ".join(map(str, masks)) if isinstance(masks, Mapping) else type(masks).__name__
        raise ValueError(f"{owner} has {layers or 'no layers'}, wanted masks of {', '.join(spans)}")
    for name, span in spans.items():
        mask, units = masks[name], span.stop - span.start
        if not isinstance(mask, Tensor) or list(mask.shape) != [units]:
            found = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"{owner}[{name!r}] is {found}, wanted [{units}]")
        numbers = mask.detach().float()
        wrong = numbers[(numbers < 0) | (numbers > largest) | (numbers != numbers.round())]
        if len(wrong):
            wanted = "0 or 1" if largest == 1 else "whole numbers from 0"
            raise ValueError(f"{owner}[{name!r}] has {float(wrong[0])}, wanted {wanted}")
    return dict(masks)
