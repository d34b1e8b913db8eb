"""Layers whose weights tasks share and whose output units carry masks."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.hat_cl._base import HATModuleABC
from maskcl.compat.hat_cl._locked_elements import Sides, columns
from maskcl.compat.hat_cl._step_protection import Owner
from maskcl.compat.hat_cl._waiting_product import Product, waits
from maskcl.compat.hat_cl.exceptions import LearningSuppressedWarning, NoParameterToForgetWarning
from maskcl.compat.hat_cl.layout import Layout
from maskcl.compat.hat_cl.modules.maskers import HATMasker
from maskcl.compat.hat_cl.modules.maskers._task_words import any_task
from maskcl.compat.hat_cl.modules.maskers._tensor_cache import TensorCache
from maskcl.compat.hat_cl.payload import HATPayload
from maskcl.compat.hat_cl.types_ import ForgetResult, HATConfig
from maskcl.ops import clamp_grads_


class HATMaskedModuleABC(HATModuleABC, Owner, ABC):
    """Base of layers with ``weight`` [O, I / groups, *] and perhaps ``bias`` [O], and a masker.

    A weight is locked where some one locked task uses both of its ends. Its gradient is then 0 in
    the backward of the very forward that locked it, and no optimizer's step moves it.

    Args:
        num_features: O.
        hat_config: of the masker.
        device, dtype: of the parameters.
        kwargs: of the ordinary layer.
    """

    weight: Tensor
    bias: Tensor | None
    # Dimension of the units, in input and output, counted from the end.
    channel_dim: int

    def __init__(
        self,
        num_features: int,
        hat_config: HATConfig,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs, device=device, dtype=dtype)
        self.masker = HATMasker(num_features, hat_config, device, dtype)
        self._cache = TensorCache(4)

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The ordinary layer's output."""

    def deferred(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Product | None:
        """The product, to be computed when its mask is known; None where it cannot wait."""
        return None

    @property
    def num_tasks(self) -> int:
        """How many tasks it has masks for."""
        return self.masker.num_tasks

    def forward(self, pld: HATPayload) -> HATPayload:
        """The layer's output under its own mask.

        Raises:
            ValueError: there is no such task, or it trains and has no scale.
        """
        masker, task = self.masker, pld.task_id
        masker.check_payload(pld)
        given = pld.arranged
        x, weight, bias = given, self.weight, self.bias
        masker.meet(pld, x.shape, self.channel_dim)
        if task is not None and self.training and torch.is_grad_enabled():
            locked = masker.locked_tasks(task, pld.locked_task_ids)
            self.note(task, locked)
            if locked:
                weight, bias = _Locked.apply(self, locked, weight, bias)
            x = self.arrange(x)
        produced: Any = self.deferred(x, weight, bias) if waits(x, task) else None
        if produced is None:
            produced = self.product(x, weight, bias)
        shape = tuple(produced.shape)
        behind = masker.enter(pld, produced, Layout(len(shape) + self.channel_dim, shape))
        behind.rearranged = pld.rearranged or x is not given
        return behind

    def arrange(self, x: Tensor) -> Tensor:
        """x in the order of memory that training is fastest in."""
        return x

    def sides(self, tasks: tuple[int, ...]) -> list[Sides]:
        """Which of ``tasks`` use each end of the weight and of the bias."""
        out, into = self.masker.words(tasks), self.masker.in_words(tasks)
        tensors = [out] if into is None else [out, into]

        def make() -> list[Sides]:
            _warn_depleted(type(self).__name__, out, into)
            groups = getattr(self, "groups", 1)
            return [Sides(out, into, groups), Sides(out, None)]

        found: list[Sides] = self._cache.get(tasks, tensors, make)
        return found

    def shared_parameters(self, locked: tuple[int, ...]) -> list[tuple[nn.Parameter, Sides]]:
        """Weight and bias, with the tasks among ``locked`` that use them."""
        sides = self.sides(locked)
        rows = zip((self.weight, self.bias), sides, strict=True)
        return [(p, side) for p, side in rows if isinstance(p, nn.Parameter)]

    def forgettable(self, task_id: int, locked: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Weights and biases that the task uses and no locked task does: bool [O, I], bool [O]."""
        out, into = self.masker.words((*locked, task_id)), self.masker.in_words((*locked, task_id))
        groups, columns = getattr(self, "groups", 1), self.weight.shape[1]
        if into is None:
            into = torch.full_like(out[:1], -1).expand(groups * columns, -1)
        rows = out.view(groups, -1, 1, out.shape[-1]) & into.view(groups, 1, columns, -1)
        both = rows.flatten(0, 1)
        ends = [any_task(w, (task_id,)) & ~any_task(w, locked) for w in (both, out)]
        return ends[0], ends[1]

    @torch.no_grad()
    def forget(
        self,
        task_id: int,
        dry_run: bool = False,
        module_name: str | None = None,
        locked_task_ids: list[int] | None = None,
        plan: tuple[Tensor, Tensor] | None = None,
    ) -> ForgetResult:
        """Draw the task's mask anew, and, as the layer was initialised, the weights it alone uses.

        Args:
            task_id: which task.
            dry_run: say what would be reset, and write nothing.
            module_name: in the result's names; None: the class's.
            locked_task_ids: tasks that must not change; None: all trained ones but ``task_id``.
            plan: what `forgettable` said before masks in front of this layer were forgotten.

        Warns:
            NoParameterToForgetWarning: locked tasks use all of them.

        Raises:
            IndexError: the task has not trained.
            HATInitializationError: no forward has shown which masks are in front.
        """
        name = module_name or type(self).__name__
        locked = self.masker.locked_tasks(task_id, locked_task_ids)
        weights, biases = self.forgettable(task_id, locked) if plan is None else plan
        masks = self.masker.forget(task_id, dry_run, f"{name}.masker")
        result = {f"{name}.weight": weights.cpu()}
        if self.bias is not None:
            result[f"{name}.bias"] = biases.cpu()
        if not any(bool(v.any()) for v in result.values()):
            warnings.warn(
                f"{name}: all that task {task_id} uses is used by locked tasks too",
                NoParameterToForgetWarning,
                stacklevel=2,
            )
        if not dry_run:
            self._redraw(weights, biases)
        return ForgetResult(**result) + masks

    def _redraw(self, weights: Tensor, biases: Tensor) -> None:
        fresh = torch.empty_like(self.weight)
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5))
        self.weight[weights] = fresh[weights]
        if self.bias is not None:
            bound = 1 / math.sqrt(max(1, self.weight[0].numel()))
            self.bias[biases] = torch.empty_like(self.bias).uniform_(-bound, bound)[biases]

    @torch.no_grad()
    def load_from_base_module(self, base_module: Any) -> None:
        """Copy the ordinary layer's weight and bias."""
        self.weight.copy_(base_module.weight)
        if self.bias is not None:
            self.bias.copy_(base_module.bias)

    def _with_masker(self, layer: nn.Module, task_id: int | None, options: Any) -> nn.Sequential:
        """An ordinary layer with this one's parameters, and one task's masker behind it."""
        parameters = {n: p.detach() for n, p in self.named_parameters(recurse=False)}
        layer.load_state_dict(parameters)
        options = {"mask_dim": self.channel_dim} | options
        return nn.Sequential(layer, self.masker.to_base_module(task_id, **options))

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._settled = None

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._cache.clear()
        return super()._apply(fn, recurse)

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.extra_repr()}, num_tasks={self.num_tasks})"


