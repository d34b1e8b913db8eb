"""The commands, and how an error becomes a sentence and an exit code."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from maskcl import info as info_module
from maskcl import report
from maskcl.cli import baselines, bench, export, forget, hat, mas, masks, piggyback
from maskcl.cli.compare import compare_runs
from maskcl.cli.flags import Start, command
from maskcl.cli.folders import refusing
from maskcl.cli.method import MethodCommand
from maskcl.cli.options import CommandError, check_values, combine, read_config
from maskcl.cli.output import (
    CLOSED,
    Output,
    failed,
    finish,
    interrupted,
    noticing_interrupts,
    refuse,
    say,
    show,
    stopped,
    write_out_what_is_unknown,
)
from maskcl.cli.pretrain import PretrainOptions, pretrain
from maskcl.cli.processes import count, is_first, joined, together
from maskcl.cli.reproduce import (
    ClassesOptions,
    GraphsOptions,
    ReproduceOptions,
    reproduce,
    reproduce_classes,
    reproduce_graphs,
)
from maskcl.cli.tables import accuracy_table
from maskcl.cli.watch import watch
from maskcl.files import is_no_room
from maskcl.lock import LockedError, locked
from maskcl.text import sentence_of

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Masks for continual learning: pretrain a base, train a sequence of tasks, compare runs.",
)
train_app = typer.Typer(
    no_args_is_help=True,
    help="Train a sequence of tasks with a method, or with a baseline to compare it with.",
)
app.add_typer(train_app, name="train")
masks_app = typer.Typer(no_args_is_help=True, help="Piggyback's masks as files.")
app.add_typer(masks_app, name="masks")
app.add_typer(bench.app, name="bench")

_COMMANDS = (hat.COMMAND, piggyback.COMMAND, mas.MAS_COMMAND, mas.EWC_COMMAND, *baselines.COMMANDS)
reproduce_app = typer.Typer(
    no_args_is_help=True, help="Run a published table again, or one of our own."
)
app.add_typer(reproduce_app, name="reproduce")

METHODS = {made.options.NAME: made for made in _COMMANDS}


@app.command("info")
def info() -> None:
    """Versions, devices, and which backend runs which op, or why not."""
    info_module.main()


@app.command("report")
def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR...", show_default=False)],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="New folder for a page and CSV that compare them.",
            show_default=False,
        ),
    ] = None,
) -> None:  # fmt: skip
    """Compare finished runs in one table, with the mean over seeds; or, by --out, in a page."""
    print(compare_runs(directories, out))


@app.command("watch")
def watch_run(
    run: Annotated[Path, typer.Argument(metavar="DIR", show_default=False)],
    every: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)] = 2.0,
) -> None:
    """Keep a page of a run that goes on, DIR/watch.html, which a browser reads again by itself."""
    watch(run, every)


Run = Annotated[Path, typer.Argument(metavar="RUN", show_default=False)]
File = Annotated[Path, typer.Argument(metavar="FILE", show_default=False)]


@app.command("export")
def export_task(
    run: Run,
    task: Annotated[int, typer.Option(help="Which, from 0.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="New file: .pt2, .onnx or .safetensors.", show_default=False
        ),
    ],
    batch_size: Annotated[
        int, typer.Option(help="Images, or nodes of a graph, to time both networks on.")
    ] = 64,
) -> None:
    """Write a run's finished task as a small ordinary network, and say what that saves."""
    show(export.export(run, task, out, batch_size, METHODS))


@app.command("forget")
def forget_task(
    run: Run,
    task: Annotated[int, typer.Option(help="Which, from 0.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Of the weights drawn anew.", min=0)] = 0,
) -> None:
    """Unlearn a task of a finished run of hat or piggyback, exactly; the others keep their bits."""
    try:
        show(forget.forget(run, task, seed, METHODS))
    except KeyboardInterrupt:
        say("interrupted; the same command does or finishes it")
        raise typer.Exit(130) from None


