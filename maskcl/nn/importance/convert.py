"""From an ordinary model to one that records what matters to the tasks it has learned."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

from torch import nn

from maskcl.nn.following.norm_conversion import task_norm
from maskcl.nn.importance.network import ImportanceNetwork, shared_norms
from maskcl.nn.tasks.errors import ConversionError, ConversionWarning
from maskcl.nn.tasks.graph_checks import refuse_cached
from maskcl.nn.tasks.heads import GrowingHead, TaskHeads, find_output, head_like
from maskcl.nn.tasks.replace_modules import replace_modules
from maskcl.nn.tasks.unconverted import check_unconverted

NORMS = ("task", "frozen", "shared")


def to_importance(
    model: nn.Module,
    num_tasks: int,
    *,
    classes: Sequence[int] | None = None,
    head: str | None = None,
    growing: bool = False,
    norms: str | None = None,
) -> ImportanceNetwork:
    """Convert an ordinary model; it is copied and stays as it is.

    All of its modules stay what they are but the output layer, where ``classes`` replaces it, and
    norms with running statistics. The same call gives the same network, so that a ``state_dict``
    fits in another process.

    Args:
        model: any module; no tracing and no example inputs are needed.
        num_tasks: T.
        classes: for each task the outputs of its own new head in the place of ``head``; with
            ``growing``, the number of classes seen by its end (``scenario.classes_per_task`` is
            both). None: the model keeps its output layer, which all tasks share.
        head: name of the output layer, an nn.Linear if ``classes`` replaces it; None for the
            model's last nn.Linear.
        growing: one new output layer for all tasks, which gains classes (class-incremental).
        norms: what becomes of norms with running statistics (BatchNorm), which no penalty holds:
            ``task``: one a task, each a copy. ``frozen``: the statistics are the first finished
            task's from then on, in training too. ``shared``: every task moves them, and earlier
            ones are forgotten through them; a warning says so. None: ``task`` where each task has a
            head of its own, else ``frozen``.

    Raises:
        ConversionError: the model has no such layer, or parameters that this cannot work with.
        ValueError: an argument is not as above.
    """
    check_unconverted("to_importance", model)
    _check_arguments(model, num_tasks, classes, growing)
    own_heads = classes is not None and not growing
    norms = norms or ("task" if own_heads else "frozen")
    if norms not in NORMS:
        raise ValueError(f"to_importance: norms is {norms!r}, wanted one of {', '.join(NORMS)}")
    holder = nn.ModuleList([copy.deepcopy(model)])
    last = None if classes is None else find_output("to_importance", holder[0], head)
    new = None
    if classes is not None and last is not None:
        new = head_like(GrowingHead if growing else TaskHeads, last, classes)

    shared = shared_norms(holder[0]) if norms == "task" else set()

    def change(module: nn.Module) -> nn.Module | None:
        if module is last:
            return new
        return task_norm(module, num_tasks) if module in shared else None

    replace_modules(holder, change)
    name, is_held = head if last is None else None, norms != "shared"
    net = ImportanceNetwork(holder[0], num_tasks, head=name, freeze_statistics=is_held)
    _warn_of_shared(net)
    return net


def _warn_of_shared(net: ImportanceNetwork) -> None:
    """Warn of statistics that every task moves."""
    if net.freeze_statistics:
        return
    found = shared_norms(net.model)
    shared = [name for name, module in net.model.named_modules() if module in found]
    if shared:
        warnings.warn(
            f"to_importance: {', '.join(map(repr, shared[:3]))}{' and more' if shared[3:] else ''}"
            " keep running statistics that every task moves and no penalty holds: earlier tasks are"
            ' forgotten through them; norms="task" or "frozen" keeps them',
            ConversionWarning,
            stacklevel=3,
        )


def _check_arguments(
    model: nn.Module, num_tasks: int, classes: Sequence[int] | None, growing: bool
) -> None:
    if not isinstance(num_tasks, int) or num_tasks < 1:
        raise ValueError(f"to_importance: num_tasks is {num_tasks!r}, wanted at least 1")
    if classes is not None and len(classes) != num_tasks:
        raise ValueError(
            f"to_importance: classes has {len(classes)} entries, wanted {num_tasks}, one a task"
        )
    if growing and classes is None:
        raise ValueError("to_importance: growing is True, wanted classes with it")
    refuse_cached("to_importance", model)
    for name, module in model.named_modules():
        where = f"to_importance: module {name!r} ({type(module).__name__})"
        if getattr(module, "sparse", False) is True:
            raise ConversionError(
                f"{where} has sparse=True, and the penalty's gradient is dense: set it to False"
            )
