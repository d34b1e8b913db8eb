"""From an ordinary model to one that records what matters to the tasks it has learned."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import is_lazy

from maskcl.nn.importance.network import ImportanceNetwork
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.graph_checks import refuse_cached
from maskcl.nn.tasks.heads import GrowingHead, TaskHeads, find_output, head_like
from maskcl.nn.tasks.replace_modules import replace_modules


def to_importance(
    model: nn.Module,
    num_tasks: int,
    *,
    classes: Sequence[int] | None = None,
    head: str | None = None,
    growing: bool = False,
) -> ImportanceNetwork:
    """Convert an ordinary model; it is copied and stays as it is.

    All of its modules stay what they are but the output layer, where ``classes`` replaces it. The
    same call gives the same network, so that a ``state_dict`` fits in another process.

    Args:
        model: any module; no tracing and no example inputs are needed.
        num_tasks: T.
        classes: for each task the outputs of its own new head in the place of ``head``; with
            ``growing``, the number of classes seen by its end (``scenario.classes_per_task`` is
            both). None: the model keeps its output layer, which all tasks share.
        head: name of the output layer, an nn.Linear if ``classes`` replaces it; None for the
            model's last nn.Linear.
        growing: one new output layer for all tasks, which gains classes (class-incremental).

    Raises:
        ConversionError: the model has no such layer, or parameters that this cannot work with.
        ValueError: an argument is not as above.
    """
    _check_arguments(model, num_tasks, classes, growing)
    holder = nn.ModuleList([copy.deepcopy(model)])
    if classes is None:
        return ImportanceNetwork(holder[0], num_tasks, head=head)
    last = find_output("to_importance", holder[0], head)
    new = head_like(GrowingHead if growing else TaskHeads, last, classes)
    replace_modules(holder, lambda module: new if module is last else None)
    return ImportanceNetwork(holder[0], num_tasks)


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
        if any(is_lazy(p) for p in module._parameters.values()):
            raise ConversionError(f"{where} has no shape yet: run the model once")
        if getattr(module, "sparse", False) is True:
            raise ConversionError(
                f"{where} has sparse=True, and the penalty's gradient is dense: set it to False"
            )
