"""One optimizer step of a list under protection, see :mod:`maskcl.reference.update`: launchers.

A list is one launch for each pair of dtypes, of parameters and of state; Adam has one more, which
counts the steps and works out what depends on them. Nothing is read on the host that is on the
device.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from maskcl.triton._compat import OPTIONS, check, on_device_of, power_of_2, tl
from maskcl.triton._lists import COLUMNS, ELEMENT, MAX_TENSORS, Table, laid_out_as
from maskcl.triton._step_counts import count_steps, floats
from maskcl.triton._steps import adam_kernel, root_kernel, sgd_kernel, square_kernel

ROWS = 8  # of a tile: a thread has 8 elements of each of four tensors
SUMMED = 1024  # partial sums that are added at a time
Tensors = list[Tensor]
Sides = tuple[Tensors, Tensors, list[int]]


def _checked(op: str, first: Tensor, **lists: Sequence[Tensor | None]) -> None:
    for name, tensors in lists.items():
        for tensor in tensors:
            if tensor is not None:
                check(op, name, tensor, None if name in ("steps", "scalars") else tuple(ELEMENT))


def _near(value: Tensor | None, like: Tensor) -> Tensor | None:
    return None if value is None else value.to(like.device, non_blocking=True)


def _launches(
    weights: Tensors,
    sides: Sides,
    reads: Sequence[Tensors],
    writes: Sequence[Tensors],
    numbers: Sequence[Sequence[int]],
) -> Iterator[tuple[Table, Tensor, dict[str, Any]]]:
    """(table, its copy on the device, constants) of each launch; afterwards copies go back.

    Empty sides protect nothing.
    The table's rows from 15 on: ``reads``, ``writes`` and ``numbers``, where there are any.
    """
    if not sides[0] and not sides[1]:
        none = [weight.new_empty((1, 0), dtype=torch.int64) for weight in weights]
        sides = none, none, sides[2]
    groups: dict[tuple[torch.dtype, ...], list[int]] = {}
    for t, weight in enumerate(weights):
        if weight.numel():
            kinds = weight.dtype, (writes[0][t] if writes else weight).dtype
            groups.setdefault(kinds, []).append(t)
    for kinds, indices in groups.items():
        for start in range(0, len(indices), MAX_TENSORS):
            table = Table(ROWS)
            for t in indices[start : start + MAX_TENSORS]:
                used = table.add(weights[t], sides[0][t], sides[1][t], sides[2][t], 0)
                beside = [_beside(table, used, tensors[t]) for tensors in reads]
                for tensors in writes:
                    copy = laid_out_as(used, tensors[t], tensors[t].dtype)
                    beside.append(_beside(table, used, copy))
                    if copy is not tensors[t]:
                        table.copies.append((tensors[t], copy))
                table.entries[-1] += (*beside, *(column[t] for column in numbers))
            first = weights[indices[0]]
            constants = {
                "DTYPE": ELEMENT[kinds[0]],
                "STATE": ELEMENT[kinds[1]],
                "INDEX": tl.int32 if table.longest + COLUMNS < 1 << 31 else tl.int64,
                "TENSORS": power_of_2(len(table.entries)),
                "ROWS": ROWS,
                "COLUMNS": COLUMNS,
                **OPTIONS,
            }
            with on_device_of(first):
                yield table, table.on(first.device), constants
            for original, copy in table.copies:
                original.copy_(copy)


def _beside(table: Table, used: Tensor, tensor: Tensor) -> int:
    """The address of ``tensor`` in the order of ``used``."""
    copy = laid_out_as(used, tensor, tensor.dtype)
    table.alive.append(copy)
    return copy.data_ptr()


def sgd_update_(
    params: Tensors,
    grads: Tensors,
    momenta: Tensors,
    out_tasks: Tensors,
    in_tasks: Tensors,
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
    """torch.optim.SGD's step on the elements that are not protected, in place; one launch."""
    op = "sgd_update_"
    if not params:
        return
    scalars = [_near(value, params[0]) for value in (rate, scale, found_inf, norm, draw)]
    _checked(op, params[0], params=params, grads=grads, momenta=momenta, scalars=scalars)
    # The number in row 17 is Adam's second moment's.
    columns = [[0] * len(params), floats(lr), floats(weight_decay), floats(bounds)]
    columns.append(list(places) or columns[0])
    if not momenta:
        columns.insert(0, columns[0])
    writes = [momenta] if momenta else []
    for table, device_table, constants in _launches(
        params, (out_tasks, in_tasks, groups), [grads], writes, columns
    ):
        sgd_kernel[(table.programs,)](
            device_table,
            len(table.entries),
            *scalars,
            seed,
            max_norm,
            momentum,
            1 - dampening,
            MOMENTUM=bool(momenta),
            NESTEROV=nesterov,
            FIRST=first,
            MAXIMIZE=maximize,
            EXACT=exact,
            **constants,
        )


