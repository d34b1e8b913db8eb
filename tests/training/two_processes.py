"""Run by test_trainer: one training run shared by two processes that talk over gloo.

    python -m tests.training.two_processes DIRECTORY

Each leaves DIRECTORY/RANK.pt. They are forked from one process that has imported everything, as in
resume_run, and like it need `ONE_THREAD`.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys

import torch
from lightning_fabric import Fabric

from maskcl.methods import MAS
from maskcl.nn.inference.task_inference import TaskInference
from maskcl.problems import Vision
from maskcl.training.trainer import Trainer
from tests import resume_run, tiny

BATCH = 8  # of both together


def train(fabric: Fabric | None, processes: int) -> Trainer:
    """Two tasks of 24 samples, which processes share in equal parts."""
    torch.set_num_threads(1)
    net = tiny.importance("mlp", 2)
    net.inference = TaskInference(features=40)  # its statistics are of both processes' samples
    trainer = Trainer(
        net,
        MAS(strength=0.05),
        Vision(),
        tiny.scenario(2),
        tiny.OPTIMIZERS["sgd"],
        epochs=2,
        batch_size=BATCH // processes // 2,
        accumulate=2,
        validation=1 / 3,
        device="cpu",
        fabric=fabric,
    )
    trainer.fit()
    return trainer


def child(rank: int, directory: str) -> None:
    faulthandler.dump_traceback_later(resume_run.SECONDS, exit=True)  # it waits for the other
    os.environ["LOCAL_RANK"] = str(rank)
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2)
    fabric.launch()
    trainer = train(fabric, 2)
    state = {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}
    torch.save((state, trainer.result.to_dict()), os.path.join(directory, f"{rank}.pt"))
    torch.distributed.destroy_process_group()
    os._exit(0)


def main() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(free.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            try:
                child(rank, sys.argv[1])
            finally:
                os._exit(1)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children))


if __name__ == "__main__":
    main()
