"""``maskcl export``: one task of a finished run as a small network in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

import maskcl
from maskcl import models
from maskcl.checkpoint import Checkpoint, load_checkpoint, load_network
from maskcl.cli.folders import CONFIG, check_out, check_task, read_config_of
from maskcl.cli.masks import open_run
from maskcl.cli.method import MethodCommand
from maskcl.cli.options import CommandError, combine
from maskcl.cli.saved_network import Described, network_as_made, of_run
from maskcl.export import compact, save
from maskcl.export.compact_network import Network
from maskcl.export.flops_and_latency import compare
from maskcl.export.save_file import check_path
from maskcl.files import is_no_room
from maskcl.graph import Graph
from maskcl.training.trainer import CHECKPOINT

# Edges for each node of the random graph that a graph network is measured on.
_DEGREE = 5


def export(run: Path, task: int, out: Path, samples: int, methods: dict[str, MethodCommand]) -> str:
    """Write a task's compact network; returns what to say.

    Args:
        run: folder of a run.
        task: a finished one.
        out: new file; its ending says in which form.
        samples: images in the batch, or nodes of the graph, that both networks are timed on.
        methods: by name.

    Raises:
        CommandError: no such run or task, the file exists, or it cannot be written (in that form);
            nothing is written then.
    """
    if samples < 2:
        raise CommandError(f"batch-size must be at least 2, got {samples}")
    try:
        options, checkpoint, net = open_network(run, methods)
        check_task(run, task, net.num_tasks)
        check_path(out)
        check_out(out)
        if not bool(net.finished[task]):
            raise CommandError(f"task {task} of {run} is not finished")
        described = Described.of(checkpoint.config["scenario"])
        inputs = _inputs(str(options["model"]), described, samples)
        small = compact(net, task, inputs)
        found = compare(task, maskcl.nn.to_plain(net, task), small, inputs)
        size = save(small, out, inputs)
    except (ValueError, FileExistsError, ImportError) as error:
        if isinstance(error, CommandError):
            raise
        raise CommandError(str(error).removeprefix("save: ")) from None
    except OSError as error:
        if is_no_room(error):
            raise
        raise CommandError(f"{out} cannot be written: {error.strerror or error}") from None
    return f"{found}\n{out}: {size:,} bytes, task {task} of {run}"


def open_network(
    run: Path, methods: dict[str, MethodCommand]
) -> tuple[dict[str, Any], Checkpoint, Network]:
    """A run's options with the model that it really has, its checkpoint, and its network.

    Raises:
        CommandError: it is no run, it has no checkpoint, or that does not fit.
    """
    method, saved, made_from = read_config_of(run)
    if method == "piggyback":
        checkpoint, masked = open_run(run)
        return {**saved, "model": made_from["model"]}, checkpoint, masked.eval()
    if method not in methods:
        raise CommandError(f"{run} holds a run of {method!r}, which this maskcl does not know")
    with of_run(run):
        checkpoint = load_checkpoint(run / CHECKPOINT)
        where = str(run / CONFIG)
        options = combine(methods[method].options, {}, {}, saved, where=where)
        net = network_as_made(methods[method], saved, made_from, checkpoint.config["scenario"])
        load_network(net, checkpoint.tensors, run / CHECKPOINT)
    return {**saved, "model": options.model}, checkpoint, cast("Network", net.eval())


def _inputs(model: str, described: Described, samples: int) -> Any:
    """Random inputs of the size to measure with; the same in every call."""
    generator = torch.Generator().manual_seed(0)
    if described.problem == "vision":
        return torch.randn(samples, *described.input_shape, generator=generator)
    x = torch.randn(samples, described.input_shape[0], generator=generator)
    pairs = torch.randint(samples, (2, _DEGREE * samples), generator=generator)
    edges = Graph(x, pairs).edges(models.ENCODERS[model])
    nodes = torch.arange(samples)
    if described.problem == "node":
        return x, edges, nodes
    if described.problem == "link":
        return x, edges, pairs.T.contiguous()
    return x, edges, nodes // 2, (samples + 1) // 2
