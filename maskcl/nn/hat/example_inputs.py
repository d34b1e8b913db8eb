"""Inputs like those that a network was made with, without keeping them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskcl.nn.following.arguments import arguments_of


@dataclass(frozen=True)
class _Like:
    size: tuple[int, ...]
    dtype: torch.dtype
    layout: torch.layout

    def make(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Zeros; a sparse matrix has no entries."""
        dtype = dtype if self.dtype.is_floating_point else self.dtype
        with warnings.catch_warnings():
            # torch calls its CSR layout a beta.
            warnings.filterwarnings("ignore", message=".*Sparse CSR.*")
            return torch.zeros(self.size, dtype=dtype, layout=self.layout, device=device)


class Example:
    """Shapes, dtypes and layouts of a forward's arguments, and the numbers among them.

    Args:
        inputs: a tensor, a tuple of the forward's arguments, or a dict of them; not kept.
    """

    def __init__(self, inputs: Any) -> None:
        self._arguments = _mapped(arguments_of(inputs), _described)

    def make(self, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...] | dict[str, Any]:
        """Arguments of those shapes, all zeros.

        Args:
            device: of the tensors.
            dtype: of those that were floating.

        Raises:
            ValueError: the inputs held something other than tensors and numbers.
        """
        return _mapped(self._arguments, lambda leaf: _made(leaf, device, dtype))


def _described(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return _Like(tuple(leaf.shape), leaf.dtype, leaf.layout)
    plain = leaf is None or isinstance(leaf, (bool, int, float, str))
    return leaf if plain else type(leaf)


def _made(leaf: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(leaf, type):
        raise ValueError(f"the network's example inputs hold a {leaf.__name__}, which is not kept")
    return leaf.make(device, dtype) if isinstance(leaf, _Like) else leaf


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    if type(tree) in (tuple, list):
        return type(tree)(_mapped(item, change) for item in tree)
    if isinstance(tree, dict):
        return {key: _mapped(item, change) for key, item in tree.items()}
    return change(tree)
