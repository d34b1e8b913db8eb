"""``maskcl train``: check everything, then make the directory, train, write the result."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import maskcl
from maskcl import metrics, models, report, scenarios
from maskcl.checkpoint import CheckpointError
from maskcl.cli.environment import environment
from maskcl.cli.options import CommandError, TrainOptions
from maskcl.cli.progress import display
from maskcl.methods import derive_seed
from maskcl.problems import Vision
from maskcl.report.files import write_atomic
from maskcl.trainer import Trainer

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from maskcl.nn import HATNetwork
    from maskcl.result import Result
    from maskcl.scenarios import Scenario

CONFIG = "config.json"


def train(options: TrainOptions, console: Console, *, resume: bool) -> dict[str, Any]:
    """Run or resume; returns the content of result.json.

    Raises:
        CommandError: the run cannot start; nothing has been written then.
        KeyboardInterrupt: as the person pressed it; the checkpoint stands.
    """
    directory = Path(options.out)
    check_directory(directory, resume=resume)
    scenario = _load_scenario(options)
    net = build_network(options, scenario)
    callback = display(console, scenario.num_tasks, options.epochs)
    try:
        assert options.batch_size is not None  # TrainOptions puts the scenario's own
        trainer = Trainer(
            net,
            options.method(),
            Vision(),
            scenario,
            optimizer_factory(options),
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            device=options.device,
            precision=options.precision,
            directory=directory,
            callback=callback,
        )
    except ValueError as error:
        raise CommandError(str(error).replace("Trainer: ", "")) from None
    if not resume:
        _make_directory(directory, options)
    console.print(scenarios.summary(scenario.describe()), soft_wrap=True, highlight=False)
    try:
        with callback:
            result = trainer.fit(resume=resume)
    except CheckpointError as error:
        raise CommandError(str(error)) from None
    content = collect(options, scenario, net, result, trainer.fabric.device)
    report.write_result(content, directory)
    report.write_report(content, directory)
    return content


def check_directory(directory: Path, *, resume: bool) -> None:
    """Whether the run may start there; writes nothing.

    Raises:
        CommandError: it exists, or, to resume, holds no run; or it cannot be made.
    """
    if resume:
        if not (directory / CONFIG).is_file():
            raise CommandError(f"{directory} holds no run that --resume could go on with")
        return
    if directory.exists() or directory.is_symlink():
        hint = " (--resume goes on with it)" if (directory / CONFIG).is_file() else ""
        raise CommandError(f"{directory} exists already{hint}")
    above = directory.absolute().parent
    while not above.exists():
        above = above.parent
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise CommandError(f"{directory} cannot be made: {above} is not a folder to write in")


def read_saved(directory: Path) -> dict[str, Any]:
    """The options of the run in a directory, for ``--resume``."""
    check_directory(directory, resume=True)
    path = directory / CONFIG
    try:
        saved = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CommandError(f"{path} cannot be read: {error}") from None
    if not isinstance(saved, dict):
        raise CommandError(f"{path} is not a run's configuration")
    return saved


def build_network(options: TrainOptions, scenario: Scenario) -> HATNetwork:
    """The model, its weights from the seed alone, converted for the scenario's tasks.

    Raises:
        CommandError: the model does not fit the scenario's inputs.
    """
    outputs = scenario.classes_per_task
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("model", options.seed))
        try:
            model = models.build(
                options.model,
                scenario.input_shape,
                outputs[0],
                hidden=options.hidden,
                dropout=options.dropout,
            )
        except ValueError as error:
            raise CommandError(str(error)) from None
        return maskcl.nn.to_hat(
            model,
            scenario.num_tasks,
            torch.zeros(2, *scenario.input_shape),
            classes=outputs if scenario.setting.head == "task" else None,
            init=options.init,
        )


def optimizer_factory(
    options: TrainOptions,
) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """Parameter groups -> optimizer."""
    assert options.lr is not None  # TrainOptions puts the optimizer's own
    rate, decay = options.lr, options.weight_decay

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        if options.optimizer == "sgd":
            momentum = options.momentum
            return torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=decay)
        kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=rate, weight_decay=decay)

    return make


def collect(
    options: TrainOptions,
    scenario: Scenario,
    net: HATNetwork,
    result: Result,
    device: torch.device,
) -> dict[str, Any]:
    """The content of result.json."""
    matrix = np.asarray(result.matrix)
    chance = [1 / outputs for outputs in scenario.classes_per_task]
    found = metrics.all_metrics(matrix, untrained=result.untrained, chance=chance)
    masks = torch.stack([net.hard_mask(task) for task in range(scenario.num_tasks)]).cpu().numpy()
    spans = {name: (span.start, span.stop) for name, span in net.units.items()}
    return {
        "format": "maskcl-result",
        "version": 1,
        "method": "hat",
        "scenario": scenario.describe(),
        "summary": scenarios.summary(scenario.describe()),
        "configuration": options.to_json(),
        "parameters": sum(p.numel() for p in net.parameters()),
        "accuracy_axes": "accuracy[i][j]: test accuracy on task j after training task i, from 0",
        "accuracy": _nulls(matrix),
        "untrained": _nulls(np.asarray(result.untrained)),
        "metrics": {name: metric.to_json() for name, metric in found.items()},
        "capacity": result.capacity,
        "protected": result.protected,
        "protected_share": _protected_share(net, result.protected[-1]),
        "seconds": list(result.seconds),
        "losses": result.losses,
        "training_accuracies": result.accuracies,
        "mask_bytes": metrics.mask_bytes(masks),
        "masks": report.encode_masks(masks, spans),
        "weights_sha256": fingerprint(net),
        "environment": environment(device),
    }


def fingerprint(net: nn.Module) -> str:
    """SHA-256 of all parameters and buffers by name: equal for bit-identical networks."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _protected_share(net: HATNetwork, shares: dict[str, float]) -> float:
    """Share of all shared parameters' elements that are protected after the last task."""
    protection = net.protection()
    sizes = {
        name: parameter.numel()
        for name, parameter in zip(protection.names, protection.parameters, strict=True)
    }
    return sum(shares[name] * sizes[name] for name in shares) / sum(sizes.values())


def _nulls(values: np.ndarray) -> Any:
    """Nested lists with None for NaN, which JSON does not know."""
    mixed = values.astype(object)
    mixed[np.isnan(values)] = None
    return mixed.tolist()


def _load_scenario(options: TrainOptions) -> Scenario:
    try:
        return scenarios.load(
            options.scenario,
            data=options.data,
            seed=options.seed,
            tasks=options.tasks,
            setting=options.setting,
        )
    except scenarios.ScenarioError as error:
        raise CommandError(str(error)) from None


def _make_directory(directory: Path, options: TrainOptions) -> None:
    """Make the directory with its config.json in one step, so that it can always be resumed."""
    parent = directory.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=parent))
    try:
        text = json.dumps(options.to_json(), indent=1)
        write_atomic(temporary / CONFIG, (text + "\n").encode())
        temporary.chmod(0o777 & ~_umask())
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _umask() -> int:
    """The process's umask: mkdtemp makes folders that only their owner can read."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
