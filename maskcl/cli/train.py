"""``maskcl train``: check everything, then make the directory, train, write the result."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcl import report, scenarios
from maskcl.checkpoint import Checkpoint, CheckpointError, save_checkpoint
from maskcl.cli.common import device_of, fingerprint
from maskcl.cli.continuing import (
    FinishedRun,
    network_of_another,
    network_of_more,
    options_of_another,
    options_of_more,
    read_finished,
    start_of,
)
from maskcl.cli.flags import Start
from maskcl.cli.folders import (
    ADDING,
    CONFIG,
    check_new,
    config_of,
    finish_taking_over,
    folder_in_training,
    forgotten_in,
    read_saved,
    refusing,
    take_over,
)
from maskcl.cli.method import MethodCommand, Trained, TrainOptions
from maskcl.cli.network import problem_for
from maskcl.cli.options import CommandError, combine
from maskcl.cli.output import say
from maskcl.cli.processes import (
    check_options,
    is_first,
    synchronised,
    together,
)
from maskcl.cli.run_parts import network_of, references_of, scenario_of, trainer_of
from maskcl.files import new_folder, write_json
from maskcl.lock import locked
from maskcl.progress import display
from maskcl.training.content import result_content
from maskcl.training.trainer import CHECKPOINT, Trainer

if TYPE_CHECKING:
    from rich.console import Console


def begin(
    kind: type[TrainOptions], flags: dict[str, Any], config: dict[str, Any], start: Start
) -> tuple[TrainOptions, FinishedRun | None]:
    """The options of a run, and the finished run that it goes on from, where there is one.

    Raises:
        CommandError: they cannot be put together.
    """
    out = Path(flags["out"])
    if start.resume + (start.add_tasks is not None) + (start.source is not None) > 1:
        raise CommandError("--resume, --add-tasks and --from exclude each other")
    if not kind.GOES_ON and (start.add_tasks is not None or start.source is not None):
        raise CommandError(
            f"{kind.NAME} trains a fresh network for each task: there is none to go on with"
        )
    with together():
        for folder in (out, Path(start.source or out)) if is_first() else ():
            finish_taking_over(folder)
    if start.add_tasks is not None:
        run = read_finished(out, kind.NAME, "--add-tasks")
        if gone := forgotten_in(out):
            raise CommandError(f"task {gone[0]} of {out} is forgotten: the run is over")
        return options_of_more(kind, flags, config, run, start.add_tasks), run
    if start.source is not None:
        check_new(out)
        run = read_finished(Path(start.source), kind.NAME, "--from")
        # Its result.json compares the masks of all tasks, also of those before.
        if kind.NAME == "piggyback" and (gone := forgotten_in(run.folder)):
            raise CommandError(
                f"task {gone[0]} of {run.folder} is forgotten: masks export and import take the"
                " others to a run that has all"
            )
        return options_of_another(kind, flags, config, run), run
    if not start.resume:
        return combine(kind, flags, config, None), None
    folder = folder_in_training(out)
    saved = read_saved(folder, kind.NAME)[0]
    return combine(kind, flags, config, saved, where=str(folder / CONFIG)), None


def train(
    command: MethodCommand,
    options: TrainOptions,
    console: Console,
    *,
    resume: bool,
    run: FinishedRun | None = None,
) -> dict[str, Any]:
    """Run, resume, or go on from a finished run; returns the content of result.json.

    Processes that torchrun started do it together; the first one writes, the others return nothing.

    A run that gains tasks trains in a folder below its own, and its files change at the end.

    Raises:
        CommandError: the run cannot start; nothing has been written then.
        KeyboardInterrupt: as the person pressed it; the checkpoint stands.
    """
    out = Path(options.out)
    more = run is not None and run.folder == out
    directory = out / ADDING if more else folder_in_training(out) if resume else out
    first: Checkpoint | None = None
    with together(), refusing():
        if not resume:
            check_new(directory)
        _check_drawing()
        check_options(options)
        device = device_of(options.device)
        scenario = scenario_of(options)
        with _warnings_as_sentences():
            if run is not None:
                prepare = network_of_more if more else network_of_another
                net, made_from = prepare(command, options, scenario, run)
            else:
                net, made_from = network_of(
                    command, options, scenario, directory if resume else None
                )
        if resume and (gone := forgotten_in(directory)):
            raise CommandError(f"task {gone[0]} of {directory} is forgotten: the run is over")
        problem = problem_for(options, scenario)
        if options.sync_batchnorm:
            synchronised(net, device)
        trainer = trainer_of(options, net, problem, scenario, display(console), directory)
        if run is not None and not resume:
            first = start_of(run, net, trainer.config, scenario, more=more)
    with contextlib.ExitStack() as stack:
        with together(), refusing():
            if is_first():
                if not resume:
                    config = config_of(options.NAME, options.to_json(), made_from)
                    _make_directory(directory, config, first)
                stack.enter_context(locked(directory))
        console.print(scenarios.summary(scenario.describe()), soft_wrap=True, highlight=False)
        go_on = resume or run is not None
        content = _train(command, options, trainer, made_from, console, go_on=go_on)
        if not is_first():
            return {}
    if directory != out:
        take_over(out)
    return content


def _check_drawing() -> None:
    try:
        report.check_drawing()
    except ImportError as error:
        raise CommandError(str(error)) from None


def _train(
    command: MethodCommand,
    options: TrainOptions,
    trainer: Trainer,
    made_from: dict[str, Any],
    console: Console,
    *,
    go_on: bool,
) -> dict[str, Any]:
    """Train, and write the result and its report into the trainer's folder: the first process."""
    directory, net, scenario = trainer.directory, trainer.net, trainer.scenario
    assert directory is not None
    try:
        with _warnings_as_sentences():
            result = trainer.fit(resume=go_on)
    except CheckpointError as error:
        raise CommandError(str(error)) from None
    if not is_first():
        return {}
    compared = references_of(command, options, trainer.problem, scenario, made_from, console)
    content = {
        **result_content(trainer, result, compared),
        "method": options.NAME,
        "configuration": options.to_json(),
        **command.finish(Trained(options, scenario, net, result, made_from, directory)),
        "weights_sha256": fingerprint(net),
    }
    report.write_result(content, directory)
    report.write_report(content, directory)
    return content


def _make_directory(directory: Path, config: dict[str, Any], first: Checkpoint | None) -> None:
    """Make the directory with its config.json in one step, so that it can always be resumed.

    With a first checkpoint where the run goes on from another.
    """
    with new_folder(directory) as folder:
        if first is not None:
            save_checkpoint(folder / CHECKPOINT, first)
        write_json(folder / CONFIG, config)


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """maskcl's own warnings go to stderr as a sentence, without file and line."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if category.__module__.startswith("maskcl"):
            say(message)
        else:
            usual(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield
