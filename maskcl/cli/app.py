"""The commands and their flags (typer), and how an error becomes a sentence and an exit code."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer
from rich.console import Console

from maskcl import info as info_module
from maskcl import models, report, scenarios
from maskcl.cli.options import (
    BATCH_SIZES,
    LEARNING_RATES,
    CommandError,
    TrainOptions,
    check_values,
    combine,
    read_config,
)
from maskcl.cli.tables import accuracy_table, comparison

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Masks for continual learning: train a sequence of tasks, see what is installed, compare.",
)
train_app = typer.Typer(no_args_is_help=True, help="Train a sequence of tasks with a method.")
app.add_typer(train_app, name="train")

_DEFAULT = {field.name: field.default for field in dataclasses.fields(TrainOptions)}
_SIZES = ", ".join(f"{name} {size}" for name, size in BATCH_SIZES.items())
_RATES = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())


def _flag(text: str, name: str | None = None, panel: str = "Run") -> Any:
    """An option whose help names the default; its own default is None, to see what was given."""
    default = None if name is None else _DEFAULT[name]
    shown = text if default is None else f"{text} (default {default})"
    return typer.Option(help=shown, show_default=False, rich_help_panel=panel)


def _hat(text: str, name: str) -> Any:
    return _flag(text, name, panel="HAT")


# None: the flag was not given.
Text: TypeAlias = str | None
Number: TypeAlias = float | None
Whole: TypeAlias = int | None


@train_app.command("hat")
def train_hat(
    scenario: Annotated[Text, _flag(f"What to learn: {', '.join(scenarios.NAMES)}.")] = None,
    out: Annotated[Text, _flag("New folder for the result, report and checkpoint.")] = None,
    config: Annotated[Text, _flag("YAML file of the same names; flags win over it.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel="Run")
    ] = False,
    data: Annotated[Text, _flag("Folder with MNIST's idx files (never written to).")] = None,
    tasks: Annotated[Whole, _flag("Number of tasks (default the scenario's).")] = None,
    setting: Annotated[Text, _flag("task or domain (default the scenario's).")] = None,
    model: Annotated[Text, _flag(f"{', '.join(models.NAMES)}.", "model")] = None,
    hidden: Annotated[Text, _flag("Widths of the mlp (default 200,200).")] = None,
    dropout: Annotated[Number, _flag("Of the mlp (default 0).")] = None,
    epochs: Annotated[Whole, _flag("For each task.", "epochs")] = None,
    batch_size: Annotated[Whole, _flag(f"Examples a step (default {_SIZES}).")] = None,
    optimizer: Annotated[Text, _flag(f"{', '.join(LEARNING_RATES)}.", "optimizer")] = None,
    lr: Annotated[Number, _flag(f"Learning rate (default {_RATES}).")] = None,
    momentum: Annotated[Number, _flag("Of sgd.", "momentum")] = None,
    weight_decay: Annotated[Number, _flag("Not on embeddings.", "weight_decay")] = None,
    seed: Annotated[Whole, _flag("Of the data split, weights and order.", "seed")] = None,
    device: Annotated[Text, _flag("auto, cpu, cuda.", "device")] = None,
    precision: Annotated[Text, _flag("32, bf16.", "precision")] = None,
    s_max: Annotated[Number, _hat("Largest scale of the gates.", "s_max")] = None,
    sparsity: Annotated[Number, _hat("Weight c of the sparsity term.", "sparsity")] = None,
    schedule: Annotated[Text, _hat("linear, cosine, exponential, constant.", "schedule")] = None,
    init: Annotated[Text, _hat("Of embeddings: normal, uniform, dense.", "init")] = None,
    protection: Annotated[Text, _hat("exact, min (the paper's).", "protection")] = None,
    rule: Annotated[Text, _hat("hat, const, adahat, random.", "rule")] = None,
    rule_value: Annotated[Number, _hat("Number of const and adahat.", "rule_value")] = None,
    compensation: Annotated[Text, _hat("exact, recipe, none.", "compensation")] = None,
    embedding_clamp: Annotated[Number, _hat("Largest |embedding|.", "embedding_clamp")] = None,
    cosh_clamp: Annotated[Number, _hat("Largest |s e| compensated.", "cosh_clamp")] = None,
    clip: Annotated[Number, _hat("Largest norm of the gradient (default none).", "clip")] = None,
) -> None:
    """Hard attention to the task (Serra et al. 2018)."""
    given = {name: value for name, value in locals().items() if value is not None}
    flags = {name: given[name] for name in given.keys() - {"config", "resume"}}
    _train(check_values(flags, "the command line"), config, resume)


@app.command("info")
def info() -> None:
    """Versions, devices, and which backend runs which op, or why not."""
    info_module.main()


@app.command("report")
def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", show_default=False)],
) -> None:
    """Compare finished runs in one table, with the mean over seeds."""
    print(comparison(report.compare(directories)))


def run(arguments: list[str]) -> int:
    """Run a command; returns the exit code."""
    try:
        code = app(arguments, prog_name="maskcl", standalone_mode=False)
    except (CommandError, report.ReportError) as error:
        return _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        _say("interrupted before anything was written")
        return 130
    except Exception as error:
        # typer's usage errors, whichever package its click is (inside typer from 0.16 on).
        if not any(kind.__name__ == "ClickException" for kind in type(error).__mro__):
            raise
        return _fail(error.format_message()) if str(error) else 2  # type: ignore[attr-defined]
    return code if isinstance(code, int) else 0


def _train(flags: dict[str, Any], config: str | None, resume: bool) -> None:
    # Imported here: `maskcl info` must work without lightning-fabric.
    from maskcl.cli.train import read_saved, train

    values = read_config(Path(config)) if config is not None else {}
    out = flags.get("out", values.get("out"))
    if out is None:
        raise CommandError("--out is missing")
    flags["out"] = out
    try:
        options = combine(flags, values, read_saved(Path(out)) if resume else None)
        result = train(options, Console(), resume=resume)
    except KeyboardInterrupt:
        raise typer.Exit(_interrupted(Path(out))) from None
    except (RuntimeError, OSError) as error:
        # Diverged, or the disk is full: a sentence. Anything else is a defect: its traceback.
        if isinstance(error, RuntimeError) and not str(error).startswith("Trainer: "):
            raise
        _say(f"the run failed: {str(error).removeprefix('Trainer: ')}")
        raise typer.Exit(1) from None
    print(f"\n{accuracy_table(result)}\n\nreport: {os.path.join(out, 'report.html')}")


def _interrupted(directory: Path) -> int:
    """Say how to go on; 130 as shells count an interrupt."""
    if (directory / "config.json").is_file():
        command = f"maskcl train hat --out {shlex.quote(str(directory))} --resume"
        _say(f"interrupted; to go on from the last whole epoch: {command}")
    else:
        _say("interrupted before anything was written")
    return 130


def _fail(sentence: str) -> int:
    _say(" ".join(sentence.split()))
    return 2


def _say(sentence: str) -> None:
    print(f"maskcl: {sentence}", file=sys.stderr)
