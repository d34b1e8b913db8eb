"""Adam's steps, counted where they are, and what follows from them for each parameter."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl.triton._compat import OPTIONS, on_device_of, power_of_2, tl, triton
from maskcl.triton._lists import MAX_TENSORS, on_device
from maskcl.triton._steps import skips
from maskcl.triton.grad_clamp import bits_of


@triton.jit(do_not_specialize=["tensors", "counted"])
def count_kernel(
    table_ptr,
    tensors,
    known_ptr,
    counted,
    rate_ptr,
    found_inf_ptr,
    DECOUPLED: tl.constexpr,
    TENSORS: tl.constexpr,
):
    """known [3, counted] float64: step sizes, roots of the second bias, shares that decay leaves.

    The table: addresses of the steps, counts that the host has, kinds (1: float32, 2: float64, 0:
    the host's); as float64 learning rates, decays, logarithms of both betas.
    """
    if skips(found_inf_ptr):
        return
    index = tl.arange(0, TENSORS)
    there = index < tensors
    address = tl.load(table_ptr + index, mask=there, other=0)
    value = tl.load(table_ptr + tensors + index, mask=there, other=0)
    kind = tl.load(table_ptr + 2 * tensors + index, mask=there, other=0)
    lr = tl.load(table_ptr + 3 * tensors + index, mask=there, other=0).to(tl.float64, bitcast=True)
    decay = tl.load(table_ptr + 4 * tensors + index, mask=there, other=0)
    decay = decay.to(tl.float64, bitcast=True)
    log1 = tl.load(table_ptr + 5 * tensors + index, mask=there, other=0)
    log2 = tl.load(table_ptr + 6 * tensors + index, mask=there, other=0)
    log1, log2 = log1.to(tl.float64, bitcast=True), log2.to(tl.float64, bitcast=True)

    single, double = there & (kind == 1), there & (kind == 2)
    single_ptr = address.to(tl.pointer_type(tl.float32))
    double_ptr = address.to(tl.pointer_type(tl.float64))
    one = tl.load(single_ptr, mask=single, other=0.0) + 1.0
    other = tl.load(double_ptr, mask=double, other=0.0) + 1.0
    tl.store(single_ptr, one, mask=single)
    tl.store(double_ptr, other, mask=double)
    step = tl.where(single, one.to(tl.float64), tl.where(double, other, value.to(tl.float64)))

    if rate_ptr is not None:
        lr *= tl.load(rate_ptr).to(tl.float64)
    root = tl.sqrt(1.0 - tl.exp(step * log2))
    kept = 1.0 - lr * decay if DECOUPLED else lr * 0.0 + 1.0
    tl.store(known_ptr + index, lr / (1.0 - tl.exp(step * log1)), mask=there)
    tl.store(known_ptr + counted + index, root, mask=there)
    tl.store(known_ptr + 2 * counted + index, kept, mask=there)


def floats(numbers: Sequence[float]) -> list[int]:
    return [bits_of(number) for number in numbers]


def count_steps(
    steps: list[Tensor],
    known: Tensor,
    lr: Sequence[float],
    weight_decay: Sequence[float],
    betas: tuple[float, float],
    decoupled: bool,
    rate: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """Count a step more of each, and fill ``known`` as :func:`count_kernel` says."""
    logs = floats([math.log(beta) if beta > 0 else -math.inf for beta in betas])
    entries: list[tuple[int, ...]] = []
    for step, speed, decay in zip(steps, lr, weight_decay, strict=True):
        if step.device == known.device:
            where = step.data_ptr(), 0, 2 if step.dtype == torch.float64 else 1
        else:
            step += 1
            where = 0, int(step.item()), 0
        entries.append((*where, bits_of(speed), bits_of(decay), *logs))
    with on_device_of(known):
        for start in range(0, len(entries), MAX_TENSORS):
            some = entries[start : start + MAX_TENSORS]
            count_kernel[(1,)](
                on_device(some, known.device),
                len(some),
                known[:, start:],
                known.shape[1],
                rate,
                found_inf,
                DECOUPLED=decoupled,
                TENSORS=power_of_2(len(some)),
                **OPTIONS,
            )
