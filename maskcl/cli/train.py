"""``maskcl train``: check everything, then make the directory, train, write the result."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcl import report, scenarios
from maskcl.callback import Callback
from maskcl.checkpoint import CheckpointError
from maskcl.cli.common import fingerprint, optimizer_factory, seeded_weights
from maskcl.cli.environment import environment
from maskcl.cli.folders import CONFIG, check_new, config_of, read_saved
from maskcl.cli.forget import forgotten_in
from maskcl.cli.method import MethodCommand, Trained, TrainOptions
from maskcl.cli.network import problem_for, with_heads
from maskcl.cli.options import CommandError
from maskcl.cli.progress import display
from maskcl.cli.result_content import result_content
from maskcl.files import new_folder
from maskcl.report.files import write_atomic
from maskcl.training.references import References, references
from maskcl.training.trainer import Trainer

if TYPE_CHECKING:
    from rich.console import Console

    from maskcl.nn import ImportanceNetwork
    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.problems import Problem
    from maskcl.scenarios import Scenario


def train(
    command: MethodCommand, options: TrainOptions, console: Console, *, resume: bool
) -> dict[str, Any]:
    """Run or resume; returns the content of result.json.

    Raises:
        CommandError: the run cannot start; nothing has been written then.
        KeyboardInterrupt: as the person pressed it; the checkpoint stands.
    """
    directory = Path(options.out)
    if not resume:
        check_new(directory)
    scenario = _load_scenario(options)
    with _warnings_as_sentences():
        net, made_from = command.prepare(options, scenario)
    if resume:
        _check_made_from(options, made_from)
        if gone := forgotten_in(directory):
            raise CommandError(f"task {gone[0]} of {directory} is forgotten: the run is over")
    assert options.epochs is not None  # TrainOptions puts the problem's own
    problem = problem_for(options, scenario)
    callback = display(console, scenario.num_tasks, options.epochs, scenario.metric)
    trainer = _trainer(options, net, problem, scenario, callback)
    if not resume:
        _make_directory(directory, config_of(options.NAME, options.to_json(), made_from))
    console.print(scenarios.summary(scenario.describe()), soft_wrap=True, highlight=False)
    try:
        with _warnings_as_sentences(), callback:
            result = trainer.fit(resume=resume)
    except CheckpointError as error:
        raise CommandError(str(error)) from None
    compared = _references(command, options, problem, scenario, made_from, console)
    content = {
        **result_content(options, scenario, net, result, compared),
        "problem": problem.describe(),
        **command.finish(Trained(options, scenario, net, result, made_from, directory)),
        "weights_sha256": fingerprint(net),
        "environment": environment(trainer.fabric.device),
    }
    report.write_result(content, directory)
    report.write_report(content, directory)
    return content


def _trainer(
    options: TrainOptions,
    net: TaskNetwork,
    problem: Problem,
    scenario: Scenario,
    callback: Callback,
) -> Trainer:
    # TrainOptions puts the scenario's and the optimizer's own.
    assert options.batch_size is not None
    assert options.epochs is not None
    assert options.lr is not None
    try:
        return Trainer(
            net,
            options.method(),
            problem,
            scenario,
            optimizer_factory(options, options.lr),
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            device=options.device,
            precision=options.precision,
            directory=options.out,
            callback=callback,
        )
    except ValueError as error:
        raise CommandError(str(error).replace("Trainer: ", "")) from None


def _references(
    command: MethodCommand,
    options: TrainOptions,
    problem: Problem,
    scenario: Scenario,
    made_from: dict[str, Any],
    console: Console,
) -> References | None:
    """What plain networks reach with the run's epochs and optimizer, where that is asked for."""
    if not options.references:
        return None
    assert options.epochs is not None
    assert options.batch_size is not None

    def fresh() -> ImportanceNetwork:
        with seeded_weights(options.seed):
            return with_heads(command.plain(options, scenario, made_from), scenario)

    def say(name: str, task: int, score: float) -> None:
        line = f"reference {name} {task + 1}/{scenario.num_tasks} {scenario.metric} {score:.4f}"
        console.print(line, soft_wrap=True, highlight=False)
        console.file.flush()

    return references(
        fresh,
        problem,
        scenario,
        optimizer_factory(options, options.reference_rate),
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        device=options.device,
        precision=options.precision,
        callback=say,
    )


def _check_made_from(options: TrainOptions, made_from: dict[str, Any]) -> None:
    _, saved = read_saved(Path(options.out), options.NAME)
    was, found = saved.get("sha256"), made_from.get("sha256")
    if was != found:
        raise CommandError(
            f"the run in {options.out} was made from weights with SHA-256 {was}, found {found}"
        )


def _load_scenario(options: TrainOptions) -> Scenario:
    try:
        return scenarios.load(
            options.scenario,
            data=options.data,
            seed=options.seed,
            tasks=options.tasks,
            setting=options.setting,
            variant=options.variant,
            metric=options.metric,
        )
    except scenarios.ScenarioError as error:
        raise CommandError(str(error)) from None


def _make_directory(directory: Path, config: dict[str, Any]) -> None:
    """Make the directory with its config.json in one step, so that it can always be resumed."""
    with new_folder(directory) as folder:
        write_atomic(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """maskcl's own warnings go to stderr as a sentence, without file and line."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if category.__module__.startswith("maskcl"):
            print(f"maskcl: {message}", file=sys.stderr)
        else:
            usual(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.showwarning = show  # type: ignore[assignment]
        yield
