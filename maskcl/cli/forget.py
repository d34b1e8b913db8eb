"""``maskcl forget``: one task of a finished run is unlearned, and its files say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from maskcl import report
from maskcl.checkpoint import Checkpoint, network_state, save_checkpoint
from maskcl.cli.common import fingerprint
from maskcl.cli.export import open_network
from maskcl.cli.folders import FORGOTTEN, check_task, read_config_of
from maskcl.cli.method import MethodCommand
from maskcl.cli.options import CommandError
from maskcl.cli.saved_network import of_run
from maskcl.files import write_json
from maskcl.lock import locked
from maskcl.nn import Forgotten, HATNetwork
from maskcl.report.files import RESULT, whole
from maskcl.training.method_content import free_counts, protected_share
from maskcl.training.trainer import CHECKPOINT


def forget(run: Path, task: int, seed: int, methods: dict[str, MethodCommand]) -> str:
    """Unlearn a task of a run; returns what to say.

    The checkpoint is written first, in one step, and holds the record that all other files follow
    from: where the command is interrupted after it, the same command writes the rest.

    Args:
        run: folder of a finished run of HAT or Piggyback.
        task: a finished one.
        seed: of what is drawn anew.
        methods: by name.

    Raises:
        CommandError: no such run or task, it is not finished, or its method cannot unlearn; nothing
            is written then.
    """
    method = read_config_of(run)[0]
    if method not in ("hat", "piggyback"):
        whose = "tasks all move the same weights, so that none can be unlearned"
        if method in ("joint", "independent"):
            whose = "networks are each trained from the start, and none but the last is kept"
        raise CommandError(f"{run} holds a run of {method}, whose {whose}: train the others anew")
    with locked(run):
        return _forget(run, task, seed, methods, method)


def _forget(run: Path, task: int, seed: int, methods: dict[str, MethodCommand], method: str) -> str:
    _, checkpoint, net = open_network(run, methods)
    check_task(run, task, net.num_tasks)
    if not (run / RESULT).exists():
        raise _unfinished(run, method)
    result = report.read_result(run)
    with of_run(run):
        known = {str(int(k)): v for k, v in checkpoint.facts.get(FORGOTTEN, {}).items()}
    if checkpoint.position["task"] != checkpoint.config["scenario"]["num_tasks"]:
        raise _unfinished(run, method)
    # Those of the runs before that it goes on from are not among ``known``.
    gone = set(torch.nonzero(~net.finished).flatten().tolist())
    if task in gone and str(task) not in known:
        raise CommandError(f"task {task} of {run} was forgotten before the run began")
    if task in gone:
        said = f"task {task} of {run} was forgotten before; its files say so now"
    else:
        record = _unlearn(net, task, seed)
        known[str(task)] = record.to_json()
        _save(run / CHECKPOINT, checkpoint, net, known)
        said = f"{run / CHECKPOINT}: {record}"
    for name, facts in known.items():
        write_json(run / f"forgotten-{name}.json", facts)
    content = result | _changed(net, result, sorted({*gone, task}))
    report.write_result(content, run)
    with whole(run):
        report.write_report(content, run)
    return "\n".join(
        [said, f"{run / f'forgotten-{task}.json'}: what was removed", *_left(run, task)]
    )


def _unfinished(run: Path, method: str) -> CommandError:
    return CommandError(
        f"the run in {run} is not finished: `maskcl train {method} --out {run} --resume`"
    )


def _unlearn(net: Any, task: int, seed: int) -> Forgotten:
    try:
        record: Forgotten = net.forget_task(task, reset=True, seed=seed)
    except RuntimeError as error:
        raise CommandError(str(error)) from None
    return record


def _save(path: Path, checkpoint: Checkpoint, net: Any, known: dict[str, Any]) -> None:
    others = {n: t for n, t in checkpoint.tensors.items() if not n.startswith("network.")}
    tensors, checkpoint.lasting = network_state(net)
    checkpoint.tensors = {**others, **tensors}
    checkpoint.facts = {**checkpoint.facts, FORGOTTEN: known}
    save_checkpoint(path, checkpoint)


def _changed(net: Any, result: dict[str, Any], gone: list[int]) -> dict[str, Any]:
    """What of a result is no longer true: masks and counts; scores are of the training."""
    changed: dict[str, Any] = {"forgotten": gone, "weights_sha256": fingerprint(net)}
    if not isinstance(net, HATNetwork):
        return changed
    spans = {name: (span.start, span.stop) for name, span in net.units.items()}
    masks = torch.stack([net.hard_mask(task) for task in range(net.num_tasks)])
    masks[gone] = False
    return changed | {
        "masks": report.encode_masks(masks.cpu().numpy(), spans),
        "protected_share": protected_share(net, net.protection().fraction()),
        "free": free_counts(net),
    }


def _left(run: Path, task: int) -> list[str]:
    """What the command does not touch."""
    name = run / "masks" / f"task-{task}.safetensors"
    files = [f"{name} still holds the task's masks: delete it too"] if name.exists() else []
    return [*files, "files exported before, copies and backups are not touched"]
