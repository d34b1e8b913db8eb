"""Importances that several processes measure: their sums, and batches of a sharded network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from maskcl.collective import processes
from maskcl.importance.quiet import requiring
from maskcl.importance.subject import Subject
from maskcl.ops import mas_accumulate_
from maskcl.shard_sums import added_up
from maskcl.shards import is_sharded, local


def sum_of_joint_batches(subject: Subject, batches: Iterable[Any]) -> int:
    """Add N |the gradient of the mean of F| for each batch; the number of samples.

    The first batches of all processes are one batch of N samples, and so on. The backward is an
    ordinary one, of whose gradients each process keeps its rows: none has all parameters at once,
    nor all importances.

    Raises:
        RuntimeError: processes have different numbers of batches, or there are others than those
            that share the parameters.
    """
    distributed, parameters = torch.distributed, list(subject.omegas)
    world, total = distributed.get_world_size(), 0
    for parameter in parameters:
        if is_sharded(parameter) and parameter.device_mesh.size() != world:  # type: ignore[attr-defined]
            raise RuntimeError(
                f"estimate: {subject.names[parameter]} is sharded over"
                f" {parameter.device_mesh.size()} of {world} processes, wanted all"  # type: ignore[attr-defined]
            )
    omegas = [local(omega) for omega in subject.omegas.values()]
    before = [parameter.grad for parameter in parameters]
    try:
        with requiring(parameters):
            for batch in _together(batches, omegas[0].device):
                outputs, targets = subject.outputs(batch)
                count = int(_sum(outputs.new_tensor(outputs.shape[0], dtype=torch.int64)))
                if count:
                    labels = subject.objective.choose(outputs, targets)
                    values = subject.objective.values(outputs, labels)
                    found = _gradients(values.sum() * (world / count), parameters)
                    mas_accumulate_(omegas, found, float(count), square=subject.square)
                total += count
    finally:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad
    return total


def _gradients(value: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """This process's rows of the mean over processes of their gradients."""
    for parameter in parameters:
        parameter.grad = None
    value.backward()  # type: ignore[no-untyped-call]
    found = []
    for parameter in parameters:
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if not is_sharded(parameter):  # nobody else has averaged it
            grad = _sum(grad) / torch.distributed.get_world_size()
        found.append(local(grad.detach()))
        parameter.grad = None
    return found


def _sum(tensor: Tensor) -> Tensor:
    torch.distributed.all_reduce(tensor)
    return tensor


def _together(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Batches, as long as every process has one more."""
    nothing = object()
    rest = iter(batches)
    while True:
        batch = next(rest, nothing)
        have = _sum(torch.tensor(int(batch is not nothing), device=device))
        if int(have) == 0:
            return
        if int(have) < torch.distributed.get_world_size():
            raise RuntimeError(
                "estimate: processes have different numbers of batches, wanted as many in each: by"
                " batches a sharded network is measured on all processes' together"
            )
        yield batch


def add_up(subject: Subject, wanted: dict[str, Tensor], like: dict[str, Tensor], count: int) -> int:
    """Add the sums of all processes up, sharded as ``like`` is; the number of samples."""
    omegas, owners = subject.omegas, {p: like[name] for name, p in wanted.items()}
    first = next(iter(omegas.values()))
    if not any(map(is_sharded, owners.values())):
        return _share(list(omegas.values()), count, first)
    total = _share([], count, first)
    for parameter in list(omegas):
        omegas[parameter] = added_up(omegas[parameter], owners[parameter])
    return total


def _share(sums: list[Tensor], count: int, like: Tensor) -> int:
    """Add up the sums of all processes, in place and in one message; the number of samples."""
    if processes()[0] == 1:
        return count
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    flat = torch.cat(
        [*(s.flatten().to(dtype) for s in sums), like.new_tensor([count], dtype=dtype)]
    )
    torch.distributed.all_reduce(flat)
    parts = flat[:-1].split([s.numel() for s in sums])
    for total, part in zip(sums, parts, strict=True):
        total.copy_(part.view_as(total))
    return round(float(flat[-1]))