class _Locked(torch.autograd.Function):
    """Weight and bias as they are; their gradients are 0 where a locked task uses them."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: HATMaskedModuleABC,
        locked: tuple[int, ...],
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.layer, ctx.locked = layer, locked
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:  # type: ignore[override]
        # Only now has the whole forward shown where a layer that is used twice gets its inputs.
        rows = zip(grads, ctx.layer.sides(ctx.locked), strict=True)
        found = [(grad, side) for grad, side in rows if grad is not None]
        sides = [side for _, side in found]
        out, into, groups = columns(sides)
        if torch.is_grad_enabled():
            factors = [torch.ones_like(grad) for grad, _ in found]
            clamp_grads_(factors, out, into, groups=groups)
            kept = [torch.where(f != 0, g, 0.0) for f, (g, _) in zip(factors, found, strict=True)]
        else:
            # Products alone make these gradients, and give them away: they are written in place.
            kept = [grad for grad, _ in found]
            clamp_grads_(kept, out, into, groups=groups)
        left = iter(kept)
        return (None, None, *(None if grad is None else next(left) for grad in grads))


def _warn_depleted(name: str, out: Tensor, into: Tensor | None) -> None:
    """Once for each set of locked tasks; it waits for the device."""
    side, what = (out, "outputs") if into is None else (into, "inputs")
    if bool((side != 0).any(-1).all()):
        warnings.warn(
            f"{name}: locked tasks use all {what}; little or nothing new can be learnt",
            LearningSuppressedWarning,
            stacklevel=4,
        )
