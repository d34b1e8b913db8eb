"""A finished run goes on: with more tasks of its scenario, or with another scenario's."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcl.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    load_network,
    network_state,
)
from maskcl.cli.folders import CONFIG, config_of, read_saved
from maskcl.cli.method import MethodCommand, TrainOptions
from maskcl.cli.options import CommandError, check_saved, combine, flag_name, parse_groups
from maskcl.cli.saved_network import (
    CONTINUES,
    Described,
    add_tasks,
    network_as_made,
    of_run,
)
from maskcl.training.result import Result
from maskcl.training.run_checkpoint import MADE
from maskcl.training.trainer import CHECKPOINT

if TYPE_CHECKING:
    from maskcl.scenarios import Scenario

# What a run on another scenario takes from that scenario, not from the run before.
_OF_SCENARIO = (
    "scenario", "out", "data", "size", "datasets", "tasks", "setting", "variant", "metric",
    "shuffle", "groups", "fanouts", "references",
)  # fmt: skip
# What the network is made by. Of the seed's split a test image may have been trained on.
_OF_NETWORK = ("base", "norms", "levels", "seed")


@dataclass(frozen=True)
class FinishedRun:
    """A run whose last task is finished, as its folder has it.

    Attributes:
        folder: of the run.
        method: its name.
        options, made_from: of its config.json.
        checkpoint: what was saved last.
    """

    folder: Path
    method: str
    options: dict[str, Any]
    made_from: dict[str, Any]
    checkpoint: Checkpoint

    @property
    def cut(self) -> dict[str, Any]:
        """Its scenario, by `Scenario.describe`."""
        cut: dict[str, Any] = self.checkpoint.config["scenario"]
        return cut

    @property
    def first_task(self) -> int:
        """The network's task that its scenario's task 0 is."""
        return self.checkpoint.position.get("first_task", 0)

    @property
    def num_tasks(self) -> int:
        """How many tasks its network has."""
        return self.first_task + int(self.cut["num_tasks"])

    def load_into(self, net: Any) -> None:
        """Give a network with room for more tasks what this run's has.

        Raises:
            CommandError: it does not fit.
        """
        path = self.folder / CHECKPOINT
        try:
            load_network(net, self.checkpoint.tensors, path)
        except CheckpointError as error:
            raise CommandError(str(error)) from None


def read_finished(folder: Path, method: str, how: str = "--from") -> FinishedRun:
    """A finished run of this method, that the flag ``how`` goes on with.

    Raises:
        CommandError: there is none in the folder.
    """
    options, made_from = read_saved(folder, method, how)
    with of_run(folder):
        checkpoint = load_checkpoint(folder / CHECKPOINT)
        run = FinishedRun(folder, method, options, made_from, checkpoint)
        Described.of(run.cut, str(folder / CHECKPOINT))
        is_finished = checkpoint.position["task"] == run.cut["num_tasks"]
    if not is_finished:
        raise CommandError(
            f"the run in {folder} is not finished: `maskcl train {method} --out {folder} --resume`"
        )
    return run


def options_of_more(
    kind: type[TrainOptions],
    flags: dict[str, Any],
    config: dict[str, Any],
    run: FinishedRun,
    count: int,
) -> TrainOptions:
    """The options of a run with ``count`` more tasks; the others are as they were.

    Raises:
        CommandError: there cannot be so many, or something else was asked for.
    """
    if count < 1:
        raise CommandError(f"add-tasks must be at least 1, got {count}")
    asked = {**config, **flags}
    if "tasks" in asked:
        raise CommandError("--add-tasks says how many tasks there will be: leave --tasks out")
    total = int(run.cut["num_tasks"]) + count
    saved = {**run.options, "tasks": total}
    check_saved(kind, run.options, str(run.folder / CONFIG))
    before = parse_groups(run.options.get("groups"))
    if before is not None:
        groups = parse_groups(asked.get("groups"))
        if groups is None or groups[: len(before)] != before or len(groups) != total:
            raise CommandError(
                f"the run in {run.folder} has groups {run.options['groups']}: --groups must go on"
                f" from there, with {total} in all"
            )
        saved |= {"tasks": None, "groups": asked["groups"]}
        flags, config = ({k: v for k, v in d.items() if k != "groups"} for d in (flags, config))
    where = str(run.folder / CONFIG)
    return combine(kind, flags, config, saved, how="--add-tasks", where=where)


def options_of_another(
    kind: type[TrainOptions], flags: dict[str, Any], config: dict[str, Any], run: FinishedRun
) -> TrainOptions:
    """The options of a run on another scenario: what is not given is as it was.

    Raises:
        CommandError: something is given that the run's network has otherwise.
    """
    asked = {**config, **flags}
    saved = check_saved(kind, run.options, str(run.folder / CONFIG))
    model = {f.name for f in fields(kind) if f.metadata["about"].panel == "Model"}
    for name in sorted(asked.keys() & (model | set(_OF_NETWORK)) - set(_OF_SCENARIO)):
        was = saved.get(name)
        if asked[name] != was:
            raise CommandError(
                f"the run in {run.folder} has {flag_name(name)} {was}, which --from cannot change"
                f" to {asked[name]}"
            )
    kept = {k: v for k, v in saved.items() if k not in _OF_SCENARIO}
    return combine(kind, flags, {**kept, **config}, None)


def network_of_more(
    command: MethodCommand, options: TrainOptions, scenario: Scenario, run: FinishedRun
) -> tuple[Any, dict[str, Any]]:
    """The run's network with room for the scenario's further tasks, and what it was made from.

    Raises:
        CommandError: the scenario's first tasks are not the run's.
    """
    with of_run(run.folder):
        return _with_more(command, options, scenario, run)


def _with_more(
    command: MethodCommand, options: TrainOptions, scenario: Scenario, run: FinishedRun
) -> tuple[Any, dict[str, Any]]:
    old, new = run.cut, json.loads(json.dumps(scenario.describe()))
    count = old["num_tasks"]
    listed = ("classes", "outputs", "train_sizes", "test_sizes")
    fixed = ("name", "setting", "seed", "source", "input_shape", "problem", "metric", "prediction")
    differ = [key for key in listed if new[key][:count] != old[key]]
    differ += [key for key in fixed if new[key] != old[key]]
    if differ:
        raise CommandError(
            f"{scenario.name} in {scenario.num_tasks} tasks does not begin with the {count} of"
            f" {run.folder}: they differ in {differ[0].replace('_', ' ')}; --from goes on with"
            " another scenario, and --groups names the classes of each task"
        )
    if CONTINUES in run.made_from:
        net = network_as_made(command, options.to_json(), run.made_from, new)
    else:
        net, made_from = command.prepare(options, scenario)
        if made_from.get("sha256") != run.made_from.get("sha256"):
            raise CommandError(f"the run in {run.folder} was made from other weights")
    run.load_into(net)
    return net, run.made_from


def network_of_another(
    command: MethodCommand, options: TrainOptions, scenario: Scenario, run: FinishedRun
) -> tuple[Any, dict[str, Any]]:
    """The run's network with room for another scenario's tasks, and what it was made from.

    Raises:
        CommandError: inputs, problem or heads of the two do not go together.
    """
    old = Described.of(run.cut)
    facts: list[tuple[str, Any, Any]] = [
        ("inputs of shape", old.input_shape, scenario.input_shape),
        ("the problem", old.problem, scenario.problem),
        ("for output layers", old.setting.head, scenario.setting.head),
    ]
    if old.setting.head == "shared":
        facts.append(("as outputs", old.outputs[0], scenario.outputs[0]))
    for what, was, found in facts:
        if was != found:
            raise CommandError(
                f"the network of {run.folder} has {what} {was}, {scenario.name} in the"
                f" {scenario.setting.name} setting {found}"
            )
    if old.setting.head == "growing" and not command.options.NEEDS_TASK:
        raise CommandError(
            "--from: in the class setting one head tells the classes of all tasks apart, and"
            f" those of {scenario.name} begin at 0 again; --add-tasks goes on in one scenario"
        )
    with of_run(run.folder):
        net = network_as_made(command, run.options, run.made_from, run.cut)
        run.load_into(net)
    add_tasks(net, scenario, options.seed)
    before = {
        "run": str(run.folder.absolute()),
        "num_tasks": run.num_tasks,
        "scenario": run.cut,
        "config": config_of(run.method, run.options, run.made_from),
    }
    return net, {**run.made_from, CONTINUES: before}


def start_of(
    run: FinishedRun, net: Any, config: dict[str, Any], scenario: Scenario, *, more: bool
) -> Checkpoint:
    """The checkpoint that the run which goes on begins with.

    Args:
        run: the run before.
        net: with room for what comes, and all that the run has learned.
        config: of the Trainer that goes on.
        scenario: its own.
        more: whether the scenario begins with the run's tasks.

    Raises:
        CommandError: the run was trained otherwise.
    """
    facts = run.checkpoint.facts
    tensors = {n: t for n, t in run.checkpoint.tensors.items() if n.startswith("rng.")}
    state, lasting = network_state(net)
    tensors |= state
    if not more:
        result, place = Result.empty(scenario.num_tasks), (0, run.num_tasks)
    else:
        # The first task to train checks that its optimizer is the run's.
        config = {**config, **{k: v for k, v in run.checkpoint.config.items() if k in MADE}}
        now = json.loads(json.dumps(config))
        for key in now.keys() - {"scenario"}:
            if now[key] != run.checkpoint.config.get(key):
                was = run.checkpoint.config.get(key)
                raise CommandError(f"the run in {run.folder} had {key} {was}, this has {now[key]}")
        with of_run(run.folder):
            result = Result.from_dict(facts["result"]).with_room(scenario.num_tasks)
        place = run.cut["num_tasks"], run.first_task
    position = {"task": place[0], "epoch": 0, "first_task": place[1]}
    with of_run(run.folder):
        content = {"result": result.to_facts(), "rng": facts["rng"]}
    return Checkpoint(config, position, tensors, content, lasting)
