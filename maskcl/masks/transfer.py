"""A task's masks to a file and back, between networks that share their base.

A file goes onto the very weights that its masks were learned on and onto no others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from torch import Tensor

from maskcl.masks.mask_file import MaskFile, MaskFileError, read_masks, write_masks
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.nn.tasks.network import way_on
from maskcl.shards import whole, write

if TYPE_CHECKING:
    from maskcl.nn import PiggybackNetwork


def export_masks(
    net: PiggybackNetwork,
    task: int,
    path: str | os.PathLike[str],
    *,
    facts: dict[str, Any] | None = None,
) -> int:
    """Write a finished task's masks, head and norms to a file.

    Args:
        net: where the task is finished.
        task: its index.
        path: the file; one that exists is replaced in one step.
        facts: a JSON object for whoever reads the file.

    Returns:
        The file's size in bytes.

    Raises:
        RuntimeError: the task is not finished.
        OSError: the file cannot be written; what was there is intact then.
    """
    words = net.words(task)
    content = MaskFile(
        net.levels,
        task,
        {name: tuple(layer.weight.shape) for name, layer in net.layers.items()},
        net.base_hash(),
        words,
        {_without_task(name, task): whole(t) for name, t in net.own_state(task).items()},
        facts or {},
        {} if net.inference is None else net.inference.of_task(task),
    )
    return write_masks(path, content)


def import_masks(
    net: PiggybackNetwork,
    path: str | os.PathLike[str],
    task: int | None = None,
    *,
    replace: bool = False,
) -> MaskFile:
    """Give a task the masks, head and norms of a file; it is a finished task after.

    Args:
        net: with the weights that the masks were learned on.
        path: the file.
        task: which task; None: the one that it was.
        replace: whether a task that is finished already may lose what it has.

    Returns:
        What the file holds.

    Raises:
        MaskFileError: the file is damaged or for another network, or the task is not free; the
            network is as it was then.
    """
    found = read_masks(path)
    task = found.task if task is None else task
    _check_target(net, path, task, replace)
    _check_fits(net, path, found)
    own = _own_of(net, path, found, task)
    inference = _inference_of(net, path, found)
    if bool(net.finished[task]):
        net.forget_task(task)
    for target, source in own:
        write(target, source)
    net.set_words(task, found.words)
    if inference is not None:
        inference.take(task, found.statistics)
        net.inference = inference
    return found


def _inference_of(net: PiggybackNetwork, path: Any, found: MaskFile) -> TaskInference | None:
    """What takes the file's statistics: the network's inference, or a new one; None for none.

    Raises:
        MaskFileError: they are not whole, or were measured in another way than the network's.
    """
    if not found.statistics:
        return None
    try:
        own = net.inference or TaskInference.of(found.statistics["config"]).to(net._device())
        TaskInference.of(own.config).take(0, found.statistics)
    except (ValueError, KeyError, TypeError) as error:
        raise MaskFileError(f"{path} does not fit: {error}") from None
    return own


def _check_target(net: PiggybackNetwork, path: Any, task: int, replace: bool) -> None:
    if isinstance(task, bool) or not isinstance(task, int) or not 0 <= task < net.num_tasks:
        raise MaskFileError(
            f"{path} cannot become task {task!r}: the network has tasks 0 to {net.num_tasks - 1}"
        )
    if net.training_task == task:
        raise MaskFileError(f"{path} cannot become task {task}: it is in training")
    if bool(net.finished[task]) and not replace:
        raise MaskFileError(
            f"{path} cannot become task {task}: it is finished, and replace was not asked for;"
            f" {way_on(net.finished.tolist())}"
        )


def _check_fits(net: PiggybackNetwork, path: Any, found: MaskFile) -> None:
    """Raise MaskFileError unless the masks were learned on this network's weights."""
    if found.levels != net.levels:
        raise MaskFileError(
            f"{path} does not fit: its levels are {found.levels!r}, the network's {net.levels!r}"
        )
    shapes = {name: tuple(layer.weight.shape) for name, layer in net.layers.items()}
    for name in sorted(found.shapes.keys() ^ shapes.keys()):
        where = "file" if name in found.shapes else "network"
        raise MaskFileError(f"{path} does not fit: layer {name} is only in the {where}")
    for name, shape in shapes.items():
        if found.shapes[name] != shape:
            raise MaskFileError(
                f"{path} does not fit: layer {name} has shape {list(found.shapes[name])},"
                f" the network's {list(shape)}"
            )
    base = net.base_hash()
    if found.base != base:
        raise MaskFileError(
            f"{path} was learned on another base: its SHA-256 is {found.base}, the network's {base}"
        )


def _own_of(
    net: PiggybackNetwork, path: Any, found: MaskFile, task: int
) -> list[tuple[Tensor, Tensor]]:
    """What of the network's takes what of the file's; MaskFileError unless all fits."""
    wanted = {_without_task(name, task): t for name, t in net.own_state(task).items()}
    for name in sorted(found.own.keys() ^ wanted.keys()):
        where = "file" if name in found.own else "network"
        raise MaskFileError(f"{path} does not fit: {name} is only in the {where}")
    for name, tensor in wanted.items():
        other = found.own[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            raise MaskFileError(
                f"{path} does not fit: {name} is {other.dtype} {list(other.shape)},"
                f" the network's {tensor.dtype} {list(tensor.shape)}"
            )
    return [(tensor, found.own[name]) for name, tensor in wanted.items()]


def _without_task(name: str, task: int) -> str:
    """A head's or norm's parameter without its task: ``a.heads.3.bias`` -> ``a.heads.bias``."""
    *path, index, leaf = name.split(".")
    assert index == str(task), name
    return ".".join([*path, leaf])
