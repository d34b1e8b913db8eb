"""An optimizer's step as one op of all its parameters: what is protected is not even read.

``torch.optim``'s own step knows nothing of protection, so that a copy has to be kept and put back.
SGD, Adam and AdamW can step through the op ``update`` instead, on the same ``param_groups`` and the
same ``state``: schedulers, scalers and state_dicts see the optimizer that they know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from maskcl import backends
from maskcl.optim.protected_elements import ProtectedElements
from maskcl.optim.update_calls import Calls, Scaling, adam_update, rows, sgd_update

Group = dict[str, Any]


class StepsFused:
    """Base of optimizers that were made for a `FusedStep`."""


def not_fused_reasons(optimizer: Optimizer) -> list[str]:
    """Why an optimizer keeps its own step; empty where `FusedStep` can take its place."""
    if type(optimizer) not in (SGD, Adam, AdamW) and not isinstance(optimizer, StepsFused):
        return [f"it is a {type(optimizer).__name__}, not torch.optim's SGD, Adam or AdamW"]
    found = [reason for group in optimizer.param_groups for reason in _unknown(group)]
    return list(dict.fromkeys(found))


def _unknown(group: Group) -> Iterator[str]:
    """What of a group the op does not do, in words."""
    for name in ("amsgrad", "differentiable"):
        if group.get(name):
            yield f"{name} is set"
    options = (group.get("weight_decay"), group.get("momentum"), *group.get("betas", ()))
    if any(isinstance(value, Tensor) for value in options):
        yield "an option other than lr is a tensor"
    parameters = group["params"]
    if not all(p.is_floating_point() for p in parameters):
        yield "parameters are not floating"
    if any(hasattr(p, "placements") for p in parameters):
        yield "parameters are sharded"


class FusedStep:
    """Stands in for one optimizer's ``step`` until ``remove``.

    Attributes:
        is_active: until ``remove``.

    Args:
        optimizer: one without `not_fused_reasons`.
        elements: what may not move, and within which bounds parameters stay.
        max_norm: of the gradients of all elements that may move, or None; where they have a larger
            one, they are scaled as by ``torch.nn.utils.clip_grad_norm_``.
        state_dtype: of the moments of parameters of half precision; None for the parameter's.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        elements: ProtectedElements,
        max_norm: float | None = None,
        state_dtype: torch.dtype | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._elements = elements
        self._max_norm = max_norm
        self._state_dtype = state_dtype
        self._update = adam_update if isinstance(optimizer, Adam) else sgd_update
        self._calls = Calls()
        self._held: list[int] = []
        self._on_gpu = False
        self.is_active = True
        self._before = vars(optimizer).get("step")
        self._installed = MethodType(self._method(), optimizer)
        optimizer.step = self._installed  # type: ignore[method-assign]

    def _method(self) -> Callable[..., Any]:
        """``step`` as a scheduler wants it, which wraps a method to learn whether it was called."""

        def step(optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
            optimizer._opt_called = True
            if self.is_active:
                return self(closure)
            return (self._before or type(optimizer).step.__get__(optimizer))(closure)

        step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
        return step

    def remove(self) -> None:
        """Give the optimizer the step back that it had; a later `FusedStep` stays in place."""
        self.is_active = False
        if vars(self._optimizer).get("step") is not self._installed:
            return
        if self._before is None:
            vars(self._optimizer).pop("step")
        else:
            self._optimizer.step = self._before  # type: ignore[method-assign]

    def __call__(self, closure: Callable[[], Any] | None = None) -> Any:
        """``Optimizer.step``, hooks included."""
        optimizer: Any = self._optimizer
        self._elements.check(f"{type(optimizer).__name__}.step")
        _call(_global_optimizer_pre_hooks, optimizer, closure)
        _call(optimizer._optimizer_step_pre_hooks, optimizer, closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            self._step()
        _call(optimizer._optimizer_step_post_hooks, optimizer, closure)
        _call(_global_optimizer_post_hooks, optimizer, closure)
        return loss

    def _step(self) -> None:
        optimizer: Any = self._optimizer
        groups = optimizer.param_groups
        held = [id(p) for group in groups for p in group["params"]]
        if held != self._held:  # the first step, or a group was added
            parameters = [p for group in groups for p in group["params"]]
            self._elements.hold(parameters)
            self._held, self._on_gpu = held, any(p.is_cuda for p in parameters)
        if self._on_gpu:  # a graph that holds this step's number would repeat it
            optimizer._cuda_graph_capture_health_check()
        found = [[p for p in group["params"] if p.grad is not None] for group in groups]
        self._check(found)
        scale = getattr(optimizer, "grad_scale", None)
        scaling = Scaling(scale, getattr(optimizer, "found_inf", None))
        if self._max_norm is not None:
            scaling = self._clipped(scaling, [p for some in found for p in some])
        self._update(optimizer, found, self._elements, scaling, self._calls, self._state_dtype)

    def _check(self, found: list[list[nn.Parameter]]) -> None:
        """Raise where a step's options or gradients are not what the op does."""
        optimizer = self._optimizer
        dense = all(p.grad.layout is torch.strided for some in found for p in some)  # type: ignore[union-attr]
        changed = [g for g in optimizer.param_groups if g.get("amsgrad") or g.get("differentiable")]
        if dense and not changed:
            return
        problem = "; ".join(not_fused_reasons(optimizer)) or "a gradient is sparse"
        raise RuntimeError(
            f"{type(optimizer).__name__}.step: {problem}, which the protected step does not do:"
            " change it back, or protect an optimizer that is made so"
        )

    def _clipped(self, scaling: Scaling, parameters: list[nn.Parameter]) -> Scaling:
        if not parameters:
            return scaling
        outs, ins, groups, _ = self._elements.sides(parameters)
        grads = rows([p.grad for p in parameters])
        run = backends.select("unprotected_norm", parameters[0])
        norm = run(grads, outs, ins, groups, self._elements.exact, scaling.scale)
        return Scaling(scaling.scale, scaling.found_inf, norm, self._max_norm or 0.0)


def _call(hooks: dict[int, Callable[..., Any]], optimizer: Optimizer, closure: Any) -> None:
    """Step hooks as torch calls them."""
    for hook in tuple(hooks.values()):
        hook(optimizer, () if closure is None else (closure,), {})
