"""Run by test_processes: training runs, each shared by two processes that talk over gloo.

    python -m tests.training.two_processes DIRECTORY CASE,CASE[:KILL]...

Each process leaves DIRECTORY/CASE.RANK.pt of each case that two go through together. ``KILL`` is a
step: the second process is killed after it, by SIGKILL, and the same case once more goes on from
the checkpoint in DIRECTORY/CASE. They are forked from one process that has imported everything, as
in resume_run, and like it need `ONE_THREAD`.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.data import TensorDataset

from maskcl.callback import Callback
from maskcl.methods import EWC, HAT, MAS, Piggyback
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.problems import Vision
from maskcl.scenarios import from_datasets
from maskcl.training.trainer import Trainer
from tests import resume_run, tiny
from tests.test_graph_promise import trainer_of

BATCH = 16  # of all processes together


def vision(method: Any, model: str, count: int, processes: int, **more: Any) -> Trainer:
    """Two tasks; in float64, where a sum's order shows less."""
    pairs = []
    for task in range(2):
        x, y = tiny.samples(task, count)
        data = TensorDataset(x.double(), y)
        pairs.append((data, data))
    kinds = {HAT: tiny.network, Piggyback: tiny.piggyback}
    net = kinds.get(type(method), tiny.importance)(model, 2).double()
    given = {
        "epochs": 2,
        "batch_size": BATCH // processes,
        "device": "cpu",
        "progress": False,
        **more,
    }
    return Trainer(net, method, Vision(), from_datasets(pairs), tiny.OPTIMIZERS["sgd"], **given)


def inferring(processes: int, **more: Any) -> Trainer:
    """Statistics of both processes' samples, and held-out ones, and two batches a step."""
    net = tiny.importance("mlp", 2)
    net.inference = TaskInference(features=40)
    return Trainer(
        net, MAS(strength=0.05), Vision(), tiny.scenario(2), tiny.OPTIMIZERS["sgd"], epochs=2,
        batch_size=4 // processes, accumulate=2, validation=1 / 3, device="cpu", progress=False,
        **more,
    )  # fmt: skip


def graph(problem: str, processes: int, **more: Any) -> Trainer:
    method = Piggyback(lr=0.01) if problem == "node" else HAT(sparsity=0.1)
    torch.manual_seed(0)
    made = trainer_of(problem, "gcn", method, progress=False, **more)
    made.callback = more.get("callback", Callback())  # its own looks at tasks inside a step
    return made


CASES: dict[str, Any] = {
    "hat": lambda n, **more: vision(HAT(sparsity=0.3, clip=1.0), "mlp", 65, n, **more),
    "piggyback": lambda n, **more: vision(Piggyback(lr=5.0), "mlp", 66, n, **more),
    "mas": lambda n, **more: vision(MAS(reduction="batch"), "mlp", 65, n, **more),
    "ewc": lambda n, **more: vision(
        EWC(strength=100.0), "mlp", 66, n, accumulate=3, validation=0.1, **more
    ),
    "few": lambda n, **more: vision(MAS(), "mlp", 3, n, **more),
    "inferring": inferring,
    "dropout": lambda n, **more: vision(HAT(sparsity=0.3), "dropout", 50, n, **more),
    "node": lambda n, **more: graph("node", n, **more),
    "norms": lambda n, **more: vision(MAS(), "conv", 34, n, **more),
    "killed": lambda n, **more: vision(HAT(sparsity=0.3), "dropout", 50, n, **more),
    "spoilt": lambda n, **more: vision(MAS(), "conv", 34, n, callback=Spoil(), **more),
}


class Spoil(Callback):
    def on_epoch_end(self, task: int, epoch: int, *_: Any) -> None:
        if (task, epoch) == (1, 1) and self.trainer.fabric.global_rank == 1:
            buffers = self.trainer.net.named_buffers()
            *_, last = (tensor for name, tensor in buffers if name.endswith("running_mean"))
            last[0] += 1


class Kill(Callback):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            resume_run.kill()


def child(rank: int, directory: Path, cases: list[str], kill: int) -> int:
    faulthandler.dump_traceback_later(resume_run.SECONDS, exit=True)  # it waits for the other
    torch.set_num_threads(1)
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2)
    fabric.launch()
    for case in cases:
        more: dict[str, Any] = {"fabric": fabric, "directory": directory / case}
        if kill and rank == 1:
            more["callback"] = Kill(kill)
        trainer = CASES[case](2, **more)
        result = trainer.fit(resume=True)
        state = {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}
        torch.save((state, result.to_dict()), directory / f"{case}.{rank}.pt")
    torch.distributed.destroy_process_group()
    return 0


def forked(work: Callable[[int], int]) -> list[int]:
    """Exit codes of two processes that do ``work(rank)`` and can find each other."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ["LOCAL_RANK"] = str(rank)
            code = 1
            try:
                code = work(rank)
            except BaseException as error:
                print(f"process {rank}: {type(error).__name__}: {error}")
            finally:
                sys.stdout.flush()
                os._exit(code)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def main() -> None:
    directory, *arguments = sys.argv[1:]
    os.fsync = lambda descriptor: None
    for argument in arguments:
        cases, _, kill = argument.partition(":")
        names, steps = cases.split(","), int(kill or 0)
        codes = forked(lambda rank, n=names, k=steps: child(rank, Path(directory), n, k))
        print("exit", argument, *codes, flush=True)


if __name__ == "__main__":
    main()
