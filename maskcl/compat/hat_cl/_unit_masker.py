"""What payloads, and maskers of one another, ask of a masker, as a type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from maskcl.compat.hat_cl.layout import Layout
from maskcl.compat.hat_cl.types_ import Mask


class UnitMasker(Protocol):
    """The masks of all tasks of one layer's units; `HATMasker` is the one there is.

    Attributes:
        mask_dim: dimension of the data that the mask lies along; None: where the units are.
        attention: by task, [U].
    """

    mask_dim: int | None
    attention: nn.ParameterList

    @property
    def num_features(self) -> int:
        """U, how many units it masks."""

    @property
    def num_tasks(self) -> int:
        """How many tasks it has masks for."""

    @property
    def trained_task_ids(self) -> list[int]:
        """Tasks that have trained."""

    def locked_tasks(
        self, task_id: int | None, locked_task_ids: Sequence[int] | None = None
    ) -> tuple[int, ...]:
        """Tasks that must not change while ``task_id`` trains, in order."""

    def get_mask(self, task_id: int | None, mask_scale: Any = None) -> Mask:
        """A task's mask, [U]; ones for no task, bool where there is no scale."""

    def get_binary_mask(self, task_id: int) -> Mask:
        """Units that a task uses, bool [U]."""

    def working_mask(self, task_id: int | None, mask_scale: Any) -> Tensor | None:
        """What multiplies a payload's data, floating [U]; None for no task."""

    def mask_dimension(self, data: Tensor, layout: Layout | None) -> int:
        """The dimension of ``data`` that the mask lies along.

        Raises:
            MaskDimensionMismatchError: none has the mask's size.
        """

    def reshape_mask(
        self, data: Tensor, mask: Tensor, mask_dim: int | None = None, expand_as_data: bool = True
    ) -> Tensor:
        """The mask with the data's number of dimensions, or expanded to their shape.

        Raises:
            MaskDimensionMismatchError: the dimension has another size.
        """

    def words(self, tasks: tuple[int, ...]) -> Tensor:
        """Which of ``tasks`` use each unit, int64 [U, W]."""

    def free_units(self, locked: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """1 for each unit that no locked task uses, [U] floating, and their number, 0-d."""
