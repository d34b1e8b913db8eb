"""Reading samples one by one into a batch, with chance that is the batch's own."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor
from torch.utils.data import default_collate

from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.items import ItemError

_DRAWS = np.random.MT19937(0)


def read(dataset: Any, rows: Sequence[int], seed: int | None) -> Any:
    """The samples at ``rows`` as one batch.

    Args:
        dataset: map-style.
        rows: at least one.
        seed: of what ``dataset[i]`` draws from torch's, numpy's and Python's generators, which are
            after it as before; None leaves them alone.

    Raises:
        ItemError: a sample cannot be read, or is not like the others; the error of the dataset is
            its cause.
    """
    with contextlib.nullcontext() if seed is None else _drawing_from(seed):
        items = [_item(dataset, index) for index in rows]
    try:
        return default_collate(items)
    except Exception as error:
        raise ItemError(_unlike(type(dataset).__name__, rows, items, error)) from error


@contextlib.contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Inside, the process's CPU generators start from a seed; a GPU's is not touched."""
    before = torch.get_rng_state(), mtrand.get_bit_generator(), random.getstate()
    torch.default_generator.manual_seed(seed)
    # Another generator in its place: numpy takes 100 us to read or write the state of one.
    mtrand.set_bit_generator(_DRAWS)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (data sets use the global one)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        mtrand.set_bit_generator(before[1])
        random.setstate(before[2])


def _item(dataset: Any, index: int) -> Any:
    try:
        return dataset[index]
    except ItemError:
        raise
    except ScenarioError as error:  # a sentence of our own
        raise ItemError(str(error)) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        name = type(dataset).__name__
        raise ItemError(f"{name}: item {index} cannot be read: {reason}") from error


def _unlike(name: str, rows: Sequence[int], items: Sequence[Any], error: Exception) -> str:
    """Which two samples do not go into one batch, or what was wrong if all are alike."""
    first = _form(items[0])
    for index, item in zip(rows, items, strict=True):
        if _form(item) != first:
            return (
                f"{name}: items {rows[0]} and {index} do not go into one batch: {first} and"
                f" {_form(item)}"
            )
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{name}: items of {first} do not go into a batch: {reason}"


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_form, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_form(part)}' for key, part in value.items())}}}"
    return type(value).__name__
