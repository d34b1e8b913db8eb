"""A run's plain network, and the problem that it is trained on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import maskcl
from maskcl import models
from maskcl.cli.common import build_model
from maskcl.cli.method import GRAPH_WIDTHS, TrainOptions
from maskcl.cli.options import CommandError
from maskcl.problems import Graphs, Link, Node, Problem, Vision
from maskcl.training.pretrain import BaseError, empty_model

if TYPE_CHECKING:
    from maskcl.nn import ImportanceNetwork
    from maskcl.scenarios import Scenario


def plain_model(options: TrainOptions, scenario: Scenario) -> nn.Module:
    """The network before any method is applied to it; call it inside `seeded_weights`.

    Raises:
        CommandError: the model does not fit the scenario's inputs, or torch_geometric is missing.
    """
    name, outputs = str(options.model), scenario.outputs[0]
    hidden, dropout = options.hidden, options.dropout
    if scenario.problem == "vision":
        return build_model(name, scenario.input_shape, outputs, hidden=hidden, dropout=dropout)
    try:
        # A newer torch calls a part of it old that torch_geometric uses when it is imported.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
            return _graph_model(options, scenario, name, outputs)
    except (ValueError, ImportError) as error:
        raise CommandError(str(error)) from None


def _graph_model(options: TrainOptions, scenario: Scenario, name: str, outputs: int) -> nn.Module:
    return models.build_graph(
        scenario.problem,
        name,
        scenario.input_shape[0],
        outputs,
        hidden=options.hidden or GRAPH_WIDTHS,
        dropout=options.dropout or 0.0,
        norm=options.batch_norm,
    )


def base_model(facts: dict[str, Any], where: str) -> nn.Module:
    """The module of the architecture that a base's facts describe.

    Raises:
        BaseError: they describe none; ``where`` is named.
    """
    if facts.get("problem", "vision") == "vision":
        return empty_model(facts, where)
    try:
        with torch.random.fork_rng(devices=[]):
            return models.build_graph(
                facts["problem"],
                facts["model"],
                facts["input_shape"][0],
                facts["outputs"],
                hidden=tuple(facts["hidden"] or GRAPH_WIDTHS),
                dropout=facts["dropout"] or 0.0,
                norm=facts["batch_norm"],
            )
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise BaseError(f"{where} describes no network: {error}") from None


def example_of(options: TrainOptions, scenario: Scenario) -> Any:
    """Inputs that the plain network can be traced with."""
    if scenario.problem == "vision":
        return torch.zeros(2, *scenario.input_shape)
    adjacency = models.ENCODERS[str(options.model)]
    return models.example_inputs(scenario.problem, adjacency, scenario.input_shape[0])


def problem_for(options: TrainOptions, scenario: Scenario) -> Problem:
    """The scenario's problem; its batches hold the edges that the network takes."""
    if scenario.problem == "vision":
        return Vision()
    adjacency = models.ENCODERS[str(options.model)]
    output = "label" if scenario.metric == "accuracy" else "score"
    if scenario.problem == "node":
        return Node(adjacency, options.fanouts, output)
    if scenario.problem == "link":
        return Link(adjacency, scenario.prediction, output)
    return Graphs(adjacency, output)


def with_heads(model: nn.Module, scenario: Scenario) -> ImportanceNetwork:
    """A network that all tasks train: with a head a task, a growing one, or one that they share."""
    head = scenario.setting.head
    return maskcl.nn.to_importance(
        model,
        scenario.num_tasks,
        classes=None if head == "shared" else scenario.outputs,
        growing=head == "growing",
    )