def adam_update_(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    exp_avg_sqs: Tensors,
    steps: Tensors,
    out_tasks: Tensors,
    in_tasks: Tensors,
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
    """torch.optim.Adam's step, AdamW's where ``decoupled``, on what is not protected, in place."""
    op = "adam_update_"
    if not params:
        return
    on_host = any(step.device != params[0].device for step in steps)
    if on_host and found_inf is not None:
        if found_inf.device.type != "cpu":
            raise ValueError(f"{op}: steps are on cpu, wanted found_inf's device")
        if found_inf.item() != 0:
            return
    scalars = [_near(value, params[0]) for value in (rate, scale, found_inf, norm, draw)]
    lists = {"params": params, "grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    _checked(op, params[0], **lists, steps=steps if not on_host else [], scalars=scalars)
    known = params[0].new_empty((3, len(params)), dtype=torch.float64)
    count_steps(steps, known, lr, weight_decay, (beta1, beta2), decoupled, scalars[0], scalars[2])
    numbers = [list(range(len(params))), floats(weight_decay), floats(bounds)]
    numbers.append(list(places) or [0] * len(params))
    for table, device_table, constants in _launches(
        params, (out_tasks, in_tasks, groups), [grads], [exp_avgs, exp_avg_sqs], numbers
    ):
        adam_kernel[(table.programs,)](
            device_table,
            len(table.entries),
            known,
            len(params),
            *scalars[1:],
            seed,
            max_norm,
            1 - beta1,
            beta2,
            1 - beta2,
            eps,
            SMALL=1 - beta1 < 0.5,
            DECOUPLED=decoupled,
            MAXIMIZE=maximize,
            EXACT=exact,
            **constants,
        )


def unprotected_norm(
    grads: Tensors,
    out_tasks: Tensors,
    in_tasks: Tensors,
    groups: list[int],
    exact: bool,
    scale: Tensor | None,
) -> Tensor:
    """The 2-norm of all elements of grads / scale that are not protected, 0-d float32."""
    op = "unprotected_norm"
    scale = _near(scale, grads[0])
    _checked(op, grads[0], grads=grads, scalars=[scale])
    sums = []
    for table, device_table, constants in _launches(
        grads, (out_tasks, in_tasks, groups), [], [], []
    ):
        del constants["STATE"]
        sums.append(grads[0].new_empty(table.programs, dtype=torch.float64))
        square_kernel[(table.programs,)](
            device_table, len(table.entries), sums[-1], scale, EXACT=exact, **constants
        )
    parts = torch.cat(sums) if sums else grads[0].new_empty(0, dtype=torch.float64)
    norm = grads[0].new_empty((), dtype=torch.float32)
    with on_device_of(norm):
        root_kernel[(1,)](parts, norm, parts.numel(), BLOCK=SUMMED, **OPTIONS)
    return norm
