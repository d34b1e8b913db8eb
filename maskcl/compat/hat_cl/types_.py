"""Configuration of HAT modules, and what forgetting a task returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from maskcl.compat.hat_cl.constants import (
    DEF_HAT_ATTN_CLAMP,
    DEF_HAT_GRAD_COMP_CLAMP,
    DEF_HAT_INIT_STRAT,
    DEF_HAT_MAX_TRN_MASK_SCALE,
)

Mask = Tensor
"""A vector, one element a unit: floating for a soft mask, bool for a binary one."""


class HATConfig(Mapping[str, Any]):
    """Configuration of HAT modules; unpacks as keyword arguments.

    Args:
        num_tasks: how many tasks there will be.
        mask_dim: dimension of the data that the mask lies along. None: where the layer's units
            are, and for data that come from no HAT layer the one dimension of that size.
        init_strat: how attentions start: ``normal``, ``dense`` (all 1) or ``sparse`` (each unit
            open for a task with probability 1 / num_tasks: units of one task are likeliest then).
        max_trn_mask_scale: largest scale in training, s_max.
        attn_clamp: attentions stay within +- this after each step.
        grad_comp_clamp: bound on |scale * attention| in the compensation (HAT, section 2.5).
        grad_comp_factor: s_max of the compensation; None: ``max_trn_mask_scale``.
        gate: from scaled attention to mask.

    Raises:
        ValueError: num_tasks is below 1, or a number not above 0.
    """

    def __init__(
        self,
        num_tasks: int,
        mask_dim: int | None = None,
        init_strat: str = DEF_HAT_INIT_STRAT,
        max_trn_mask_scale: float = DEF_HAT_MAX_TRN_MASK_SCALE,
        attn_clamp: float = DEF_HAT_ATTN_CLAMP,
        grad_comp_clamp: float = DEF_HAT_GRAD_COMP_CLAMP,
        grad_comp_factor: float | None = None,
        gate: Callable[[Tensor], Tensor] = torch.sigmoid,
        **kwargs: Any,
    ) -> None:
        if num_tasks < 1:
            raise ValueError(f"HATConfig: num_tasks is {num_tasks}, wanted at least 1")
        factor = max_trn_mask_scale if grad_comp_factor is None else grad_comp_factor
        for name, value in (
            ("max_trn_mask_scale", max_trn_mask_scale),
            ("attn_clamp", attn_clamp),
            ("grad_comp_clamp", grad_comp_clamp),
            ("grad_comp_factor", factor),
        ):
            if not value > 0:
                raise ValueError(f"HATConfig: {name} is {value}, wanted a number above 0")
        self.num_tasks = num_tasks
        self.mask_dim = mask_dim
        self.max_trn_mask_scale = max_trn_mask_scale
        self.init_strat = init_strat
        self.attn_clamp = attn_clamp
        self.grad_comp_clamp = grad_comp_clamp
        self.grad_comp_factor = factor
        self.gate = gate
        if kwargs:
            # Conversion hands every keyword of every module on.
            warnings.warn(f"HATConfig: no option is called {', '.join(kwargs)}", stacklevel=2)

    def __len__(self) -> int:
        return len(self.__dict__)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __getitem__(self, item: str) -> Any:
        return self.__dict__[item]

    def __repr__(self) -> str:
        return f"HATConfig({', '.join(f'{name}={value}' for name, value in self.items())})"

    __str__ = __repr__


class ForgetResult(dict[str, Tensor]):
    """Which elements of which parameters were forgotten: name -> bool tensor, True for forgotten.

    Args:
        kwargs: names and tensors.

    Raises:
        TypeError: a value is not a bool tensor.
    """

    def __init__(self, **kwargs: Tensor) -> None:
        super().__init__()
        for name, value in kwargs.items():
            if not (isinstance(value, Tensor) and value.dtype == torch.bool):
                raise TypeError(f"ForgetResult: {name} is {value!r}, wanted a bool tensor")
            self[name] = value

    def get_num_forgotten(self, keyword: str) -> tuple[int, int]:
        """Elements forgotten and elements in all, of every name that has ``keyword`` as a part.

        Args:
            keyword: a name, or one part of names, such as ``weight`` or ``layer1``.

        Raises:
            KeyError: no name has it.
        """
        if keyword in self:
            found = [self[keyword]]
        else:
            found = [value for name, value in self.items() if keyword in name.split(".")]
        if not found:
            raise KeyError(f"ForgetResult: no name has {keyword!r} as a part")
        return sum(int(value.sum()) for value in found), sum(value.numel() for value in found)

    def __add__(self, other: Mapping[str, Tensor]) -> ForgetResult:
        result = ForgetResult(**self)
        for name, value in other.items():
            result[name] = result[name] | value if name in result else value
        return result

    def __repr__(self) -> str:
        lines = [f"  {k}: {int(v.sum())}/{v.numel()}\n" for k, v in sorted(self.items())]
        return f"ForgetResult(\n{''.join(lines)})"
