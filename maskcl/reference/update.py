"""One optimizer step of a list of parameters under protection, in plain torch.

Unscale, clip by a global norm, decay, moments, step, bound: what torch.optim's SGD, Adam and AdamW
do, in the order of their fused kernels. Protected elements (:mod:`maskcl.reference.grad_clamp` says
which those are) and their moments keep their bits, NaN and -0 included. Empty lists of sides are
of no task: nothing is protected.

The gradient that a step uses is grad / scale * min(1, max_norm / (norm + 1e-6)), the factor of
``torch.nn.utils.clip_grad_norm_``, negated where ``maximize``; ``grads`` are not written. Where
``found_inf`` is not 0 nothing is written at all. Learning rates are lr[t] * rate. Arithmetic is
float32, for float64 parameters float64; state is of the parameter's dtype or of that.

What is written is rounded to nearest, or, where there is a ``draw``, bfloat16 at random, up as
often as the number lies that far between its neighbours (Gupta et al. 2015, "Deep learning with
limited numerical precision", section 3.1), so that steps below half of what bfloat16 tells apart
add up. The bits follow from ``seed``, ``draw``, and the element's number, ``places[t]`` + its index
(:mod:`maskcl.reference.random_bits`): 16 of an element's 64 for the parameter, 16 for each moment.

C++ takes subnormal numbers (below 2^-126 in float32) as 0 here, and makes 0 of results that would
be, as its masked activations do: the squares of what comes through nearly closed gates are such by
the thousand, and each costs an x86 core a hundred cycles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl.reference.gate import compute_dtype
from maskcl.reference.grad_clamp import _over, users
from maskcl.reference.random_bits import random_bits, round_stochastic, shift_right, step_key


def _sides(
    weights: list[Tensor], out_tasks: list[Tensor], in_tasks: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """As they are; for none at all, one unit without a task for each weight."""
    if out_tasks or in_tasks:
        return out_tasks, in_tasks
    none = [weight.new_empty((1, 0), dtype=torch.int64) for weight in weights]
    return none, none


def _free(param: Tensor, out_tasks: Tensor, in_tasks: Tensor, groups: int, exact: bool) -> Tensor:
    """Which elements of ``param`` may move: a bool that broadcasts over it."""
    return _over(users(param, out_tasks, in_tasks, groups, exact) == 0, param)


def _written(free: Tensor, found_inf: Tensor | None) -> Tensor:
    return free if found_inf is None else free & (found_inf.to(free.device) == 0)


def _unscaled(grad: Tensor, scale: Tensor | None) -> Tensor:
    wide = grad.to(compute_dtype(grad.dtype))
    return wide if scale is None else wide / scale.to(grad.device, wide.dtype)


def _gradient(
    grad: Tensor, maximize: bool, scale: Tensor | None, norm: Tensor | None, max_norm: float
) -> Tensor:
    grad = _unscaled(grad, scale)
    if norm is not None:
        grad = grad * (max_norm / (norm.to(grad.device, grad.dtype) + 1e-6)).clamp(max=1.0)
    return -grad if maximize else grad


def _pace(lr: float, rate: Tensor | None, param: Tensor) -> Tensor:
    """A learning rate, 0-d float64."""
    number = torch.full((), lr, dtype=torch.float64, device=param.device)
    return number if rate is None else number * rate.to(number)


def _as(
    dtype: torch.dtype, x: Tensor, draw: Tensor | None, seed: int, place: int, use: int
) -> Tensor:
    """x as ``dtype``; ``use``: which 16 of an element's bits round it, if any do."""
    if draw is None or dtype is not torch.bfloat16:
        return x.to(dtype)
    bits = random_bits(step_key(seed, draw.to(x.device)), place, x.shape, x.device)
    return round_stochastic(x, shift_right(bits, 48 - 16 * use))


def _bounded(param: Tensor, bound: float) -> Tensor:
    return param if math.isinf(bound) else param.clamp(-bound, bound)


