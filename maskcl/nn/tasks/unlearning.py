"""What a network forgets of a task: tensors as new, and a record of what they were."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.files import write_json
from maskcl.nn.tasks.task_parameters import TaskParameter
from maskcl.randomness import derive_seed
from maskcl.shards import UNSHARDED, is_sharded


@dataclasses.dataclass(frozen=True)
class Removed:
    """What was removed of one tensor.

    Attributes:
        numbers: how many elements.
        before, after: SHA-256 of their bits, in hexadecimal.
    """

    numbers: int
    before: str
    after: str


@dataclasses.dataclass(frozen=True)
class Forgotten:
    """What `forget_task` with ``reset`` removed.

    Attributes:
        task: that was forgotten.
        seed: of what was drawn.
        units: by layer, how many units only this task used: they are free now.
        weights: by parameter, how many elements only this task protected: they are free now.
        tensors: by name in the ``state_dict``, all that was written anew; of shared weights that is
            every element that no remaining task protects, those that were free before too.
    """

    task: int
    seed: int
    units: dict[str, int]
    weights: dict[str, int]
    tensors: dict[str, Removed]

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"format": "maskcl-forgotten", "version": 1, **dataclasses.asdict(self)}

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write `to_json` as a whole file or not at all.

        Raises:
            OSError: the disk is full, the folder absent, ...
        """
        write_json(path, self.to_json())

    def __str__(self) -> str:
        numbers = sum(removed.numbers for removed in self.tensors.values())
        return (
            f"task {self.task} is forgotten: {sum(self.units.values()):,} units and"
            f" {sum(self.weights.values()):,} weights are free, {numbers:,} numbers were removed"
        )


def fresh_tensors(name: str, module: nn.Module, seed: int) -> dict[str, Tensor]:
    """What a module's ``reset_parameters`` makes of its parameters and buffers, on the CPU.

    It follows from the seed, the names and the shapes alone; the module and the global generators
    stay as they are.

    Args:
        name: of the module in the network.
        module: of any kind; its children are asked each for itself.
        seed: see ``randomness.derive_seed``.

    Raises:
        RuntimeError: a module has no ``reset_parameters``, or its parameters are sharded.
    """
    found: dict[str, Tensor] = {}
    wanted = module.state_dict(keep_vars=True)
    if any(map(is_sharded, wanted.values())):
        raise RuntimeError(f"forget_task: {name!r} is sharded: {UNSHARDED}")
    own_way = getattr(module, "fresh_parameters", None)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(derive_seed(f"forget {name}", seed))
        if own_way is not None:
            return {key: value.detach() for key, value in own_way().items()}
        for prefix, part in module.named_modules():
            held = {**part._parameters, **part._buffers}
            own = [k for k, t in held.items() if t is not None and _join(prefix, k) in wanted]
            if not own:
                continue
            reset = getattr(new := _detached(part), "reset_parameters", None)
            if reset is None:
                raise RuntimeError(
                    f"forget_task: module {_join(name, prefix)!r} ({type(part).__name__}) has no"
                    " reset_parameters() that would clear what it learned"
                )
            reset()
            fresh = {**new._parameters, **new._buffers}
            for key in own:
                found[_join(prefix, key)] = fresh[key].detach()  # type: ignore[union-attr]
    return found


def fresh_own(
    model: nn.Module, own: Iterable[tuple[str, nn.Module]], seed: int
) -> dict[str, Tensor]:
    """A task's norms, head and copies of loose parameters as new, by name below ``model``.

    Args:
        model: of the network.
        own: names and modules, as ``network.own_modules`` gives them.
        seed: as for `fresh_tensors`.

    Raises:
        RuntimeError: as there.
    """
    found: dict[str, Tensor] = {}
    for name, module in own:
        holder = model.get_submodule(name.rsplit(".", 2)[0]) if name.count(".") > 1 else model
        if isinstance(holder, TaskParameter):
            found[f"{name}.value"] = holder.start
        else:
            fresh = fresh_tensors(name, module, seed)
            found |= {f"{name}.{key}": value for key, value in fresh.items()}
    return found


def rewrite(tensors: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> dict[str, Removed]:
    """Write all of ``fresh`` into the tensors of these names, and say what they held."""
    removed = {}
    for name, new in fresh.items():
        before = sha256(tensors[name])
        tensors[name].copy_(new)
        removed[name] = Removed(new.numel(), before, sha256(tensors[name]))
    return removed


def gone(tensor: Tensor) -> Removed:
    """The record of a tensor of which nothing is left."""
    return Removed(tensor.numel(), sha256(tensor), sha256(tensor.new_empty(0)))


def sha256(tensor: Tensor) -> str:
    """Of a tensor's bits in C order, in hexadecimal."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()


def _detached(module: nn.Module) -> nn.Module:
    """The module with tensors of its own, on the CPU, not filled, in float32 (float64)."""
    new = copy.copy(module)
    for holder in ("_parameters", "_buffers"):
        tensors = {k: None if t is None else _empty_like(t) for k, t in vars(new)[holder].items()}
        vars(new)[holder] = tensors
    return new


def _empty_like(tensor: Tensor) -> Tensor:
    dtype = tensor.dtype
    if dtype.is_floating_point and dtype != torch.float64:
        dtype = torch.float32
    new = torch.zeros(tensor.shape, dtype=dtype)
    return nn.Parameter(new) if isinstance(tensor, nn.Parameter) else new


def _join(prefix: str, name: str) -> str:
    return ".".join(part for part in (prefix, name) if part)
