"""``maskcl reproduce``: a published table run again, ours beside theirs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from maskcl import scenarios
from maskcl.cli.environment import environment
from maskcl.cli.options import CommandError, Options, option

if TYPE_CHECKING:
    from rich.console import Console

    from maskcl.reproduce.table import Published


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceOptions(Options):
    """Split MNIST of Hsu et al. 2018, table 2: Adam, EWC and MAS, ours beside the published."""

    data: str = option("Folder with MNIST's idx files (never written to).")
    seeds: int = option("How many, from 0.", 10, at_least=1)
    out: str | None = option(
        "Folder for results.json and results.txt; runs that it holds are not run again.", None
    )
    device: str = option("auto, cpu, cuda.", "auto", choices=("auto", "cpu", "cuda"))


def reproduce(table: Published, options: ReproduceOptions, console: Console) -> str:
    """Run what is missing; returns the table as text.

    Raises:
        CommandError: it cannot start; nothing has been written then.
    """
    from maskcl.reproduce import runs

    if options.device == "cuda" and not torch.cuda.is_available():
        raise CommandError("device is 'cuda', and torch finds no CUDA device here")
    use_cuda = options.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if use_cuda else "cpu")

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)
        console.file.flush()

    try:
        return runs.reproduce(
            table,
            options.data,
            options.seeds,
            directory=None if options.out is None else Path(options.out),
            device=device.type,
            facts=environment(device),
            say=say,
        )
    except (scenarios.ScenarioError, runs.ReproduceError) as error:
        raise CommandError(str(error)) from None
