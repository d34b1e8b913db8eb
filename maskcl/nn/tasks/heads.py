"""Output layers: one a task, or one that gains classes from task to task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.own_parts import shared_modules
from maskcl.nn.tasks.replace_modules import with_hooks
from maskcl.nn.tasks.state import TaskAware


class TaskHeads(TaskAware):
    """An ordinary ``nn.Linear`` a task; the active task's is applied, and none is ever masked.

    Args:
        in_features: of all heads.
        classes: outputs of each task's head.
        bias, device, dtype: as for ``nn.Linear``.

    Shape: [.., in_features] -> [.., classes[task]].

    Raises:
        ValueError: no classes, or a task with none.
        RuntimeError: (forward) it belongs to no network, or no task is active.
    """

    _per_task = "heads"

    def __init__(
        self,
        in_features: int,
        classes: Sequence[int],
        bias: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not classes or any(number < 1 for number in classes):
            raise ValueError(
                f"TaskHeads: classes is {list(classes)}, wanted one number above 0 a task"
            )
        self.in_features = in_features
        self.heads = nn.ModuleList(
            nn.Linear(in_features, number, bias, device=device, dtype=dtype) for number in classes
        )

    @property
    def num_tasks(self) -> int:
        """How many heads there are."""
        return len(self.heads)

    def forward(self, input: Tensor) -> Tensor:
        """Logits of the active task."""
        return self._own()(input)

    def of(self, task: int) -> nn.Module:
        """A task's head."""
        return self.own_module(task)

    def add_tasks(self, classes: Sequence[int]) -> None:
        """A fresh head for each more task, with the last one's bias, device and dtype."""
        for number in classes:
            new = _like(self.heads[-1], number, self.in_features)
            self.heads.append(new.train(self.training))

    def add_classes(self, task: int, count: int) -> None:
        """More outputs for a task; the ones that it has stay as they are."""
        _widen(self.heads[task], count)


class GrowingHead(TaskAware):
    """One ``nn.Linear`` for all tasks, whose active task sees the classes up to its own.

    The outputs of later tasks' classes do not exist for it: none is masked with a large number that
    a norm or a softmax would have to leave out.

    Args:
        in_features: of the layer.
        classes: for each task, the number of classes seen by its end; never falls.
        bias, device, dtype: as for ``nn.Linear``.

    Shape: [.., in_features] -> [.., classes[task]].

    Raises:
        ValueError: classes is not as above.
        RuntimeError: (forward) it belongs to no network, or no task is active.
    """

    _network = "ImportanceNetwork"

    def __init__(
        self,
        in_features: int,
        classes: Sequence[int],
        bias: bool = True,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        counts = list(classes)
        if not counts or counts[0] < 1 or counts != sorted(counts):
            raise ValueError(
                f"GrowingHead: classes is {counts}, wanted for each task the number of classes"
                " seen by its end, from 1 and never falling"
            )
        self.classes = counts
        self.linear = nn.Linear(in_features, counts[-1], bias, device=device, dtype=dtype)

    @property
    def num_tasks(self) -> int:
        """How many tasks it has numbers of classes for."""
        return len(self.classes)

    def forward(self, input: Tensor) -> Tensor:
        """Logits of the classes seen by the end of the active task."""
        count = self._own()
        if torch.is_grad_enabled() or count == self.linear.out_features:
            return self.linear(input)[..., :count]
        # A product of these rows alone has the same bits however many follow later.
        bias = self.linear.bias
        return F.linear(input, self.linear.weight[:count], None if bias is None else bias[:count])

    def of(self, task: int) -> int:
        """Number of the classes that a task sees."""
        return self.classes[task]

    def add_tasks(self, classes: Sequence[int]) -> None:
        """More tasks, by the number of classes seen by the end of each; new rows are fresh."""
        self.classes = [*self.classes, *classes]
        self._widen()

    def add_classes(self, task: int, count: int) -> None:
        """More classes for a task, and so for those after it."""
        self.classes = [n + count * (k >= task) for k, n in enumerate(self.classes)]
        self._widen()

    def _widen(self) -> None:
        if more := self.classes[-1] - self.linear.out_features:
            _widen(self.linear, more)

    def extra_repr(self) -> str:
        """Numbers of classes."""
        return f"classes={self.classes}"


def _like(head: Any, number: int, inputs: int) -> nn.Linear:
    """A fresh linear layer with another one's bias, device and dtype."""
    options: dict[str, Any] = {"device": head.weight.device, "dtype": head.weight.dtype}
    return nn.Linear(inputs, number, head.bias is not None, **options)


def _widen(head: Any, more: int) -> None:
    """Give a linear layer more rows, fresh ones, below those that it has.

    Its parameters stay the same objects: an optimizer that holds them goes on, or raises where it
    has moments of the old shape.
    """
    new = _like(head, head.out_features + more, head.in_features)
    for name, parameter in head.named_parameters(recurse=False):
        rows = new.get_parameter(name).data
        rows[: head.out_features] = parameter.data
        parameter.data, parameter.grad = rows, None
    head.out_features += more


def sees_one_class(net: nn.Module) -> bool:
    """Whether the active task sees one class alone through a GrowingHead: there is no question."""
    heads = [module for _, module in shared_modules(net) if isinstance(module, GrowingHead)]
    return any(head._own() == 1 for head in heads)


def mask_logits(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits with the lowest finite number of their dtype where a class is not allowed.

    Their softmax is exactly 0 there, in float16 and bfloat16 too, and a cross-entropy whose targets
    are allowed is finite, as its gradient is: 0 for what is not allowed. TaskHeads and GrowingHead
    need none of this, as they have no outputs for other classes.

    Args:
        logits: floating [.., C].
        allowed: bool, [C] or of another shape that expands to the logits'; at least one class a
            row.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    if not logits.is_floating_point():
        raise TypeError(f"mask_logits: logits are {logits.dtype}, wanted a floating tensor")
    if allowed.dtype != torch.bool:
        raise TypeError(f"mask_logits: allowed is {allowed.dtype}, wanted bool")
    sizes = zip(reversed(allowed.shape), reversed(logits.shape), strict=False)
    if allowed.dim() > logits.dim() or any(size not in (1, wanted) for size, wanted in sizes):
        raise ValueError(
            f"mask_logits: allowed has shape {list(allowed.shape)}, wanted one that expands to the"
            f" logits' {list(logits.shape)}"
        )
    return torch.where(allowed, logits, torch.finfo(logits.dtype).min)


def find_output(caller: str, model: nn.Module, name: str | None) -> nn.Linear:
    """The ``nn.Linear`` (that very class) of this name, or the model's last.

    Raises:
        ConversionError: there is none.
    """
    linear = {n: m for n, m in model.named_modules() if type(m) is nn.Linear}
    name = name if name is not None else next(reversed(linear), None)
    if name is None or name not in linear:
        found = ", ".join(map(repr, linear)) or "none"
        wanted = "a model with one" if name is None else f"{name!r} among them"
        raise ConversionError(
            f"{caller}: classes puts heads in the place of an nn.Linear, found {found}, wanted"
            f" {wanted}"
        )
    return linear[name]


def head_like(
    kind: type[TaskHeads] | type[GrowingHead], last: nn.Linear, classes: Sequence[int]
) -> TaskHeads | GrowingHead:
    """A head for the place of ``last``: its inputs, bias, device, dtype, mode and hooks."""
    weight: Tensor = last.weight
    options: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    head = kind(last.in_features, classes, last.bias is not None, **options)
    head.train(last.training)
    return with_hooks(head, last)
