"""Whether finished tasks still have the very bits that their outputs depend on.

An optimizer that steps past the guard, an unfrozen part, a value written by hand: whatever it was,
it shows when the task in training ends or the next begins, and nothing is recorded then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.collective import processes
from maskcl.nn.tasks.bits import fingerprint, fingerprints
from maskcl.nn.tasks.own_parts import holders, shared_modules
from maskcl.shard_sums import totals
from maskcl.shards import is_sharded, local

_CHILDREN = attrgetter("_modules")


@dataclass
class KeptBits:
    """Fingerprints of all that finished tasks' outputs depend on.

    Attributes:
        done: the finished tasks.
        shared: by name in the ``state_dict``, of what there is once.
        own: by name with ``{}`` for the task, int64 [len(done)]: of what each task has.
    """

    done: list[int]
    shared: dict[str, Tensor]
    own: dict[str, Tensor]

    def named(self) -> dict[str, Tensor]:
        """By name in the ``state_dict``, one 0-d tensor each."""
        named = dict(self.shared)
        for name, hashes in self.own.items():
            named |= zip(map(name.format, self.done), hashes.unbind(), strict=True)
        return named


def state_fingerprints(
    net: nn.Module, model: nn.Module, done: list[int], without: Collection[str]
) -> KeptBits:
    """Fingerprints of a network's parameters and persistent buffers.

    Integers that are counted up in forwards (0-d buffers) are left out: they say how often.

    Args:
        net: the network.
        model: its model; what unfinished tasks have to themselves there is left out.
        done: the finished tasks.
        without: names of tensors, and of modules of the network, to leave out.
    """
    found = KeptBits(done, {}, {})
    parts = [("", net)]
    for child, module in net._modules.items():
        if module is not None and child not in without:
            parts += shared_modules(module, child)
    tensors: dict[str, Tensor] = {}
    for name, module in parts:
        tensors |= _named_tensors(f"{name}." if name else "", module)
    for name, held in holders(model):
        kids = list(map(list(held).__getitem__, done))
        if not _add_alike(found, f"model.{name}.{{}}", kids):
            for task, kid in zip(done, kids, strict=True):
                for inner, module in kid.named_modules(prefix=f"model.{name}.{task}"):
                    tensors |= _named_tensors(f"{inner}.", module)
    # A tensor of two names goes by its first, and is left out by either.
    left_out = {id(tensors[n]) for n in without if n in tensors}
    once = {id(t): n for n, t in reversed(tensors.items()) if id(t) not in left_out}
    kept = set(once.values())
    shared = {n: tensor for n, tensor in tensors.items() if n in kept}
    if any(map(is_sharded, shared.values())):  # in one message
        hashes = iter(fingerprints(list(shared.values())))
    else:
        hashes = map(fingerprint, shared.values())
    found.shared |= zip(shared, hashes, strict=True)
    return found


def _add_alike(found: KeptBits, name: str, kids: list[nn.Module]) -> bool:
    """Take tasks' modules together; False, with nothing done, where they are built differently."""
    if not kids or any(map(_CHILDREN, kids)):
        return False
    own: dict[str, list[Tensor]] = {}
    for kind in ("_parameters", "_buffers"):
        held: list[dict[str, Any]] = list(map(attrgetter(kind), kids))
        if len(set(map(tuple, held))) > 1:
            return False
        for key in _named_tensors("", kids[0]).keys() & held[0].keys():
            own[f"{name}.{key}"] = list(map(itemgetter(key), held))
    if not set(map(type, chain.from_iterable(own.values()))) <= {Tensor, nn.Parameter}:
        return False
    found.own |= {key: fingerprints(tensors) for key, tensors in own.items()}
    return True


def _named_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """What a module itself adds to the ``state_dict``, but for what is counted up."""
    held: dict[str, Any] = {**module._parameters, **module._buffers}
    return {
        prefix + name: tensor
        for name, tensor in held.items()
        if tensor is not None and name not in module._non_persistent_buffers_set
        if tensor.dim() or tensor.is_floating_point()
    }


def changed_since(caller: str, before: KeptBits, now: KeptBits) -> str | None:
    """A sentence that names what finished tasks need and is no longer what it was; None if all is.

    Args:
        caller: named in it.
        before: fingerprints of when the last task was finished.
        now: of now.
    """
    was, found = before.shared, now.shared
    if before.own and not _same_own(before, now):
        was, found = before.named(), now.named()
    changed = [name for name in was if name not in found]
    same = [name for name in was if name in found]
    if same:
        differs = torch.stack([(was[n] != found[n].to(was[n].device)).cpu() for n in same])
        changed += [name for name, d in zip(same, differs.tolist(), strict=True) if d]
    if not changed:
        return None
    names = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if changed[5:] else "")
    return (
        f"{caller}: what finished tasks need has changed since the last one was finished: {names}."
        " Nothing was recorded. An optimizer stepped past the guard (a wrapper with a step of its"
        " own, one of two optimizers, an old guard: call protect() on the one that steps, anew for"
        " each task), or values were written by other code; go back to a checkpoint of before"
    )


