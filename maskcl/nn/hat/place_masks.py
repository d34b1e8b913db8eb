"""Gives the task-aware modules of a model their shared state and their masks' places."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from maskcl.nn.following.trace import trace
from maskcl.nn.hat.find_topology import analyse
from maskcl.nn.hat.topology import Topology, unit_span, weight_layers
from maskcl.nn.hat.topology_by_hand import Sources, analyse_by_hand
from maskcl.nn.tasks.active import ActiveTask, Entering
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.network import check_members
from maskcl.nn.tasks.norms import TaskNorm
from maskcl.nn.tasks.state import Masked, TaskState


def attach(
    model: nn.Module,
    state: TaskState,
    num_tasks: int,
    example_inputs: Any,
    sources: Sources | None,
    task: int = 0,
) -> Topology:
    """Analyse a model and bind its task-aware modules to ``state``, or leave it as it was.

    ``task`` is whose norms and head it is traced with.

    Raises:
        ConversionError: a value cannot be followed; the message names it and the remedy.
        ValueError: a module belongs to another network, or has another number of tasks.
    """
    check_members("HATNetwork", model, num_tasks)
    with unmasked(model, task):
        topology = _analyse(model, example_inputs, sources)
    state.bind(model)
    _place_masks(model, topology)
    return topology


@contextmanager
def unmasked(model: nn.Module, task: int = 0) -> Iterator[None]:
    """Let a model without a network run for its shapes: no masks, with what a task has."""
    state = TaskState()
    state.bind(model)
    active = ActiveTask(state, task)
    active.own = state.kept_own(task)
    try:
        with Entering(model, lambda: active):
            yield
    finally:
        state.release()


def _analyse(model: nn.Module, example_inputs: Any, sources: Sources | None) -> Topology:
    try:
        traced = trace(model, example_inputs)
    except ConversionError:
        if not sources:
            raise
        return analyse_by_hand(model, sources)
    topology = analyse(traced, sources)
    never = sorted(set(weight_layers(model)) - set(topology.feeds))
    if never:
        names = ", ".join(map(repr, never))
        raise ConversionError(
            f"{names}: not called by the forward in evaluation mode; remove it or freeze it"
        )
    return topology


def _place_masks(model: nn.Module, topology: Topology) -> None:
    whole = {(s.start, s.stop): i for i, s in enumerate(topology.units.values())}
    for name, module in model.named_modules():
        if not isinstance(module, Masked):
            continue
        written = name in topology.written
        if name in topology.units:
            span = topology.units[name]
            slots = None if name in topology.moved else (whole[span.start, span.stop],)
            module.set_mask(slots, written=written)
        elif name in topology.masks:
            rows, dim = topology.masks[name]
            spans = [unit_span(row) for row in rows]
            # A mask of whole layers needs no table of units.
            layers = tuple(whole[span] for span in spans if span in whole)
            index = None if len(layers) == len(spans) else rows
            module.set_mask(layers, index, written=written)
            assert isinstance(module, TaskNorm)
            module.channel_dim = dim
        else:
            module.set_mask(None)
