"""Norms with statistics and affine of their own for every task, masked behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from maskcl.nn.tasks.activations import check_activation
from maskcl.nn.tasks.state import Masked


class TaskNorm(Masked):
    """One ordinary norm a task, chosen by the active task; then an activation and the mask.

    A norm's affine and statistics are shared by all units of a channel's past, so sharing them
    between tasks would let a later task change an earlier one. Its output is masked again: the
    shift of the affine (and the mean that LayerNorm takes away) reaches units that are closed.

    Attributes:
        norms: the ordinary norms, one a task.
    """

    norms: nn.ModuleList
    _per_task = "norms"
    _start: tuple[nn.Module]

    def _build(
        self, num_tasks: int, make: Callable[[], nn.Module], activation: str, negative_slope: float
    ) -> None:
        name = type(self).__name__
        if num_tasks < 1:
            raise ValueError(f"{name}: num_tasks is {num_tasks}, wanted at least 1")
        check_activation(name, activation)
        nn.Module.__init__(self)
        self.set_norms(num_tasks, make)
        self.activation = activation
        self.negative_slope = negative_slope
        # Counted from the end where the norm allows any number of leading dimensions.
        self.channel_dim = 1

    def set_norms(self, num_tasks: int, make: Callable[[], nn.Module]) -> None:
        """Give each task a norm that ``make`` makes, and tasks that come later one like it."""
        self.norms = nn.ModuleList(make() for _ in range(num_tasks))
        self._start = (make(),)  # in a tuple, so that it is no part of the model

    def add_tasks(self, count: int) -> None:
        """A norm for each of ``count`` more tasks, as the first tasks' were when they were made."""
        like = next(iter(self.norms[0].state_dict().values()), None)
        for _ in range(count):
            new = copy.deepcopy(self._start[0])
            if like is not None:
                new.to(like.device, like.dtype if like.is_floating_point() else None)
            self.norms.append(new.train(self.training))

    @property
    def num_tasks(self) -> int:
        """How many tasks it has norms for."""
        return len(self.norms)

    def unmasked(self, input: Tensor) -> Tensor:
        """norm of the active task(x)."""
        return self._own()(input)

    def forward(self, input: Tensor) -> Tensor:
        """act(norm of the active task(x)) * mask, x's shape."""
        return self._finish(self._own()(input), self.channel_dim)

    def of(self, task: int) -> nn.Module:
        """A task's norm."""
        return self.own_module(task)


class _TaskBatchNorm(TaskNorm):
    _plain: type[nn.Module]

    def __init__(
        self,
        num_features: int,
        num_tasks: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        activation: str = "identity",
        negative_slope: float = 0.01,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        def make() -> nn.Module:
            options = {"device": device, "dtype": dtype}
            return self._plain(num_features, eps, momentum, affine, track_running_stats, **options)

        self._build(num_tasks, make, activation, negative_slope)


class TaskBatchNorm1d(_TaskBatchNorm):
    """A ``nn.BatchNorm1d`` a task: [N, C] or [N, C, L].

    Args:
        num_features: C. num_tasks: how many norms. The rest as for ``nn.BatchNorm1d``.
        activation, negative_slope: as for HATLinear, before the mask.
    """

    _plain = nn.BatchNorm1d


class TaskBatchNorm2d(_TaskBatchNorm):
    """A ``nn.BatchNorm2d`` a task: [N, C, H, W]; arguments as for TaskBatchNorm1d."""

    _plain = nn.BatchNorm2d


class TaskBatchNorm3d(_TaskBatchNorm):
    """A ``nn.BatchNorm3d`` a task: [N, C, D, H, W]; arguments as for TaskBatchNorm1d."""

    _plain = nn.BatchNorm3d


class TaskLayerNorm(TaskNorm):
    """A ``nn.LayerNorm`` a task.

    It mixes channels, so its input has to be masked: a closed unit then adds an exact 0 to the
    sums whatever later tasks make of its weights.

    Args:
        normalized_shape: the trailing dimensions it normalises over.
        num_tasks: how many norms.
        eps, elementwise_affine, bias, device, dtype: as for ``nn.LayerNorm``.
        activation, negative_slope: as for HATLinear, before the mask.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        num_tasks: int,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        activation: str = "identity",
        negative_slope: float = 0.01,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)

        def make() -> nn.Module:
            return nn.LayerNorm(shape, eps, elementwise_affine, bias, device=device, dtype=dtype)

        self._build(num_tasks, make, activation, negative_slope)
        self.channel_dim = -1


class TaskRMSNorm(TaskLayerNorm):
    """An ``nn.RMSNorm`` a task. It mixes channels: see TaskLayerNorm.

    Args:
        normalized_shape: the trailing dimensions it normalises over.
        num_tasks: how many norms.
        eps, elementwise_affine, device, dtype: as for ``nn.RMSNorm``.
        activation, negative_slope: as for HATLinear, before the mask.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        num_tasks: int,
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        activation: str = "identity",
        negative_slope: float = 0.01,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        shape = [normalized_shape] if isinstance(normalized_shape, int) else list(normalized_shape)

        def make() -> nn.Module:
            return nn.RMSNorm(shape, eps, elementwise_affine, device=device, dtype=dtype)

        self._build(num_tasks, make, activation, negative_slope)
        self.channel_dim = -1


class TaskGroupNorm(TaskNorm):
    """A ``nn.GroupNorm`` a task: [N, C, *]. It mixes the channels of a group: see TaskLayerNorm.

    Args:
        num_groups, num_channels: as for ``nn.GroupNorm``.
        num_tasks: how many norms.
        eps, affine, device, dtype: as for ``nn.GroupNorm``.
        activation, negative_slope: as for HATLinear, before the mask.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        num_tasks: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        activation: str = "identity",
        negative_slope: float = 0.01,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        def make() -> nn.Module:
            return nn.GroupNorm(num_groups, num_channels, eps, affine, device=device, dtype=dtype)

        self._build(num_tasks, make, activation, negative_slope)


TASK_BATCH_NORMS = (TaskBatchNorm1d, TaskBatchNorm2d, TaskBatchNorm3d)
