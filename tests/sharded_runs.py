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
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # fully_shard's hooks ask for it: once here, not in every process
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Shard

from maskcl.export import compact, report
from maskcl.masks import export_masks, import_masks
from maskcl.nn import to_importance, to_plain
from maskcl.training.checks import check_kinds
from tests import sharded_ways
from tests.sharded_networks import CASES, Run
from tests.spawned import raised

PAIRS = "root", "mas", "batch", "piggyback"
SECONDS = 600  # a child takes some ten; one that hangs says where


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
    whole, sharded = Run(CASES["root"], None).net, run.net.state_dict()
    return {
        "trainer": raised(lambda: check_kinds(run.net, *[None] * 5)),
        "report": raised(lambda: report(run.net, 0, run.x[0])),
        "copied": raised(lambda: compact(run.net, 0)),
        "converted": raised(lambda: to_importance(run.net.model, 2)),
        "loaded": raised(lambda: whole.load_state_dict(sharded)),
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


def attempt(function: Callable[[], bool]) -> Any:
    try:
        return function()
    except Exception:
        return traceback.format_exc()


def pairs(processes: int, rank: int) -> dict[str, Any]:
    """Two by two: what two processes share is there twice. And "smaller": gathered by halves."""
    sizes = 2, processes // 2
    mesh = torch.distributed.init_device_mesh("cpu", sizes, mesh_dim_names=("copies", "rows"))
    cases = {name: CASES[name]._replace(options={"mesh": mesh}) for name in PAIRS}
    halves = {"reshard_after_forward": processes // 2}
    cases["smaller"] = CASES["root"]._replace(how="blocks", options=halves)
    found = {}
    for name, case in cases.items():
        run = Run(case, processes, rank)
        found[name] = {"kept": run.kept(), "state": run.whole_state()}
    return found


def messages(processes: int, rank: int) -> dict[str, dict[str, dict[str, int]]]:
    """How many messages of which kind go out, of a network sharded at the root."""
    found = {}
    for name in ("root", "mas", "batch", "piggyback"):
        run = Run(CASES[name]._replace(when="first", how="root"), processes, rank)
        run.learn(0)
        found[name] = run.counted(1)
    return found


def flattened(processes: int, rank: int) -> dict[str, str]:
    """Other engines around a network."""
    found = {}
    for name in ("root", "piggyback", "mas"):
        for is_kept in (True, False):
            run, cpu = Run(CASES[name]._replace(when="never"), processes, rank), torch.device("cpu")
            FullyShardedDataParallel(run.net, use_orig_params=is_kept, device_id=cpu)
            found[f"{name} {is_kept}"] = raised(partial(run.learn, 0))
    return found


def child(directory: Path, processes: int, rank: int) -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # it waits for the other
    torch.set_num_threads(1)
    path = f"file://{directory}/meeting.{processes}"
    torch.distributed.init_process_group("gloo", path, rank=rank, world_size=processes)
    found: dict[str, Any] = {}
    if processes == 4:
        torch.save(pairs(processes, rank), directory / f"{processes}.{rank}.pt")
        torch.distributed.destroy_process_group()
        return
    for name, case in CASES.items():
        found[name] = Run(case, processes, rank).result()
    if processes == 1:
        found["compiled"] = attempt(
            partial(sharded_ways.compiled, partial(sharded_ways.make, 1, 0))
        )
    if processes == 2:
        own = partial(sharded_ways.make, processes, rank)
        found["ways"] = {n: attempt(partial(way, own)) for n, way in sharded_ways.WAYS.items()}
        found["flattened"] = flattened(processes, rank)
        found["messages"] = messages(processes, rank)
    found["lost"] = lost(processes, rank)
    found["refusals"] = refusals(processes, rank)
    found["travelled"] = travelled(directory / f"masks.{processes}.{rank}", processes, rank)
    torch.save(found, directory / f"{processes}.{rank}.pt")
    torch.distributed.destroy_process_group()


def main() -> None:
    directory = Path(sys.argv[1])
    children = []
    for processes, rank in ((1, 0), (2, 0), (2, 1), *((4, rank) for rank in range(4))):
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
