"""Run by test_shards: sharded networks, in one process and in two that talk over gloo.

    python -m tests.sharded_runs DIRECTORY

Each process leaves DIRECTORY/PROCESSES.RANK.pt. They are forked from one that has imported
everything, and need `resume_run.ONE_THREAD`.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from maskcl.masks import export_masks, import_masks
from maskcl.nn import to_plain
from tests import resume_run
from tests.sharded_networks import CASES, Run


def lost(processes: int, rank: int) -> dict[str, Any]:
    """The second task without protection, then its end."""
    run = Run(CASES["inside"]._replace(when="first"), processes, rank)
    run.learn(0)
    before = run.outputs(0)
    run.learn(1, protected=False)
    return {"same": torch.equal(before, run.outputs(0)), "said": raised(run.net.check_kept)}


def refusals(processes: int, rank: int) -> dict[str, str]:
    """What wants a whole network, or comes at a time when it cannot be done."""
    run = Run(CASES["inside"]._replace(when="first"), processes, rank)
    run.learn(0)
    late = Run(CASES["piggyback"]._replace(when="never"), processes, rank)
    begun = late.case.method.begin_task(late.net, 0)
    late.shard()
    apart = Run(CASES["piggyback"]._replace(when="never"), processes, rank)
    apart.count = 1  # nobody exchanges what is not sharded
    fully_shard(apart.net.model[1], mesh=torch.distributed.init_device_mesh("cpu", (processes,)))
    mesh = torch.distributed.init_device_mesh("cpu", (processes,))
    even = Run(CASES["root"]._replace(when="never", model="even"), processes, rank)
    fully_shard(even.net, mesh=mesh, shard_placement_fn=lambda p: Shard(1) if p.dim() > 1 else None)
    return {
        "to_plain": raised(lambda: to_plain(run.net, 0)),
        "grow": raised(lambda: run.net.grow(2)),
        "add_tasks": raised(lambda: run.net.add_tasks(1)),
        "forget": raised(lambda: run.net.forget_task(0, reset=True)),
        "scores": raised(lambda: late.case.method.parameter_groups(late.net, begun.task)),
        "columns": raised(lambda: even.learn(0)),
        "apart": raised(lambda: apart.learn(0)),
    }


def travelled(path: Path, processes: int, rank: int) -> dict[str, bool]:
    """Whether a state that a sharded network gave away makes another, unsharded or sharded, equal.

    And masks in a file, into an unsharded network of the same base.
    """
    run = Run(CASES["root"], processes, rank)
    run.learn(0)
    options = StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(run.net, options=options)
    plain = Run(CASES["root"], None)
    if rank == 0:
        plain.net.load_state_dict(state)
    again = Run(CASES["root"], processes, rank)
    again.net.load_state_dict(run.net.state_dict())
    again.learn(1)
    masks, other = Run(CASES["piggyback"], processes, rank), Run(CASES["piggyback"], None)
    masks.learn(0)
    export_masks(masks.net, 0, path)
    import_masks(other.net, path)
    wanted = run.outputs(0)
    return {
        "whole": rank > 0 or bool(torch.allclose(plain.outputs(0), wanted)),
        "own": torch.equal(again.outputs(0), wanted),
        "masks": bool(torch.allclose(other.outputs(0), masks.outputs(0))),
    }


def raised(function: Callable[[], Any]) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def child(directory: Path, processes: int, rank: int) -> None:
    faulthandler.dump_traceback_later(resume_run.SECONDS, exit=True)  # it waits for the other
    torch.set_num_threads(1)
    path = f"file://{directory}/meeting.{processes}"
    torch.distributed.init_process_group("gloo", path, rank=rank, world_size=processes)
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        found[name] = Run(case, processes, rank).result()
    found["lost"] = lost(processes, rank)
    found["refusals"] = refusals(processes, rank)
    found["travelled"] = travelled(directory / f"masks.{processes}.{rank}", processes, rank)
    torch.save(found, directory / f"{processes}.{rank}.pt")
    torch.distributed.destroy_process_group()


def main() -> None:
    directory = Path(sys.argv[1])
    children = []
    for processes, rank in ((1, 0), (2, 0), (2, 1)):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                child(directory, processes, rank)
                code = 0
            except BaseException:
                traceback.print_exc(file=sys.stdout)
            finally:
                sys.stdout.flush()
                os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    print("exit", *codes)


if __name__ == "__main__":
    main()
