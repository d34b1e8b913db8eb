"""An optimizer's step of a whole model in one pass, protected elements left as they are.

None of these takes part in autograd: they act on gradients, parameters and state, in place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl import backends
from maskcl.grad_mode import without_gradients
from maskcl.ops import _check
from maskcl.ops._lists import listed
from maskcl.ops._numbers import number
from maskcl.ops.step_arguments import (
    Numbers,
    below_one,
    check_all_apart,
    check_scalars,
    clipping,
    counts_of,
    one_for_each,
    rounding_of,
    state_of,
    weights_of,
)
from maskcl.ops.weight_sides import Sides
from maskcl.reference.gate import compute_dtype
from maskcl.schemas import fake

Tensors = Sequence[Tensor]


@without_gradients
def sgd_update_(
    params: Tensors,
    grads: Tensors,
    momenta: Tensors,
    out_tasks: Sides,
    in_tasks: Sides,
    *,
    lr: Numbers,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: Numbers = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first: bool = False,
    bounds: Numbers = float("inf"),
    protection: str = "exact",
    groups: Sequence[int] | None = None,
    rate: Tensor | None = None,
    scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    norm: Tensor | None = None,
    max_norm: float | None = None,
    draw: Tensor | None = None,
    seed: int = 0,
    places: Sequence[int] | None = None,
) -> None:
    """torch.optim.SGD's step of a whole model in one pass, in place.

    Protected elements and their momenta keep their bits and are not read where a row of them is.

    Args:
        params: list of [O, I, *] or [O], floating, one device.
        grads: for each, a tensor of its shape and dtype; not written.
        momenta: for each, a buffer of its shape, of its dtype or float32; [] for momentum 0.
        out_tasks: as for :func:`clamp_grads_`.
        in_tasks: as for :func:`clamp_grads_`; for what nothing protects, zeros on either side.
        lr: learning rates, one number or one a parameter.
        momentum: of all.
        dampening: of the gradient in the momentum.
        weight_decay: one number or one a parameter.
        nesterov: Nesterov's momentum.
        maximize: climb.
        first: nobody has written ``momenta`` yet: they are not read and become the gradients, a
            protected element's 0.
        bounds: parameters lie in [-bounds, bounds] after the step; one number or one a parameter.
        protection: as for :func:`clamp_grads_`.
        groups: as for :func:`clamp_grads_`.
        rate: 0-d; multiplies every ``lr``.
        scale: 0-d loss scale; gradients are divided by it.
        found_inf: 0-d; where it is not 0 nothing is written.
        norm: 0-d norm of the unscaled gradients, such as :func:`unprotected_norm`'s.
        max_norm: with it: gradients times min(1, max_norm / (norm + 1e-6)).
        draw: 0-d, a whole number: with it bfloat16 parameters and momenta are rounded up or down at
            random, up as often as they lie that far between two of its numbers, and not to nearest,
            by which steps below half their distance are lost. Each step wants another.
        seed: of the random numbers, which follow from it, ``draw`` and ``places`` alone.
        places: for each parameter, the number of its first element, others' counted on from it in
            the order of indices; None: 2^40 a parameter. A process with some rows of a parameter
            draws what the whole would with place + the index of its first element.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then.
    """
    op = "sgd_update_"
    params, grads, sides = weights_of(op, params, grads, out_tasks, in_tasks, groups, protection)
    pace = [
        one_for_each(op, name, values, params)
        for name, values in (("lr", lr), ("weight_decay", weight_decay), ("bounds", bounds))
    ]
    momentum, dampening = number(op, "momentum", momentum), number(op, "dampening", dampening)
    if momentum < 0:
        raise ValueError(f"{op}: momentum is {momentum}, wanted a number of at least 0")
    if nesterov and (momentum == 0 or dampening != 0):
        raise ValueError(f"{op}: nesterov is true, wanted momentum above 0 and dampening 0 for it")
    buffers = listed(op, "momenta", momenta)
    if momentum != 0:
        buffers = state_of(op, "momenta", buffers, params)
    elif buffers:
        raise ValueError(f"{op}: momenta has {len(buffers)} entries, wanted 0 for momentum 0")
    check_scalars(op, params, rate=rate, scale=scale, found_inf=found_inf, norm=norm)
    most = clipping(op, norm, max_norm)
    rounding = rounding_of(op, draw, seed, places, params)
    check_all_apart(op, grads, params=params, momenta=buffers)
    if params:
        how = momentum, dampening, bool(nesterov), bool(maximize), bool(first)
        run = backends.select(op, params[0])
        scaling = rate, scale, found_inf, norm, most
        run(params, grads, buffers, *sides, *pace, *how, *scaling, *rounding)


@without_gradients
def adam_update_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    out_tasks: Sides,
    in_tasks: Sides,
    *,
    lr: Numbers,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Numbers = 0.0,
    decoupled: bool = False,
    maximize: bool = False,
    bounds: Numbers = float("inf"),
    protection: str = "exact",
    groups: Sequence[int] | None = None,
    rate: Tensor | None = None,
    scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    norm: Tensor | None = None,
    max_norm: float | None = None,
    draw: Tensor | None = None,
    seed: int = 0,
    places: Sequence[int] | None = None,
) -> None:
    """torch.optim.Adam's step, AdamW's where ``decoupled``, of a whole model in one pass, in place.

    Protected elements and their moments keep their bits and are not read where a row of them is.

    Args:
        params: as for :func:`sgd_update_`.
        grads: as there.
        exp_avgs: for each parameter, its first moment, of its dtype or float32.
        exp_avg_sqs: the second, of the first's dtype.
        steps: for each, how many there were, 0-d float32 or float64, on its device or the CPU; each
            is increased by 1.
        out_tasks: as for :func:`clamp_grads_`.
        in_tasks: as for :func:`sgd_update_`.
        lr: as there.
        betas: of the first and the second moment, in [0, 1).
        eps: added to the root of the second moment, at least 0.
        weight_decay: as there.
        decoupled: weight decay apart from the gradient (Loshchilov and Hutter 2019, AdamW).
        maximize: as there.
        bounds: as there.
        protection: as for :func:`clamp_grads_`.
        groups: as for :func:`clamp_grads_`.
        rate: as for :func:`sgd_update_`.
        scale: as there.
        found_inf: as there.
        norm: as there.
        max_norm: as there.
        draw: as there, of the moments too.
        seed: as there.
        places: as there.

    Raises:
        TypeError, ValueError: an argument is not as above; nothing has been written then.
    """
    op = "adam_update_"
    params, grads, sides = weights_of(op, params, grads, out_tasks, in_tasks, groups, protection)
    pace = [
        one_for_each(op, name, values, params)
        for name, values in (("lr", lr), ("weight_decay", weight_decay), ("bounds", bounds))
    ]
    beta1, beta2 = (below_one(op, f"betas[{i}]", beta) for i, beta in enumerate(betas))
    eps = one_for_each(op, "eps", eps, [torch.empty(0)])[0]
    firsts = state_of(op, "exp_avgs", exp_avgs, params)
    seconds = state_of(op, "exp_avg_sqs", exp_avg_sqs, params)
    for t, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        _check.same_dtype(op, f"exp_avg_sqs[{t}]", second, f"exp_avgs[{t}]", first)
    check_scalars(op, params, rate=rate, scale=scale, found_inf=found_inf, norm=norm)
    counts = counts_of(op, steps, params, found_inf)
    most = clipping(op, norm, max_norm)
    rounding = rounding_of(op, draw, seed, places, params)
    check_all_apart(op, grads, params=params, exp_avgs=firsts, exp_avg_sqs=seconds)
    if params:
        how = beta1, beta2, eps, bool(decoupled), bool(maximize)
        state = firsts, seconds, counts
        run = backends.select(op, params[0])
        scaling = rate, scale, found_inf, norm, most
        run(params, grads, *state, *sides, *pace, *how, *scaling, *rounding)


@without_gradients
def unprotected_norm(
    grads: Tensors,
    out_tasks: Sides,
    in_tasks: Sides,
    *,
    protection: str = "exact",
    groups: Sequence[int] | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """The 2-norm of all elements of grads / scale that are not protected, for ``max_norm``.

    Args:
        grads: list of [O, I, *] or [O], floating, one device.
        out_tasks: as for :func:`clamp_grads_`.
        in_tasks: as for :func:`clamp_grads_`.
        protection: as for :func:`clamp_grads_`.
        groups: as for :func:`clamp_grads_`.
        scale: 0-d loss scale; None: 1.

    Returns:
        0-d, float32 (float64 for float64 gradients), on their device.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    op = "unprotected_norm"
    grads, _, sides = weights_of(op, grads, None, out_tasks, in_tasks, groups, protection)
    check_scalars(op, grads, scale=scale)
    if not grads:
        return torch.zeros(())
    return backends.select(op, grads[0])(grads, *sides, scale)


@fake("sgd_update_")
def _(params: list[Tensor], grads: list[Tensor], momenta: list[Tensor], *rest: object) -> None:
    return None


@fake("adam_update_")
def _(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *rest: object,
) -> None:
    return None


@fake("unprotected_norm")
def _(grads: list[Tensor], *rest: object) -> Tensor:
    if not grads:
        return torch.zeros(())
    return grads[0].new_empty((), dtype=compute_dtype(grads[0].dtype))
