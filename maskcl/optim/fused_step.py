"""An optimizer's step as one op of all its parameters: what is protected is not even read.

``torch.optim``'s own step knows nothing of protection, so that a copy has to be kept and put back.
SGD, Adam and AdamW can step through the op ``update`` instead, on the same ``param_groups`` and the
same ``state``: schedulers, scalers and state_dicts see the optimizer that they know.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from maskcl import backends
from maskcl.grad_mode import untracked
from maskcl.optim.adam_and_sgd import adam_calls, sgd_calls
from maskcl.optim.fusable import NOT_DONE, not_fused_reasons
from maskcl.optim.kept_calls import Calls
from maskcl.optim.protected_elements import ProtectedElements
from maskcl.optim.step_hooks import call_after, call_before, closure_of
from maskcl.optim.update_calls import (
    Call,
    Grads,
    Group,
    Parameters,
    Scaling,
    check_state,
    grads_of,
    parameters_of,
    rows,
)
from maskcl.shard_sums import total_norm
from maskcl.shards import local

_IS_CUDA, _STRIDED = attrgetter("is_cuda"), torch.strided
_UNSCALED = Scaling(None, None)


class FusedStep:
    """Stands in for one optimizer's ``step`` until ``remove``, and for torch's ``zero_grad``.

    What an earlier one does that is still there, this one goes on with: it protects that one's
    parameters that it knows nothing of, clips by the smaller norm, keeps the dtype of state and the
    rounding.

    Attributes:
        is_active: until ``remove``.

    Args:
        optimizer: one without `not_fused_reasons`.
        elements: what may not move, and within which bounds parameters stay.
        max_norm: of the gradients of all elements that may move, or None; where they have a larger
            one, they are scaled as by ``torch.nn.utils.clip_grad_norm_``.
        state_dtype: of the moments of parameters of half precision; None for the parameter's.
        seed: of the random numbers by which bfloat16 is rounded, ``rounding_seed`` of the optimizer
            from here on; None: what that is already, or else rounding to nearest. Which draw is
            next is ``draw`` of the first group, and so in the state_dict.
    """

    _elements: ProtectedElements
    _max_norm: float | None
    _state_dtype: torch.dtype | None

    def __init__(
        self,
        optimizer: Optimizer,
        elements: ProtectedElements,
        max_norm: float | None = None,
        state_dtype: torch.dtype | None = None,
        seed: int | None = None,
    ) -> None:
        self._optimizer = optimizer
        if (under := active_step(optimizer)) is not None:
            elements = elements.beside(under._elements, parameters_of(optimizer))
            norms = [norm for norm in (max_norm, under._max_norm) if norm is not None]
            max_norm, state_dtype = min(norms, default=None), state_dtype or under._state_dtype
        self._elements = elements
        self._max_norm = max_norm
        self._state_dtype = state_dtype
        self._seed_before: int | None = getattr(optimizer, "rounding_seed", None)
        self._seed = self._seed_before if seed is None else seed
        optimizer.rounding_seed = self._seed  # type: ignore[attr-defined]
        make = adam_calls if isinstance(optimizer, Adam) else sgd_calls
        self._calls = Calls(make, elements, state_dtype)
        self.is_active = True
        self._before = vars(optimizer).get("step")
        self._installed = MethodType(self._method(), optimizer)
        optimizer.step = self._installed  # type: ignore[method-assign]
        if type(optimizer).zero_grad is Optimizer.zero_grad and "zero_grad" not in vars(optimizer):
            optimizer.zero_grad = MethodType(_zero_grad, optimizer)  # type: ignore[method-assign]

    def _method(self) -> Callable[..., Any]:
        """``step`` as a scheduler wants it, which wraps a method to learn whether it was called."""

        def step(optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
            optimizer._opt_called = True
            if self.is_active:
                return self(closure)
            return (self._before or type(optimizer).step.__get__(optimizer))(closure)

        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
        step.fused = self  # type: ignore[attr-defined]
        return step

    def remove(self) -> None:
        """Give the optimizer the step back that it had; a later `FusedStep` stays in place."""
        self.is_active = False
        if vars(self._optimizer).get("step") is not self._installed:
            return
        self._optimizer.rounding_seed = self._seed_left()  # type: ignore[attr-defined]
        if self._before is None:
            held = vars(self._optimizer)
            held.pop("step")
            if getattr(held.get("zero_grad"), "__func__", None) is _zero_grad:
                held.pop("zero_grad")
        else:
            self._optimizer.step = self._before  # type: ignore[method-assign]

    def _seed_left(self) -> int | None:
        """Of the step that the optimizer has without this one, which may be removed already."""
        under: FusedStep | None = getattr(self._before, "fused", None)
        if under is None:
            return self._seed_before
        return under._seed if under.is_active else under._seed_left()

    def __call__(self, closure: Callable[[], Any] | None = None) -> Any:
        """``Optimizer.step``, hooks included."""
        optimizer: Any = self._optimizer
        self._elements.check(f"{type(optimizer).__name__}.step")
        given = call_before(optimizer, closure)
        closure = closure_of(given)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        untracked(self._step)
        call_after(optimizer, given)
        return loss

    def _step(self) -> None:
        optimizer: Any = self._optimizer
        parameters = parameters_of(optimizer)
        grads = grads_of(parameters)
        self._check(grads)
        # A graph that holds this step's number would repeat it.
        if torch.cuda.is_initialized() and any(map(_IS_CUDA, parameters)):
            optimizer._cuda_graph_capture_health_check()
        scale = getattr(optimizer, "grad_scale", None)
        found_inf = getattr(optimizer, "found_inf", None)
        is_scaled = scale is not None or found_inf is not None
        scaling = Scaling(scale, found_inf) if is_scaled else _UNSCALED
        if self._seed is not None and parameters:
            scaling = scaling._replace(draw=self._draw(parameters), seed=self._seed)
        calls = self._calls.of(optimizer, parameters, grads, found_inf)
        if self._max_norm is not None and calls:
            scaling = self._clipped(scaling, calls)
        try:
            for call in calls:
                call(grads, scaling)
        except RuntimeError:
            for call in calls:  # kept ones, whose tensors may have been converted in place
                check_state(call)
            raise

    def _check(self, grads: Grads) -> None:
        """Raise where a step's options or gradients are not what the op does."""
        is_done = True
        # Plain loops, in every step: maps and generators take longer.
        for group in self._optimizer.param_groups:
            for name in NOT_DONE:
                is_done &= not group.get(name)
        for grad in grads:
            is_done &= grad is None or grad.layout is _STRIDED
        if is_done:
            return
        problem = "; ".join(not_fused_reasons(self._optimizer)) or "a gradient is sparse"
        raise RuntimeError(
            f"{type(self._optimizer).__name__}.step: {problem}, which the protected step does not"
            " do: change it back, or protect an optimizer that is made so"
        )

    def _clipped(self, scaling: Scaling, calls: list[Call]) -> Scaling:
        kinds: dict[Any, list[Call]] = {}
        for call in calls:
            kinds.setdefault(call.sharding, []).append(call)
        norms = [(self._norm(some, scaling), some[0].parameters[0]) for some in kinds.values()]
        norm = norms[0][0] if kinds.keys() == {None} else total_norm(norms)
        return scaling._replace(norm=norm, max_norm=self._max_norm or 0.0)

    def _draw(self, parameters: Parameters) -> Tensor:
        """The number of this step's draw, counted in place, so that a CUDA graph counts on."""
        group: Group = self._optimizer.param_groups[0]
        device = parameters[0].device if group.get("capturable") else torch.device("cpu")
        draw = group.get("draw", 0.0)
        if not isinstance(draw, Tensor) or draw.device != device:  # a file's is on the CPU
            draw = group["draw"] = torch.as_tensor(draw, dtype=torch.float64, device=device)
        counted: Tensor = draw.add_(1)
        return counted

    def _norm(self, calls: list[Call], scaling: Scaling) -> Tensor:
        parameters = [p for call in calls for p in call.parameters]
        sides = ([entry for call in calls for entry in call.sides[at]] for at in range(3))
        grads = rows([local(p.grad) for p in parameters])  # type: ignore[arg-type]
        run = backends.select("unprotected_norm", grads[0])
        norm: Tensor = run(grads, *sides, self._elements.exact, scaling.scale)
        return norm


def active_step(optimizer: Any) -> FusedStep | None:
    """The one that the optimizer steps by now."""
    found: FusedStep | None = getattr(vars(optimizer).get("step"), "fused", None)
    while found is not None and not found.is_active:
        found = getattr(found._before, "fused", None)
    return found


def _zero_grad(optimizer: Optimizer, set_to_none: bool = True) -> None:
    """Without torch's record for its profiler, which takes a tenth of a small network's step."""
    if not set_to_none:
        return Optimizer.zero_grad(optimizer, set_to_none)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    return None
