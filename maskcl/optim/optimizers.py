"""SGD, Adam and AdamW that cannot move what finished tasks need."""

from __future__ import annotations

import inspect
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, optim

from maskcl.optim.fusable import StepsFused, not_fused_reasons, seed_of
from maskcl.optim.fused_step import FusedStep
from maskcl.optim.protected_elements import ProtectedElements, protection_of

if TYPE_CHECKING:
    from maskcl.nn import HATNetwork, Protection


_OF_ALL = "protect", "protection", "max_norm", "state_dtype", "rounding", "seed"


class _Protected(StepsFused):
    """What the three have beside torch's arguments."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        protect: HATNetwork | Protection | None = None,
        protection: str = "exact",
        max_norm: float | None = None,
        state_dtype: torch.dtype | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        **options: Any,
    ) -> None:
        name = type(self).__name__
        if inspect.unwrap(type(self).step) is not _Protected.step:
            raise TypeError(
                f"{name}: it has a step of its own, in whose place the protected one would be put:"
                " maskcl.optim.protect(optimizer, net) takes a subclass of torch.optim's"
            )
        found = protection_of(name, protect)
        elements = ProtectedElements(name, found, protection)
        if max_norm is not None:
            is_number = isinstance(max_norm, Real) and not isinstance(max_norm, bool)
            if not is_number or not max_norm > 0:
                kind = ValueError if is_number else TypeError
                raise kind(f"{name}: max_norm is {max_norm!r}, wanted a number above 0 or None")
        if state_dtype not in (None, torch.float32):
            raise ValueError(f"{name}: state_dtype is {state_dtype}, wanted torch.float32 or None")
        rounding_seed = seed_of(name, rounding, seed)
        super().__init__(params, lr, **options)  # type: ignore[call-arg]
        optimizer: Any = self
        if reasons := not_fused_reasons(optimizer):
            raise ValueError(f"{name}: {'; '.join(reasons)}; maskcl.optim.protect takes any other")
        FusedStep(optimizer, elements, max_norm, state_dtype, rounding_seed)

    def step(self, closure: Any = None) -> Any:
        """Of an optimizer whose own was lost; ``__init__`` puts the protected one in its place.

        Raises:
            RuntimeError: this is a copy, which knows nothing of what is protected.
        """
        name = type(self).__name__
        raise RuntimeError(
            f"{name}.step: this optimizer is a copy or came out of a pickle, and has lost what it"
            f" protects: build a maskcl.optim.{name} for the copied parameters, and load this one's"
            " state_dict() into it"
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's, which takes any entry and would leave one of all groups unread.

        Raises:
            ValueError: a group has an option of the whole optimizer.
        """
        if found := [name for name in _OF_ALL if name in param_group]:
            raise ValueError(
                f"{type(self).__name__}: a group has {', '.join(found)}, wanted among the"
                " optimizer's arguments, for all groups"
            )
        super().add_param_group(param_group)  # type: ignore[misc]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, and moments that were float32 stay so."""
        optimizer: Any = self
        super().load_state_dict(state_dict)  # type: ignore[misc]
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        names = (name for group in state_dict["param_groups"] for name in group["params"])
        for parameter, name in zip(parameters, names, strict=True):
            for key, value in state_dict["state"].get(name, {}).items():
                if (
                    isinstance(value, Tensor)
                    and value.dtype != optimizer.state[parameter][key].dtype
                ):
                    optimizer.state[parameter][key] = value.to(parameter.device, copy=True)


class SGD(_Protected, optim.SGD):
    """``torch.optim.SGD`` whose step leaves protected elements and their momentum as they are.

    Groups, state_dict, schedulers and scalers are torch's; what finished tasks need is neither read
    nor written, and nothing is copied to keep it. Build it after ``begin_task``.

    Args:
        params: as for ``torch.optim.SGD``.
        lr: the learning rate, a number or a 0-d tensor.
        protect: a HATNetwork, its ``protection()``, or None to protect nothing.
        protection: "exact", or "min", the paper's.
        max_norm: of the gradients of what may move: ``torch.nn.utils.clip_grad_norm_`` in the step.
        state_dtype: float32 for the momentum of parameters of half precision; None for theirs.
        rounding: of bfloat16 parameters and their momenta: "nearest", torch's, or "stochastic": up
            as often as a number lies that far between two of bfloat16's, so that steps below half
            their distance, which "nearest" loses, are made in the mean. State_dicts go on with it.
        seed: of "stochastic", the same in every process.
        options: of ``torch.optim.SGD``, by name.

    Raises:
        ValueError, TypeError: an option that the step does not do, a group has what is of all, or
            an argument is not as above.
    """


class Adam(_Protected, optim.Adam):
    """``torch.optim.Adam`` whose step leaves protected elements and their moments as they are.

    ``amsgrad`` is refused; all else as for `SGD`.
    """


class AdamW(_Protected, optim.AdamW):
    """``torch.optim.AdamW`` whose step leaves protected elements and their moments as they are.

    ``amsgrad`` is refused; all else as for `SGD`.
    """
