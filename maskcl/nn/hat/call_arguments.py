"""Whether a network is called with what its model was followed with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from maskcl.nn.following.arguments import by_name
from maskcl.nn.hat.topology import Topology
from maskcl.nn.tasks.errors import ConversionError


def arguments_like(
    topology: Topology, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, ...] | dict[str, Any]:
    """A call's arguments, by name and in the examples' order where either is given by name.

    Raises:
        ValueError: they are others than the examples.
    """
    names = topology.arguments or ()
    if not kwargs and not topology.by_name:
        if len(args) == len(names):
            return args
        found = f"{len(args)} arguments, and the model was followed with {len(names)}"
    else:
        named = by_name(model, args, kwargs)
        if set(named) == set(names):
            return {name: named[name] for name in names}
        found = (
            f"the arguments are {', '.join(named) or 'none'}, and the model was followed with"
            f" {', '.join(names)}"
        )
    raise ValueError(
        f"HATNetwork: {found}: convert it with example_inputs for all that it will be given"
    )


def check_sizes(topology: Topology, sizes: tuple[Any, ...], follow: Callable[[], Topology]) -> None:
    """Note that a model that branches on sizes has the same topology at new ones.

    Args:
        topology: of the sizes that it was followed with.
        sizes: others.
        follow: gives the topology at these.

    Raises:
        ValueError: it has another there, or cannot be followed.
    """
    problem = "they reach other places"
    if torch.compiler.is_compiling():
        problem = "they were not followed before it was compiled (call it once without)"
    else:
        try:
            if follow().is_like(topology):
                topology.like.add(sizes)
                return
        except ConversionError as error:
            problem = f"it cannot be followed ({error})"
    raise ValueError(
        f"HATNetwork: inputs have sizes {sizes} behind the first dimension, and the model branches"
        f" on sizes, so that its units were followed for {topology.sizes}; at these {problem}:"
        " convert it with example_inputs of the size that it will see"
    )
