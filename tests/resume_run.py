"""Run by test_checkpoint: a small training run, killed as the arguments say, then resumed.

    python -m tests.resume_run DIRECTORY CASE:KILL...

Each is a child process that goes on from DIRECTORY/CASE's checkpoint and is killed by SIGKILL:
``step:N`` after its Nth step, ``write:N`` while its Nth checkpoint is written but not renamed,
``rename:N`` right after its Nth is, ``after:SECONDS`` whenever that may be. ``none`` runs to the
end. Children are forked from one process that has gone through such a run, in another directory:
what is imported late is there, and each child starts in milliseconds. A fork copies one thread and
the locks of all: the process must have no other, so its libraries are told so by `ONE_THREAD`.
A kill loses nothing that the kernel has, so nothing waits for a disk here: test_checkpoint looks
at fsync by itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import tempfile
import threading
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from maskcl.methods import HAT, MAS, Piggyback
from maskcl.nn.tasks.network import TaskNetwork
from maskcl.problems import Vision
from maskcl.training.trainer import Callback, Result, Trainer
from maskcl.training.validation import Validation
from tests import tiny

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
SECONDS = 600  # a child takes one or two; one that hangs says where
CASES = {
    "adamw": (HAT(sparsity=0.3, clip=1.0), "conv", "adamw"),
    "dropout": (HAT(sparsity=0.3), "dropout", "adam"),
    "random": (HAT(sparsity=0.3, rule="random"), "mlp", "momentum"),
    "piggyback": (Piggyback(lr=1e-2, head_lr=2e-2), "conv", "adamw"),
    "scores": (Piggyback(levels="ternary", spread="uniform", lr=0.5), "dropout", "momentum"),
    "mas": (MAS(strength=0.1, decay=0.9), "dropout", "adamw"),
    "onecycle": (HAT(sparsity=0.3), "conv", "adamw"),
    "plateau": (Piggyback(lr=0.3, head_lr=2e-2), "dropout", "momentum"),
}
# What some train with beside: batches that give as many steps an epoch as the others have.
MORE: dict[str, dict[str, Any]] = {
    "onecycle": {
        "scheduler_fn": lambda optimizer, steps: OneCycleLR(optimizer, 0.03, total_steps=steps),
        "schedule_by": "step",
        "validation": Validation(0.25, patience=2),
        "evaluate": 2,
        "batch_size": 2,
        "accumulate": 2,
    },
    "plateau": {
        "scheduler_fn": lambda optimizer, _: ReduceLROnPlateau(optimizer, patience=0),
        "validation": Validation(0.25),
        "evaluate": "last",
    },
}


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class KillAtStep(Callback):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, task, epoch, batch, loss) -> None:
        self.left -= 1
        if self.left == 0:
            kill()


def kill_at_rename(count: int, *, before: bool) -> None:
    replace, left = os.replace, count

    def replacing(source, target) -> None:
        nonlocal left
        left -= 1
        if left == 0 and before:
            kill()
        replace(source, target)
        if left == 0:
            kill()

    os.replace = replacing


def train(directory: str, case: str, *, callback: Callback | None = None) -> tuple[dict, Result]:
    """The run from its start or its checkpoint to its end."""
    torch.set_num_threads(1)
    method, model, optimizer = CASES[case]
    net: TaskNetwork
    if isinstance(method, Piggyback):
        net = tiny.piggyback(model, 3, levels=method.levels, norms="task")
    elif isinstance(method, MAS):
        net = tiny.importance(model, 3)
    else:
        net = tiny.network(model, 3)
    trainer = Trainer(
        net,
        method,
        Vision(),
        tiny.scenario(3),
        tiny.OPTIMIZERS[optimizer],
        seed=11,
        device="cpu",
        directory=directory,
        callback=callback,
        **{"epochs": 3, "batch_size": 5, **MORE.get(case, {})},
    )
    result = trainer.fit(resume=True)
    return net.state_dict(), result


def child(directory: str, case: str, how: str) -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    kind, _, value = how.partition(":")
    callback = None
    match kind:
        case "step":
            callback = KillAtStep(int(value))
        case "write" | "rename":
            kill_at_rename(int(value), before=kind == "write")
        case "after":
            threading.Timer(float(value), kill).start()
    state, result = train(directory, case, callback=callback)
    torch.save(state, os.path.join(directory, "net.pt"))
    np.savez(
        os.path.join(directory, "result.npz"),
        matrix=result.matrix,
        losses=np.concatenate(result.losses),
        validation=np.concatenate(result.validation),
    )
    os._exit(0)


def main() -> None:
    directory, *kills = sys.argv[1:]
    os.fsync = lambda descriptor: None
    with contextlib.suppress(ImportError):
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # else a bar, whoever draws it, starts a thread
        # Its own lock is a semaphore that all forks share: one killed inside keeps it for good.
        tqdm.set_lock(threading.RLock())
    with tempfile.TemporaryDirectory() as other:
        train(other, "adamw")
    threads = os.listdir("/proc/self/task") if os.path.isdir("/proc/self/task") else [""]
    if len(threads) > 1:
        sys.exit(f"resume_run forks, and {len(threads)} threads run: start it with {ONE_THREAD}")
    for argument in kills:
        case, _, how = argument.partition(":")
        pid = os.fork()
        if pid == 0:
            try:
                child(os.path.join(directory, case), case, how)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        # A child with a timer may have come to its end first.
        if os.WIFSIGNALED(status):
            print(argument, "killed", os.WTERMSIG(status), flush=True)
        else:
            print(argument, "exit", os.WEXITSTATUS(status), flush=True)


if __name__ == "__main__":
    main()
