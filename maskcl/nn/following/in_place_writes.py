"""Operations that write into a value in place: what autograd and the analysis must know of them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from maskcl.nn.following.operations import (
    ALIAS_MODULES,
    ALIASES,
    KEEP_ZERO,
    operation,
    writes_in_place,
)
from maskcl.nn.following.trace import Trace
from maskcl.nn.tasks.activations import keeps_zero
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.state import TaskAware


def written_modules(trace: Trace) -> set[str]:
    """Names of the task-aware modules whose output is later written in place.

    Raises:
        ConversionError: a value is read again after something was added into it (the graph no
            longer shows what it holds), or a buffer that all tasks share is written.
    """
    found: set[str] = set()
    order = {node: i for i, node in enumerate(trace.graph.nodes)}
    for node in trace.graph.nodes:
        if not writes_in_place(node, trace.called(node)) or not trace.carries_tensor(node):
            continue
        chain = list(_chain(trace, node))
        for target in chain:
            if target.op == "get_attr":
                raise ConversionError(
                    f"{trace.describe(node)} writes into {target.target!r}, which all tasks share"
                )
            if isinstance(trace.called(target), TaskAware):
                found.add(str(target.target))
        if chain and not _keeps_units(trace, node):
            # Neither the value nor a view of it may be read again by its old name.
            for name in _views(trace, chain[-1], node):
                if any(order[user] > order[node] for user in name.users):
                    raise ConversionError(
                        f"{trace.describe(node)} writes into {chain[0].name!r}, which is read again"
                        f" later as {name.name!r}: write it out of place"
                    )
    return found


def _chain(trace: Trace, node: fx.Node) -> Iterator[fx.Node]:
    """What a node writes into, and what that in turn may share memory with, up to its origin."""
    target = node.args[0] if node.args else None
    while isinstance(target, fx.Node):
        yield target
        target = target.args[0] if target.args and _aliases(trace, target) else None


def _views(trace: Trace, origin: fx.Node, written: fx.Node) -> set[fx.Node]:
    """Nodes that may share memory with ``origin``, itself among them, ``written`` and its not."""
    found = {origin}
    todo = [origin]
    while todo:
        for user in todo.pop().users:
            if (
                user not in found
                and user is not written
                and user.args[:1]
                and user.args[0] in found
                and _aliases(trace, user)
            ):
                found.add(user)
                todo.append(user)
    return found


def _keeps_units(trace: Trace, node: fx.Node) -> bool:
    """Whether the written value still is what its own node says: same units, 0 where it was 0."""
    module = trace.called(node)
    return keeps_zero(module) is True if module is not None else operation(node) in KEEP_ZERO


def _aliases(trace: Trace, node: fx.Node) -> bool:
    """Whether a node may return memory of its first argument."""
    module = trace.called(node)
    if isinstance(module, TaskAware):
        return False
    in_place = writes_in_place(node, module)
    return in_place or isinstance(module, ALIAS_MODULES) or operation(node) in ALIASES