@masks_app.command("export")
def export_masks(
    run: Run,
    task: Annotated[int, typer.Option(help="Which, from 0.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="New file.", show_default=False)],
) -> None:
    """Write the masks, head and norms of a run's finished task to a file."""
    show(masks.export(run, task, out))


@masks_app.command("import")
def import_masks(
    file: File,
    run: Run,
    task: Annotated[
        int | None, typer.Option(help="Which, from 0 (default the file's).", show_default=False)
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="The task loses what it had.")] = False,
) -> None:
    """Put a file's masks into a finished run's checkpoint; its base must be the same."""
    show(masks.import_(file, run, task, replace=replace))


@masks_app.command("inspect")
def inspect_masks(file: File) -> None:
    """Say what a file of masks holds."""
    show(masks.inspect(file))


def run(arguments: list[str]) -> int:
    """Run a command; returns the exit code."""
    write_out_what_is_unknown()
    try:
        with contextlib.ExitStack() as stack:
            if not is_first():
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            is_interrupted = stack.enter_context(noticing_interrupts())
            return finish(_run(arguments, is_interrupted))
    except SystemExit as error:  # typer's own end where a pipe is closed
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return finish(CLOSED)


def _run(arguments: list[str], is_interrupted: Callable[[], bool]) -> int:
    if count() > 1 and arguments[:1] not in ([], ["train"], ["info"]):
        return refuse(
            f"maskcl {arguments[0]} is for one process, and torchrun started {count()}: it is for"
            " maskcl train"
        )
    try:
        return _answer(arguments)
    except (typer.Abort, KeyboardInterrupt):
        say("interrupted before anything was written")
        return 130
    except Exception as error:
        if is_interrupted():
            say("interrupted; a run that has begun goes on with --resume")
            return 130
        return _refused(error)


def _answer(arguments: list[str]) -> int:
    code = app(arguments, prog_name="maskcl", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _refused(error: Exception) -> int:
    """Say what was wrong with what was asked for; raises what is nobody's fault but ours."""
    if isinstance(error, (CommandError, report.ReportError, LockedError)):
        return refuse(str(error))
    if isinstance(error, OSError):
        return failed(error) if is_no_room(error) else refuse(sentence_of(error))
    # typer's usage errors, whichever package its click is (inside typer from 0.16 on).
    if not any(kind.__name__ == "ClickException" for kind in type(error).__mro__):
        raise error
    if not str(error):
        return 2
    text: str = error.format_message()  # type: ignore[attr-defined]
    commands = getattr(getattr(getattr(error, "ctx", None), "command", None), "commands", None)
    if commands and text.startswith("No such option"):  # a run's option, and not yet which run
        text = f"{text}: wanted one of {', '.join(commands)} in front of it"
    return refuse(text)


def _train_command(method: MethodCommand) -> None:
    """Add ``maskcl train METHOD``."""

    def run(flags: dict[str, Any], config: str | None, start: Start) -> None:
        _train(method, flags, config, start)

    kind = method.options
    train_app.command(kind.NAME)(command(kind, run, kind.__doc__ or "", resumable=True))


def _train(method: MethodCommand, given: dict[str, Any], config: str | None, start: Start) -> None:
    # Imported here: `maskcl info` must work without lightning-fabric.
    from maskcl.cli.train import begin, train

    kind = method.options
    flags = check_values(kind, given, "the command line")
    values = read_config(kind, Path(config)) if config is not None else {}
    out = flags.get("out", values.get("out"))
    if out is None:
        raise CommandError("--out is missing")
    flags["out"] = out
    # A new run's folder is locked from when it is there.
    held = Path(out) if (start.resume or start.add_tasks is not None) else None
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(joined())
            with together(), refusing():
                if held is not None and held.is_dir() and is_first():
                    stack.enter_context(locked(held))
                options, run = begin(kind, flags, values, start)
            result = train(method, options, Output(), resume=start.resume, run=run)
    except (KeyboardInterrupt, BrokenPipeError) as error:
        raise typer.Exit(interrupted(error, Path(out), kind.NAME)) from None
    except LockedError:
        raise
    except (RuntimeError, OSError, MemoryError) as error:
        raise typer.Exit(failed(error, "Trainer: ", "references: ")) from None
    if is_first():
        show(f"\n{accuracy_table(result)}\n\nreport: {os.path.join(out, 'report.html')}")


def _pretrain(given: dict[str, Any], config: str | None, start: Start) -> None:
    flags = check_values(PretrainOptions, given, "the command line")
    values = read_config(PretrainOptions, Path(config)) if config is not None else {}
    options = combine(PretrainOptions, flags, values, None)
    try:
        facts = pretrain(options, Output())
    except (KeyboardInterrupt, BrokenPipeError) as error:
        raise typer.Exit(interrupted(error, Path(options.out))) from None
    except (RuntimeError, OSError, MemoryError) as error:
        raise typer.Exit(failed(error, "train_backbone: ")) from None
    show(
        f"held-out accuracy {facts['accuracy']:.4f}, SHA-256 {facts['sha256']}\nbase: {options.out}"
    )


def _reproduce(given: dict[str, Any], config: str | None, start: Start) -> None:
    from maskcl.reproduce.mas_split_mnist import TABLE

    _table(ReproduceOptions, given, config, lambda asked: reproduce(TABLE, asked, Output()))


def _reproduce_graphs(given: dict[str, Any], config: str | None, start: Start) -> None:
    _table(GraphsOptions, given, config, lambda asked: reproduce_graphs(METHODS, asked, Output()))


def _reproduce_classes(given: dict[str, Any], config: str | None, start: Start) -> None:
    _table(ClassesOptions, given, config, lambda asked: reproduce_classes(METHODS, asked, Output()))


def _table(
    kind: Any, given: dict[str, Any], config: str | None, make: Callable[[Any], str]
) -> None:
    flags = check_values(kind, given, "the command line")
    values = read_config(kind, Path(config)) if config is not None else {}
    options = combine(kind, flags, values, None)
    out = None if options.out is None or Path(options.out).is_file() else options.out
    try:
        with contextlib.ExitStack() as stack:
            with refusing():
                stack.enter_context(locked(out))
            show(f"\n{make(options)}")
    except (KeyboardInterrupt, BrokenPipeError) as error:
        kept = "" if options.out is None else "; the same command goes on after the last whole run"
        raise typer.Exit(stopped(error, kept)) from None
    except LockedError:
        raise
    except (RuntimeError, OSError, MemoryError) as error:
        raise typer.Exit(failed(error, "Trainer: ")) from None


for _method in METHODS.values():
    _train_command(_method)
app.command("pretrain")(
    command(PretrainOptions, _pretrain, PretrainOptions.__doc__ or "", resumable=False)
)
reproduce_app.command("mas-split-mnist")(
    command(ReproduceOptions, _reproduce, ReproduceOptions.__doc__ or "", resumable=False)
)
reproduce_app.command("graphs")(
    command(GraphsOptions, _reproduce_graphs, GraphsOptions.__doc__ or "", resumable=False)
)
reproduce_app.command("class-incremental")(
    command(ClassesOptions, _reproduce_classes, ClassesOptions.__doc__ or "", resumable=False)
)
