"""What a run is built from by its options: scenario, network, trainer, what it is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcl import scenarios
from maskcl.callback import Callback
from maskcl.cli.common import optimizer_factory, seeded_weights
from maskcl.cli.folders import read_saved
from maskcl.cli.method import MethodCommand, TrainOptions
from maskcl.cli.network import with_heads
from maskcl.cli.options import CommandError, parse_groups, parse_names
from maskcl.cli.processes import fabric_of, share_of
from maskcl.cli.saved_network import CONTINUES, network_as_made, of_run
from maskcl.training.baselines import TRAINERS
from maskcl.training.baselines import together as of_all_tasks
from maskcl.training.references import References, references
from maskcl.training.trainer import Trainer

if TYPE_CHECKING:
    from rich.console import Console

    from maskcl.nn import ImportanceNetwork
    from maskcl.nn.tasks.network import TaskNetwork
    from maskcl.problems import Problem
    from maskcl.scenarios import Scenario


def scenario_of(options: TrainOptions) -> Scenario:
    """The scenario that they name.

    Raises:
        CommandError: there is none such, or its data is not there.
    """
    try:
        return scenarios.load(
            options.scenario,
            data=options.data,
            seed=options.seed,
            tasks=options.tasks,
            setting=options.setting,
            size=options.size,
            datasets=parse_names(options.datasets),
            variant=options.variant,
            metric=options.metric,
            shuffle=options.shuffle,
            groups=parse_groups(options.groups),
        )
    except scenarios.ScenarioError as error:
        raise CommandError(str(error)) from None


def network_of(
    command: MethodCommand, options: TrainOptions, scenario: Scenario, resumed: Path | None
) -> tuple[TaskNetwork, dict[str, Any]]:
    """The network and what it was made from; as a resumed run's folder says, where there is one."""
    if resumed is None:
        return command.prepare(options, scenario)
    _, saved = read_saved(resumed, options.NAME)
    if CONTINUES in saved:
        cut = scenario.describe()
        with of_run(resumed):
            return network_as_made(command, options.to_json(), saved, cut), saved
    net, made_from = command.prepare(options, scenario)
    was, found = saved.get("sha256"), made_from.get("sha256")
    if was != found:
        raise CommandError(
            f"the run in {options.out} was made from weights with SHA-256 {was}, found {found}"
        )
    return net, made_from


def trainer_of(
    options: TrainOptions,
    net: TaskNetwork,
    problem: Problem,
    scenario: Scenario,
    callback: Callback,
    directory: Path,
) -> Trainer:
    """Of a run's network in its folder.

    Raises:
        CommandError: they do not go together.
    """
    # TrainOptions puts the scenario's and the optimizer's own.
    assert options.batch_size is not None
    assert options.epochs is not None
    assert options.lr is not None
    if options.NAME == "joint":
        problem, scenario = of_all_tasks(problem, scenario)
    scheduler_fn, schedule_by = options.rates()
    try:
        return TRAINERS.get(options.NAME, Trainer)(
            net,
            options.method(),
            problem,
            scenario,
            optimizer_factory(options, options.lr),
            epochs=options.epochs,
            batch_size=share_of(options.batch_size),
            seed=options.seed,
            device=options.device,
            precision=options.precision,
            fabric=fabric_of(options.device, options.precision),
            directory=directory,
            callback=callback,
            progress=False,
            inference=options.inference(),
            scheduler_fn=scheduler_fn,
            schedule_by=schedule_by,
            validation=options.held_out(),
            evaluate=options.tested(),
            accumulate=options.accumulate,
            workers=options.workers,
        )
    except ValueError as error:
        raise CommandError(str(error).replace("Trainer: ", "")) from None


def references_of(
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
        place = f"task {task} ({task + 1} of {scenario.num_tasks})"
        line = f"reference {name} {place} {scenario.metric} {score:.4f}"
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