def sgd_update_(
    params: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    out_tasks: list[Tensor],
    in_tasks: list[Tensor],
    groups: list[int],
    exact: bool,
    lr: list[float],
    weight_decay: list[float],
    bounds: list[float],
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
    first: bool,
    rate: Tensor | None,
    scale: Tensor | None,
    found_inf: Tensor | None,
    norm: Tensor | None,
    max_norm: float,
    draw: Tensor | None = None,
    seed: int = 0,
    places: Sequence[int] = (),
) -> None:
    """torch.optim.SGD's step on the elements that are not protected, in place.

    params[t], grads[t], momenta[t] [O, I, *] or [O]; sides as for clamp_grads_. ``momenta`` is
    empty where momentum is 0. ``first``: they have not been written yet and are not read; a
    protected element's becomes 0. After the step a parameter lies in [-bounds[t], bounds[t]].
    """
    out_tasks, in_tasks = _sides(params, out_tasks, in_tasks)
    for t, param in enumerate(params):
        rounding = draw, seed, 0 if draw is None else places[t]
        free = _free(param, out_tasks[t], in_tasks[t], groups[t], exact)
        written = _written(free, found_inf)
        wide = param.to(compute_dtype(param.dtype))
        step = _gradient(grads[t], maximize, scale, norm, max_norm)
        if weight_decay[t] != 0:
            step = step.add(wide, alpha=weight_decay[t])
        if momenta:
            buffer = momenta[t]
            moved = step
            if not first:
                moved = (buffer.to(wide.dtype) * momentum).add(step, alpha=1 - dampening)
            step = step.add(moved, alpha=momentum) if nesterov else moved
            kept = _as(buffer.dtype, moved, *rounding, use=1)
            if first:
                kept = torch.where(free, kept, 0.0)
                free_or_fresh = _written(torch.ones_like(free), found_inf)
                buffer.copy_(torch.where(free_or_fresh, kept, buffer))
            else:
                buffer.copy_(torch.where(written, kept, buffer))
        pace = _pace(lr[t], rate, param)
        result = _bounded(torch.addcmul(wide, step, pace, value=-1), bounds[t])
        param.copy_(torch.where(written, _as(param.dtype, result, *rounding, use=0), param))


def adam_update_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    out_tasks: list[Tensor],
    in_tasks: list[Tensor],
    groups: list[int],
    exact: bool,
    lr: list[float],
    weight_decay: list[float],
    bounds: list[float],
    beta1: float,
    beta2: float,
    eps: float,
    decoupled: bool,
    maximize: bool,
    rate: Tensor | None,
    scale: Tensor | None,
    found_inf: Tensor | None,
    norm: Tensor | None,
    max_norm: float,
    draw: Tensor | None = None,
    seed: int = 0,
    places: Sequence[int] = (),
) -> None:
    """torch.optim.Adam's step, AdamW's where ``decoupled``, on the elements that are not protected.

    In place. params[t], grads[t], exp_avgs[t], exp_avg_sqs[t] [O, I, *] or [O]; steps[t] 0-d float,
    increased by 1 before it corrects the moments' bias; sides as for clamp_grads_. After the step a
    parameter lies in [-bounds[t], bounds[t]].
    """
    out_tasks, in_tasks = _sides(params, out_tasks, in_tasks)
    for t, param in enumerate(params):
        rounding = draw, seed, 0 if draw is None else places[t]
        free = _free(param, out_tasks[t], in_tasks[t], groups[t], exact)
        written = _written(free, found_inf)
        step = steps[t] + (1 if found_inf is None else (found_inf == 0).to(steps[t].device))
        count = torch.clamp(step.double(), min=1)
        bias1, bias2 = 1 - beta1**count, 1 - beta2**count
        pace = _pace(lr[t], rate, param)
        size, root = pace / bias1.to(pace.device), bias2.sqrt().to(pace.device)

        wide = param.to(compute_dtype(param.dtype))
        grad = _gradient(grads[t], maximize, scale, norm, max_norm)
        if decoupled:
            wide = wide * (1 - pace * weight_decay[t])
        elif weight_decay[t] != 0:
            grad = grad.add(wide, alpha=weight_decay[t])
        first = torch.lerp(exp_avgs[t].to(wide.dtype), grad, 1 - beta1)
        second = exp_avg_sqs[t].to(wide.dtype) * beta2
        second = second.addcmul(grad, grad, value=1 - beta2)
        result = _bounded(wide - size * first / (second.sqrt() / root + eps), bounds[t])

        moved = (param, result), (exp_avgs[t], first), (exp_avg_sqs[t], second)
        for use, (old, new) in enumerate(moved):
            old.copy_(torch.where(written, _as(old.dtype, new, *rounding, use=use), old))
        steps[t].copy_(step)


def unprotected_norm(
    grads: list[Tensor],
    out_tasks: list[Tensor],
    in_tasks: list[Tensor],
    groups: list[int],
    exact: bool,
    scale: Tensor | None,
) -> Tensor:
    """The 2-norm of all elements of grads / scale that are not protected, 0-d.

    float32, for float64 gradients float64. What a protected element is, NaN even, does not matter.
    """
    out_tasks, in_tasks = _sides(grads, out_tasks, in_tasks)
    norms = []
    for t, grad in enumerate(grads):
        free = _free(grad, out_tasks[t], in_tasks[t], groups[t], exact)
        norms.append(torch.linalg.vector_norm(torch.where(free, _unscaled(grad, scale), 0.0)))
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())
