"""The arguments of an optimizer's step, checked: state, counts of steps, numbers a parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maskcl.ops import _check
from maskcl.ops._lists import check_like, check_written, lengths, listed
from maskcl.ops._numbers import described, number
from maskcl.ops.grad_clamp import PROTECTIONS
from maskcl.ops.weight_sides import Sides, check_weights, groups_of, task_sides
from maskcl.reference.gate import compute_dtype

Numbers = float | Sequence[float]
"""One number for all parameters, or one for each."""


_Side = list[Tensor]


def weights_of(
    op: str,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor] | None,
    out_tasks: Sides,
    in_tasks: Sides,
    groups: Sequence[int] | None,
    protection: str,
) -> tuple[list[Tensor], list[Tensor], tuple[_Side, _Side, list[int], bool]]:
    """Weights, gradients and sides, checked, as the kernels take them; without grads, weights are.

    Raises:
        TypeError, ValueError: an argument is not as :func:`sgd_update_` has it.
    """
    name = "grads" if grads is None else "params"
    _check.one_of(op, "protection", protection, PROTECTIONS)
    found, lists = listed(op, name, weights), {}
    if grads is not None:
        lists["grads"] = listed(op, "grads", grads)
    outs, ins = listed(op, "out_tasks", out_tasks), listed(op, "in_tasks", in_tasks)
    check_weights(op, name, found, **lists, out_tasks=outs, in_tasks=ins)
    counts = groups_of(op, found, groups)
    for other, entries in lists.items():
        check_like(op, other, entries, name, found)
    outs, ins = task_sides(op, name, found, outs, ins, counts)
    return found, lists.get("grads", found), (outs, ins, counts, protection == "exact")


def one_for_each(op: str, name: str, values: Numbers, params: Sequence[Tensor]) -> list[float]:
    """A number of at least 0 a parameter; infinity is one where ``name`` is bounds.

    Raises:
        TypeError, ValueError: one is no number, or below 0, or there are not as many.
    """
    if isinstance(values, (list, tuple)):
        lengths(op, "params", params, **{name: values})
        return [_not_negative(op, f"{name}[{t}]", value) for t, value in enumerate(values)]
    return [_not_negative(op, name, values)] * len(params)


def _not_negative(op: str, name: str, value: object) -> float:
    if name.startswith("bounds") and isinstance(value, float) and value == float("inf"):
        return value
    value = number(op, name, value)
    if value < 0:
        raise ValueError(f"{op}: {name} is {value}, wanted a number of at least 0")
    return value


def below_one(op: str, name: str, value: float) -> float:
    """The number of a moment's decay.

    Raises:
        TypeError, ValueError: it is no number from 0 up to, not including, 1.
    """
    value = number(op, name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{op}: {name} is {value}, wanted a number in [0, 1)")
    return value


def check_scalars(op: str, params: Sequence[Tensor], **scalars: Tensor | None) -> None:
    """Raise unless each is None or a floating 0-d tensor on the parameters' device or the CPU.

    Raises:
        TypeError, ValueError: one is not so.
    """
    for name, value in scalars.items():
        if value is None:
            continue
        _check.floating(op, name, value)
        if value.dim() != 0:
            raise ValueError(f"{op}: {name} is {described(value)}, wanted a 0-d tensor")
        if params and value.device.type != "cpu":
            _check.same_device(op, name, value, "params[0]", params[0])


def clipping(op: str, norm: Tensor | None, max_norm: float | None) -> float:
    """The most that the norm may be.

    Raises:
        TypeError, ValueError: it is no number of at least 0 where there is a norm.
    """
    if norm is None:
        if max_norm is not None:
            raise ValueError(f"{op}: max_norm is {max_norm}, wanted None where norm is None")
        return 0.0
    if max_norm is None:
        raise ValueError(f"{op}: max_norm is None, wanted a number where there is a norm")
    return _not_negative(op, "max_norm", max_norm)


def rounding_of(
    op: str,
    draw: Tensor | None,
    seed: int,
    places: Sequence[int] | None,
    params: Sequence[Tensor],
) -> tuple[Tensor | None, int, list[int]]:
    """How bfloat16 is rounded: the draw, the seed, and a place for each parameter if there is one.

    Raises:
        TypeError, ValueError: one is not as :func:`sgd_update_` has it.
    """
    check_scalars(op, params, draw=draw)
    _integer(op, "seed", seed, -(2**63))
    if draw is None:
        if places is not None:
            raise ValueError(f"{op}: places is {places!r}, wanted None where draw is None")
        return None, seed, []
    if places is None:
        return draw, seed, [t << 40 for t in range(len(params))]
    found = list(places)
    lengths(op, "params", params, places=found)
    for t, place in enumerate(found):
        _integer(op, f"places[{t}]", place, 0)
    return draw, seed, found


def _integer(op: str, name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} is a {type(value).__name__}, wanted an int")
    if not least <= value < 2**63:
        raise ValueError(f"{op}: {name} is {value}, wanted one from {least} to 2^63 - 1")


def state_of(op: str, name: str, state: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """A list of state, an entry like each parameter, of its dtype or of what that is computed in.

    Raises:
        TypeError, ValueError: an entry is not so.
    """
    found = listed(op, name, state)
    lengths(op, "params", params, **{name: found})
    for t, (entry, param) in enumerate(zip(found, params, strict=True)):
        label, wide = f"{name}[{t}]", compute_dtype(param.dtype)
        _check.floating(op, label, entry)
        _check.same_shape(op, label, entry, f"params[{t}]", param)
        _check.same_device(op, label, entry, f"params[{t}]", param)
        if entry.dtype not in (param.dtype, wide):
            wanted = " or ".join(dict.fromkeys(map(str, (param.dtype, wide))))
            raise TypeError(f"{op}: {label} is {entry.dtype}, wanted {wanted}")
    return found


def counts_of(
    op: str, steps: Sequence[Tensor], params: Sequence[Tensor], found_inf: Tensor | None
) -> list[Tensor]:
    """The counts of steps: 0-d float32 or float64, on the parameters' device or the CPU.

    Raises:
        TypeError, ValueError: one is not so, or on the CPU where ``found_inf``, which says whether
            it counts, is not.
    """
    found = listed(op, "steps", steps)
    lengths(op, "params", params, steps=found)
    for t, count in enumerate(found):
        label = f"steps[{t}]"
        _check.dense(op, label, count)
        if count.dtype not in (torch.float32, torch.float64) or count.dim() != 0:
            raise TypeError(f"{op}: {label} is {described(count)}, wanted a 0-d float32 or float64")
        if count.device.type != "cpu":
            _check.same_device(op, label, count, f"params[{t}]", params[t])
        elif found_inf is not None and found_inf.device.type != "cpu":
            raise ValueError(
                f"{op}: {label} is on cpu, wanted found_inf's device, {found_inf.device}"
            )
    check_written(op, "steps", found)
    return found


def check_all_apart(op: str, read: Sequence[Tensor], **written: Sequence[Tensor]) -> None:
    """Raise ValueError unless all that is written lies apart from the rest and from ``grads``."""
    others = dict(written)
    for name, tensors in written.items():
        del others[name]
        check_written(op, name, tensors, grads=read, **others)
