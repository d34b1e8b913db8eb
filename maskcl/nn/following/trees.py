"""Arguments and results of a graph's nodes: tuples, lists, dicts and slices of anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Leaf = TypeVar("Leaf")


def mapped(tree: Any, kind: type[Any], change: Callable[[Any], Any]) -> Any:
    """The tree with ``change(leaf)`` in the place of each leaf of this kind."""
    if isinstance(tree, kind):
        return change(tree)
    if isinstance(tree, torch.Size):
        return tree
    if isinstance(tree, list):
        return [mapped(item, kind, change) for item in tree]
    if isinstance(tree, tuple):
        return tuple(mapped(item, kind, change) for item in tree)
    if isinstance(tree, dict):
        return {key: mapped(item, kind, change) for key, item in tree.items()}
    if isinstance(tree, slice):
        return slice(*mapped((tree.start, tree.stop, tree.step), kind, change))
    return tree


def leaves_of(tree: Any, kind: type[Leaf]) -> Iterator[Leaf]:
    """All leaves of this kind, in the order in which `mapped` comes to them."""
    if isinstance(tree, kind):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from leaves_of(item, kind)
    elif isinstance(tree, dict):
        yield from leaves_of(list(tree.values()), kind)
    elif isinstance(tree, slice):
        yield from leaves_of((tree.start, tree.stop, tree.step), kind)
