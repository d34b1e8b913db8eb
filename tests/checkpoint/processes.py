"""Run by test_sharded: loops under ``fully_shard`` that are saved, killed and gone on with.

    python -m tests.checkpoint.processes DIRECTORY

Two processes learn, save in the midst of a task and go on; then one, two and four take the
checkpoint up. Each leaves DIRECTORY/STAGE.RANK.pt. They are forked from one process that has
imported everything, as in sharded_runs, and like it need `resume_run.ONE_THREAD`.
"""

from __future__ import annotations

import faulthandler
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskcl import tensor_file
from maskcl.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_network,
    load_training,
    network_state,
    optimizer_state,
    save_checkpoint,
    save_training,
)
from maskcl.checkpoint.parts import folder_of
from maskcl.methods import Piggyback, TaskData
from maskcl.shards import is_sharded, whole
from tests.sharded_networks import CASES, Case, Run
from tests.spawned import raised

STEPS = 3
SECONDS = 600  # a child takes a few; one that hangs says where
KEPT = {
    "hat": CASES["conv"]._replace(make=CASES["guard_clip"].make),  # NAdam, behind a guard
    "mas": CASES["mas"],
    "piggyback": CASES["piggyback"]._replace(method=Piggyback(score_dtype="bfloat16")),
}
CONFIG = {"seed": 3}
Told = dict[str, Any]


def steps(run: Run, task: int, state: Any, optimizer: Any, first: int, last: int) -> None:
    """A loop of one's own, with chance in it."""
    guard = run.case.method.protect(optimizer, run.net, state)
    for step in range(first, last):
        run.case.method.before_step(run.net, state, step / (STEPS - 1))
        optimizer.zero_grad()
        x = run.x[task] + 0.1 * torch.randn_like(run.x[task])
        with run.net.task(task, state.scale):
            loss = torch.nn.functional.cross_entropy(run.net(x), run.y[task])
            (loss + run.case.method.loss_term(run.net, state)).backward()
        run.average(optimizer)
        run.case.method.after_backward(run.net, state)
        optimizer.step()
        run.case.method.after_step(run.net, state)
    if guard is not None:
        guard.remove()


def data(run: Run, task: int) -> TaskData:
    return TaskData(lambda: iter([(run.x[task], run.y[task])]))


def state_of(net: Any) -> dict[str, Tensor]:
    return {name: whole(t).clone() for name, t in network_state(net)[0].items()}


def learn(case: Case, path: Path, processes: int, rank: int) -> Told:
    """The first task, half of the second, a checkpoint, and the rest."""
    run = Run(case, processes, rank)
    torch.manual_seed(100 + rank)
    run.learn(0)
    state = case.method.begin_task(run.net, 1)
    optimizer = case.make(case.method.parameter_groups(run.net, 1))
    steps(run, 1, state, optimizer, 0, 2)
    position = {"task": 1, "step": 2}
    for _ in range(2):  # the second time what lasts is there
        save_training(path, run.net, position, state, optimizer, config=CONFIG, facts={"x": 1})
    saved = state_of(run.net)
    moments = {name: whole(t).clone() for name, t in optimizer_state(optimizer)[0].items()}
    steps(run, 1, state, optimizer, 2, STEPS)
    case.method.end_task(run.net, state, data(run, 1))
    end = {"end": state_of(run.net), "chance": torch.rand(3)}
    return {"saved": saved, "optimizer": moments, **end}


def resume(case: Case, path: Path, processes: int | None, rank: int) -> Told:
    """Another network takes the checkpoint up and goes on, where two did."""
    run = Run(case, processes, rank)
    found = load_training(path, run.net, case.method, case.make, config=CONFIG)
    saved = state_of(run.net)
    kinds = {is_sharded(t) for t in run.net.state_dict().values()}
    moments = {name: whole(t).clone() for name, t in optimizer_state(found.optimizer)[0].items()}
    told = {
        "saved": saved, "optimizer": moments, "facts": found.facts, "position": found.position,
        "is_sharded": True in kinds,
    }  # fmt: skip
    if processes == 2:
        steps(run, 1, found.state, found.optimizer, found.position["step"], STEPS)
        case.method.end_task(run.net, found.state, data(run, 1))
        told |= {"end": state_of(run.net), "chance": torch.rand(3)}
    return told


def refusals(folder: Path, processes: int, rank: int) -> Told:
    """Wrong checkpoints: every process says so, and none waits for another."""
    case, path = KEPT["piggyback"]._replace(how="root"), folder / "piggyback.safetensors"
    told = {}
    for name, spoil in SPOILT.items():
        copy = folder / "wrong" / f"{name}.safetensors"
        if rank == 0:
            shutil.copytree(folder_of(path), folder_of(copy))
            shutil.copy(path, copy)
            spoil(copy)
        torch.distributed.barrier()
        run = Run(case, processes, rank)
        before = state_of(run.net)
        told[name] = raised(lambda r=run, c=copy: load_training(c, r.net, case.method, case.make))
        now = state_of(run.net)
        del now["network._extra_state"], before["network._extra_state"]  # a task has begun
        assert all(torch.equal(now[n].nan_to_num(), before[n].nan_to_num()) for n in before), name
    run = Run(KEPT["hat"], processes, rank)
    told["other"] = raised(lambda: load_training(path, run.net, run.case.method, run.case.make))
    told["bare"] = raised(lambda: load_training(path, run.net))
    told["config"] = raised(lambda: load_training(path, run.net, config={"seed": 4}))
    return told


