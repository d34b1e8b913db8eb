"""``maskcl reproduce``: a published table run again, ours beside theirs; a table of our own."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcl import scenarios
from maskcl.cli.common import device_of, optimizer_factory
from maskcl.cli.method import MethodCommand, TrainOptions
from maskcl.cli.network import problem_for
from maskcl.cli.options import CommandError, Options, combine, option
from maskcl.training.environment import environment
from maskcl.training.trainer import Trainer

if TYPE_CHECKING:
    from rich.console import Console

    from maskcl.reproduce.graphs import Cell, Figures
    from maskcl.reproduce.table import Published
    from maskcl.scenarios import Scenario
    from maskcl.training.result import Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReproduceOptions(Options):
    """Split MNIST of Hsu et al. 2018, table 2: Adam, EWC and MAS, ours beside the published."""

    data: str = option("Folder with MNIST's idx files (never written to).")
    seeds: int = option("How many, from 0.", 10, at_least=1)
    out: str | None = option(
        "Folder for results.json and results.txt; runs that it holds are not run again.", None
    )
    device: str = option("auto, cpu, cuda.", "auto", choices=("auto", "cpu", "cuda"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphsOptions(Options):
    """Every method on every graph problem in every setting, on graphs made of digits."""

    seeds: int = option("How many, from 0.", 5, at_least=1)
    out: str | None = option(
        "Folder for results.json and results.md; runs that it holds are not run again.", None
    )
    only: str | None = option(
        "Methods, problems (node, link, prediction, graph) and settings, as hat,mas,node.", None
    )
    epochs: int | None = option("For each task.", None, shown="maskcl train's", at_least=1)
    tasks: int | None = option("Number of tasks.", None, shown="maskcl train's", at_least=2)
    device: str = option("auto, cpu, cuda.", "auto", choices=("auto", "cpu", "cuda"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassesOptions(Options):
    """Class-incremental learning, the task inferred: HAT, Piggyback, MAS, EWC, fine-tuning, LDA."""

    data: str | None = option("Folder with MNIST's idx files; without it MNIST is left out.", None)
    seeds: int = option("How many, from 100: 0 to 4 chose the defaults.", 5, at_least=1)
    out: str | None = option(
        "Folder for results.json and results.md; runs that it holds are not run again.", None
    )
    device: str = option("auto, cpu, cuda.", "auto", choices=("auto", "cpu", "cuda"))


def reproduce_classes(
    commands: Mapping[str, MethodCommand], options: ClassesOptions, console: Console
) -> str:
    """Run what is missing; returns the page as Markdown; arguments as `reproduce_graphs`.

    Raises:
        CommandError: it cannot start; nothing has been written then.
    """
    from maskcl.reproduce import class_incremental as table
    from maskcl.reproduce import class_incremental_runs
    from maskcl.reproduce.runs import ReproduceError

    device = device_of(options.device)
    data = options.data
    cells = [cell for cell in table.CELLS if data is not None or "mnist" not in cell.scenario]

    def options_of(cell: table.Cell, seed: int) -> TrainOptions:
        given = {**cell.options(seed, data), "device": device.type, "out": ""}
        return combine(commands[cell.method].options, given, {}, None)

    def train(cell: table.Cell, seed: int) -> table.Figures:
        start = time.process_time()
        result, _ = _trained(commands[cell.method], options_of(cell, seed))
        return table.Figures.of(result, time.process_time() - start)

    facts = environment(device)
    given = "" if data is None else " --data MNIST"
    seeds = range(table.FIRST_SEED, table.FIRST_SEED + options.seeds)
    made = (
        f"Made by `maskcl reproduce class-incremental{given} --seeds {options.seeds} --out DIR` on"
        f" {datetime.date.today().isoformat()}: torch {facts['torch']}, maskcl {facts['maskcl']},"
        f" {facts['threads']} of {facts['cpus']} threads of {facts['cpu'] or facts['machine']}."
        f" Seeds {seeds[0]} to {seeds[-1]}; nothing was chosen on them."
    )
    plain = {cell.key: {**_plain(options_of(cell, 0)), "data": None} for cell in cells}
    try:
        return class_incremental_runs.run(
            cells,
            seeds,
            train,
            directory=None if options.out is None else Path(options.out),
            options=plain,
            made=made,
            say=_sayer(console),
        )
    except (scenarios.ScenarioError, ReproduceError) as error:
        raise CommandError(str(error)) from None


def reproduce_graphs(
    commands: Mapping[str, MethodCommand], options: GraphsOptions, console: Console
) -> str:
    """Run what is missing; returns the page as Markdown.

    Args:
        commands: by method, what ``maskcl train`` does.
        options: of the table.
        console: gets a line for each run.

    Raises:
        CommandError: it cannot start; nothing has been written then.
    """
    from maskcl.reproduce import graph_runs, graphs
    from maskcl.reproduce.runs import ReproduceError

    device = device_of(options.device)
    asked = {"epochs": options.epochs, "tasks": options.tasks, "device": device.type, "out": ""}
    given = {name: value for name, value in asked.items() if value is not None}

    def options_of(cell: Cell, seed: int) -> TrainOptions:
        return combine(commands[cell.method].options, {**cell.options(seed), **given}, {}, None)

    def train(cell: Cell, seed: int) -> tuple[Figures, dict[str, Any]]:
        return train_cell(commands[cell.method], options_of(cell, seed))

    try:
        cells = graphs.select(options.only)
        return graph_runs.run(
            cells,
            options.seeds,
            train,
            directory=None if options.out is None else Path(options.out),
            options={cell.key: _plain(options_of(cell, 0)) for cell in cells},
            facts={**environment(device), **_today()},
            command=_typed(options),
            say=_sayer(console),
        )
    except (scenarios.ScenarioError, ReproduceError) as error:
        raise CommandError(str(error)) from None


def train_cell(command: MethodCommand, options: TrainOptions) -> tuple[Figures, dict[str, Any]]:
    """What ``maskcl train`` trains, without its files: the figures, and what the scenario is."""
    from maskcl.reproduce.graphs import figures

    start = time.process_time()
    result, scenario = _trained(command, options)
    return figures(result, scenario, time.process_time() - start), scenario.describe()


def _trained(command: MethodCommand, options: TrainOptions) -> tuple[Result, Scenario]:
    # The options put the problem's, the method's and the optimizer's own.
    assert options.lr is not None
    assert options.epochs is not None
    assert options.batch_size is not None
    scenario = scenarios.load(
        options.scenario,
        data=options.data,
        seed=options.seed,
        tasks=options.tasks,
        setting=options.setting,
    )
    net, _ = command.prepare(options, scenario)
    trainer = Trainer(
        net,
        options.method(),
        problem_for(options, scenario),
        scenario,
        optimizer_factory(options, options.lr),
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        inference=options.inference(),
    )
    return trainer.fit(), scenario


def _plain(options: TrainOptions) -> dict[str, Any]:
    """What figures depend on besides the seed."""
    left_out = ("seed", "out", "device")
    return {name: value for name, value in options.to_json().items() if name not in left_out}


def _typed(options: GraphsOptions) -> str:
    """The command, but for what no figure depends on."""
    words = ["maskcl reproduce graphs"]
    for name in ("seeds", "only", "epochs", "tasks"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name} {value}"]
    return " ".join([*words, "--out DIR"])


def _today() -> dict[str, str]:
    import torch_geometric

    return {
        "torch_geometric": torch_geometric.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _sayer(console: Console) -> Callable[[str], None]:
    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)
        console.file.flush()

    return say


def reproduce(table: Published, options: ReproduceOptions, console: Console) -> str:
    """Run what is missing; returns the table as text.

    Raises:
        CommandError: it cannot start; nothing has been written then.
    """
    from maskcl.reproduce import runs

    device = device_of(options.device)
    try:
        return runs.reproduce(
            table,
            options.data,
            options.seeds,
            directory=None if options.out is None else Path(options.out),
            device=device.type,
            facts=environment(device),
            say=_sayer(console),
        )
    except (scenarios.ScenarioError, runs.ReproduceError) as error:
        raise CommandError(str(error)) from None
