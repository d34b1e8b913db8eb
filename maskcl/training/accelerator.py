"""Where a run computes and how precisely: the Fabric of a trainer that was given none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
DEVICES = ("auto", "cpu", "cuda")


def make_fabric(device: str, precision: str, processes: int = 1, nodes: int = 1) -> Fabric:
    """A Fabric of one process, or of several that somebody else starts, to be launched.

    Args:
        device: one of ``DEVICES``; ``auto`` is CUDA where there is one.
        precision: one of ``PRECISIONS``.
        processes: on each computer.
        nodes: computers.

    Raises:
        ValueError: it is neither, or there is no such device here.
    """
    from lightning_fabric import Fabric

    if device not in DEVICES:
        raise ValueError(f"Trainer: device is {device!r}, wanted one of {', '.join(DEVICES)}")
    if precision not in PRECISIONS:
        wanted = ", ".join(PRECISIONS)
        raise ValueError(f"Trainer: precision is {precision!r}, wanted one of {wanted}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("Trainer: device is 'cuda', and torch finds no CUDA device here")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "16" and device == "cpu":
        raise ValueError(
            "Trainer: precision is '16', float16 with a scaled loss, which is for CUDA, and the"
            " device is the CPU; wanted bf16 or 32"
        )
    strategy = "ddp" if processes * nodes > 1 else "auto"
    kind: Any = PRECISIONS[precision]
    return Fabric(
        accelerator=device, strategy=strategy, devices=processes, num_nodes=nodes, precision=kind
    )