def _edit(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) > 0
    path.write_bytes(content.replace(old, new))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _parts(path: Path) -> list[Path]:
    return sorted(folder_of(path).glob("process-1-*"))


def _swap(path: Path) -> None:
    """A whole part of another checkpoint under this one's name."""
    (part,) = _parts(path)
    (other,) = _parts(path.parents[1] / "mas.safetensors")
    shutil.copy(other, part)


SPOILT: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: _parts(path)[0].unlink(),
    "truncated": lambda path: os.truncate(_parts(path)[0], _parts(path)[0].stat().st_size - 100),
    "altered": lambda path: _flip(_parts(path)[0]),
    "json": lambda path: _edit(path, b'\\"step\\": 2', b'\\"step\\": 3'),
    "swapped": _swap,
    "gone": Path.unlink,
}


def failing(folder: Path, processes: int, rank: int) -> Told:
    """The second process's disk is full: all raise, and what was there stays."""
    run = Run(KEPT["hat"], processes, rank)
    path = folder / "full.safetensors"
    saved = Checkpoint({}, {"step": 1}, *_of(run))
    save_checkpoint(path, saved)
    write = tensor_file.replacing

    def full(path: Any) -> Any:
        raise OSError(28, "No space left on device", str(path))

    with torch.no_grad():
        for parameter in run.net.parameters():
            parameter.add_(1)
    if rank == 1:
        tensor_file.replacing = full
    said = raised(lambda: save_checkpoint(path, Checkpoint({}, {"step": 2}, *_of(run))))
    tensor_file.replacing = write
    found = load_checkpoint(path, like=saved.tensors)
    return {"said": said, "step": found.position["step"], "tensors": load_checkpoint(path).tensors}


def _of(run: Run) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return network_state(run.net)[0], {}


def single(folder: Path, processes: int, rank: int) -> Told:
    """A single file of one unsharded network, into sharded ones."""
    told = {}
    for name, case in KEPT.items():
        path = folder / f"single-{name}.safetensors"
        run = Run(case, processes, rank)
        saved = load_checkpoint(path, like=network_state(run.net)[0])
        load_network(run.net, saved.tensors, path)
        told[name] = state_of(run.net)
        again = Run(case, processes, rank)
        load_network(again.net, load_checkpoint(path).tensors, path)  # all of it, then cut
        now = state_of(again.net)
        assert all(torch.equal(t, now[n]) for n, t in told[name].items())
    return told


def child(folder: Path, stage: str, processes: int, rank: int) -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # it waits for the others
    torch.set_num_threads(1)
    path = f"file://{folder}/meeting.{stage}.{processes}"
    torch.distributed.init_process_group("gloo", path, rank=rank, world_size=processes)
    told: Told = {}
    work = learn if stage == "learn" else resume
    for name, case in KEPT.items():
        told[name] = work(case, folder / f"{name}.safetensors", processes, rank)
    if (stage, processes) == ("resume", 2):
        told["refusals"] = refusals(folder, processes, rank)
        told["failing"] = failing(folder, processes, rank)
        told["single"] = single(folder, processes, rank)
    torch.save(told, folder / f"{stage}-{processes}.{rank}.pt")
    torch.distributed.destroy_process_group()


def alone(folder: Path) -> None:
    """One process, nothing sharded, no process group: takes all up, and writes single files."""
    torch.set_num_threads(1)
    told = {}
    for name, case in KEPT.items():
        told[name] = resume(case, folder / f"{name}.safetensors", None, 0)
        run = Run(case, None)
        run.learn(0)
        save_training(folder / f"single-{name}.safetensors", run.net, {"task": 1})
        told[f"single-{name}"] = state_of(run.net)
    torch.save(told, folder / "alone.pt")


def forked(work: Callable[[int], None], processes: int) -> list[int]:
    children = []
    for rank in range(processes):
        children.append(os.fork())
        if children[-1] == 0:
            code = 1
            try:
                work(rank)
                code = 0
            except BaseException:
                traceback.print_exc(file=sys.stdout)
            finally:
                sys.stdout.flush()
                os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def main() -> None:
    folder = Path(sys.argv[1])
    (folder / "wrong").mkdir()
    for case in KEPT.values():  # whatever is imported late
        Run(case, None)
    codes = forked(lambda rank: child(folder, "learn", 2, rank), 2)
    codes += forked(lambda _: alone(folder), 1)
    for processes in (1, 2, 4):
        codes += forked(lambda rank, n=processes: child(folder, "resume", n, rank), processes)
    print("exit", *codes)


if __name__ == "__main__":
    main()
