"""Whether finished tasks still have the very bits that their outputs depend on.

An optimizer that steps past the guard, an unfrozen part, a value written by hand: whatever it was,
it shows when the task in training ends, and nothing is recorded then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from maskcl.nn.tasks.bits import fingerprint

Fingerprints = Mapping[str, Tensor]


def state_fingerprints(net: nn.Module, without: Iterable[str]) -> dict[str, Tensor]:
    """Fingerprints of a network's parameters and persistent buffers.

    Args:
        net: the network.
        without: names, or their beginnings if these end in a dot, to leave out.
    """
    names = set(without)
    begins = tuple(name for name in names if name.endswith("."))
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    kept = net.state_dict().keys() & tensors.keys()
    return {
        name: fingerprint(tensor)
        for name, tensor in tensors.items()
        if name in kept and name not in names and not name.startswith(begins)
    }


def check_kept(caller: str, before: Fingerprints, now: Fingerprints) -> None:
    """Raise unless all that finished tasks need is what it was when the task began.

    Raises:
        RuntimeError: the message names what changed.
    """
    changed = [name for name in before if name not in now]
    same = [name for name in before if name in now]
    if same:
        differs = torch.stack([(before[n] != now[n].to(before[n].device)).cpu() for n in same])
        changed += [name for name, d in zip(same, differs.tolist(), strict=True) if d]
    if changed:
        names = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if changed[5:] else "")
        raise RuntimeError(
            f"{caller}: what finished tasks need has changed while this task trained: {names}."
            " Nothing was recorded. An optimizer stepped past the guard (a wrapper with a step of"
            " its own, one of two optimizers: call protect() on the one that steps), or values"
            " were written by other code; go back to a checkpoint of before the task"
        )


def check_ranks(caller: str, net: nn.Module) -> None:
    """Raise unless all processes of a distributed run hold the same parameters, bit for bit.

    Every process has to call it. Shards, which differ rightly, are not compared, nor running
    statistics, which each process gathers from its own samples.

    Raises:
        RuntimeError: parameters differ; the message names them.
    """
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if distributed.get_world_size() == 1:
        return
    whole = {n: p for n, p in net.named_parameters() if not hasattr(p, "placements")}
    if not whole:
        return
    mine = torch.stack([fingerprint(p) for p in whole.values()])
    everyones = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(everyones, mine)
    differs = torch.stack([other != everyones[0] for other in everyones]).any(0).tolist()
    names = [name for name, d in zip(whole, differs, strict=True) if d]
    if names:
        raise RuntimeError(
            f"{caller}: processes hold different values of {', '.join(names[:5])}"
            f"{' and more' if names[5:] else ''}. DistributedDataParallel exchanges the gradients"
            " of parameters that require them when it wraps the network: wrap it anew after each"
            " begin_task"
        )