def _same_own(before: KeptBits, now: KeptBits) -> bool:
    if before.done != now.done or before.own.keys() != now.own.keys():
        return False
    return all(torch.equal(hashes, now.own[name]) for name, hashes in before.own.items())


def not_finite(caller: str, parameters: Mapping[str, Tensor]) -> str | None:
    """A sentence that names shared parameters with NaN or an infinity; None where there is none.

    A finished task multiplies what later tasks train by exact zeros, and 0 * inf is no 0. Of
    sharded parameters every process has to call it.

    Args:
        caller: named in it.
        parameters: by name.
    """
    flags = []
    for parameter in parameters.values():
        part = local(parameter.detach())
        bad = ~torch.stack(part.aminmax()).isfinite().all() if part.numel() else part.new_zeros(())
        flags.append(bad.to(torch.int64))
    found = totals(flags, list(parameters.values())).tolist() if flags else []
    names = [name for name, flag in zip(parameters, found, strict=True) if flag]
    if not names:
        return None
    return (
        f"{caller}: training has diverged: {', '.join(names[:5])}{' and more' if names[5:] else ''}"
        " hold NaN or infinities, which finished tasks multiply by 0 and would put out as NaN."
        " Nothing was recorded. Go back to a checkpoint, or draw anew what no finished task needs,"
        " by net.forget_task(task, reset=True) of the task that diverged; then take a smaller rate"
    )


class FinishedTasks:
    """Which tasks were finished when a task began: its protection knows of these alone.

    Args:
        net: the network.
        task: that begins.
    """

    def __init__(self, net: Any, task: int) -> None:
        finished: Tensor = net.finished
        self._seen = finished, finished._version
        self._tasks = finished.tolist()
        self._task, self._resets = task, net.times_reset(task)

    def check(self, caller: str, net: Any) -> None:
        """Raise unless the same tasks are finished now; waits for the device only after a change.

        Raises:
            RuntimeError: the message names the tasks; or the task itself was forgotten.
        """
        finished: Tensor = net.finished
        if net.times_reset(self._task) != self._resets:
            raise RuntimeError(
                f"{caller}: task {self._task} was forgotten after it began, and its optimizer"
                " remembers it: begin it again, and build its optimizer and guard after it"
            )
        if finished is self._seen[0] and finished._version == self._seen[1]:
            return
        now = finished.tolist()
        both = zip_longest(self._tasks, now, fillvalue=False)  # tasks may have been added
        others = [k for k, (a, b) in enumerate(both) if a != b]
        if others:
            raise RuntimeError(
                f"{caller}: tasks {others} were finished or forgotten (or a state was loaded) after"
                " this task began, and its protection knows nothing of that: begin it again, and"
                " build its optimizer and guard after it"
            )
        self._seen = finished, finished._version


def check_ranks(caller: str, net: nn.Module, problem: str | None = None) -> None:
    """Raise unless all processes of a distributed run hold the same parameters, bit for bit.

    Every process has to call it. Shards, which differ rightly, are not compared, nor running
    statistics, which each process gathers from its own samples.

    Args:
        caller: named in the message.
        net: the network.
        problem: what this process has found already; all raise then, so that none waits for it.

    Raises:
        RuntimeError: there is a problem here or elsewhere, or parameters differ.
    """
    count, _ = processes()
    if count == 1:
        if problem:
            raise RuntimeError(problem)
        return
    whole = {n: p for n, p in net.named_parameters() if not is_sharded(p)}
    device = next((p.device for p in whole.values()), torch.device("cpu"))
    flag = torch.tensor(int(problem is not None), dtype=torch.int64, device=device)
    mine = torch.stack([flag, *(fingerprint(p) for p in whole.values())])
    everyones = [torch.empty_like(mine) for _ in range(count)]
    torch.distributed.all_gather(everyones, mine)
    if problem:
        raise RuntimeError(problem)
    if any(int(other[0]) for other in everyones):
        raise RuntimeError(f"{caller}: another process has found what finished tasks need changed")
    differs = torch.stack([other[1:] != everyones[0][1:] for other in everyones]).any(0).tolist()
    names = [name for name, d in zip(whole, differs, strict=True) if d]
    if names:
        raise RuntimeError(
            f"{caller}: processes hold different values of {', '.join(names[:5])}"
            f"{' and more' if names[5:] else ''}. DistributedDataParallel exchanges the gradients"
            " of parameters that require them when it wraps the network: wrap it anew after each"
            " begin_task. fully_shard exchanges those of what it is given: after a network's blocks"
            " give it the network itself"
        )


def share_statistics(modules: Iterable[nn.Module]) -> None:
    """Give all processes of a distributed run the first one's buffers, as its forwards do.

    Running statistics are gathered from each process's own samples: those of a task that ends have
    to be the same everywhere from then on. Every process has to call it.

    Args:
        modules: a task's norms, and what else is its own.
    """
    if processes()[0] > 1:
        for module in modules:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)
