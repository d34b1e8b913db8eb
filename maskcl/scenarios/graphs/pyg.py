"""A scenario from any torch_geometric dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from maskcl.graph import Graph
from maskcl.scenarios.base import PROBLEMS, Scenario, ScenarioError
from maskcl.scenarios.graphs.attributes import (
    Given,
    first_of_each,
    of_ends,
    several,
    single,
    tensor,
)
from maskcl.scenarios.graphs.build import graph_scenario, node_scenario
from maskcl.scenarios.graphs.cut import TEST_SHARE, Items, Request
from maskcl.scenarios.graphs.cut import split as split_rows
from maskcl.scenarios.graphs.links import link_scenario, split_links
from maskcl.scenarios.graphs.reading import geometric
from maskcl.settings import Setting


def from_pyg(
    dataset: Any,
    *,
    problem: str,
    setting: str | Setting,
    tasks: int | None = None,
    label: str | Tensor | None = None,
    domain: str | Tensor | None = None,
    time: str | Tensor | None = None,
    split: tuple[Tensor, Tensor] | None = None,
    prediction: bool = False,
    metric: str | None = None,
    shuffle: bool = False,
    groups: Sequence[Sequence[int]] | None = None,
    test_share: float = TEST_SHARE,
    name: str = "pyg",
    seed: int = 0,
) -> Scenario:
    """Make a scenario of a torch_geometric ``Data``, or of a dataset of them.

    Labels, domains and stamps are attributes, by name, or tensors: one number for each node,
    link or graph. A link has the domain and time of its ends where those are given for nodes:
    the time of the later node; a whole-numbered domain where both ends share it, else none; the
    mean of floating domains. What has no domain, or a label below 0, passes messages only.

    Args:
        dataset: a ``Data``; or a sequence of them, one for "node" and "link".
        problem: "node", "link" or "graph".
        setting: "task", "class", "domain" or "time".
        tasks: how many; None for two classes a task, every domain, or every stamp.
        label: classes; None for ``y``, of links ``edge_label``.
        domain: what the domain setting cuts by.
        time: what the time setting cuts by.
        split: (training, test), bool[n] each. None: nodes have the ``train_mask`` and
            ``test_mask`` of the data where both are there; else ``test_share`` of each class is
            held out by the seed, a link and its reverse together.
        prediction: which pairs are links is the question, and links have no classes.
        metric: None for "accuracy", of prediction "auroc".
        shuffle: classes or domains in an order that the seed draws.
        groups: the classes of each task, instead of an even cut.
        test_share: between 0 and 1.
        name: printed with every figure.
        seed: of all that is drawn.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    if problem not in PROBLEMS[1:]:
        raise ScenarioError(f"{name}: problem is {problem!r}, wanted {', '.join(PROBLEMS[1:])}")
    if prediction and (problem != "link" or label is not None):
        raise ScenarioError(f"{name}: prediction is of links, and takes no label")
    if not 0 < test_share < 1:
        raise ScenarioError(f"{name}: test_share is {test_share}, wanted between 0 and 1")
    if not 0 <= seed < 2**32:
        raise ScenarioError(f"{name}: seed must be 0 to {2**32 - 1}, got {seed}")
    geometric(name)
    made = {"node": _nodes, "link": _links, "graph": _graphs}[problem]
    request = Request(name, setting, seed, tasks, shuffle, groups, metric)
    given = Given(name, label, domain, time, split, test_share, prediction)
    try:
        return made(request, given, dataset)
    except ScenarioError:
        raise
    except (TypeError, ValueError) as error:  # Graph's, of features and edges that do not fit
        raise ScenarioError(f"{name}: {error}") from error


def _nodes(request: Request, given: Given, dataset: Any) -> Scenario:
    data = single(given.name, dataset)
    x, edge_index = tensor(given.name, data, "x"), tensor(given.name, data, "edge_index")
    count = len(x)
    labels = given.numbers("label", data, [count], "y")
    train_mask, test_mask = getattr(data, "train_mask", None), getattr(data, "test_mask", None)
    if given.split is None and train_mask is not None and test_mask is not None:
        given = dataclasses.replace(given, split=(train_mask, test_mask))
    sets = given.sets(labels >= 0)
    train, test = sets or split_rows(labels, request.seed, given.test_share, labels >= 0)
    domain, time = (
        None if getattr(given, what) is None else given.numbers(what, data, [count])
        for what in ("domain", "time")
    )
    items = Items(labels.clamp(min=0), train, test, domain, time)
    return node_scenario(request, x, edge_index, items, given.about(dataset, sets is not None))


def _links(request: Request, given: Given, dataset: Any) -> Scenario:
    data = single(given.name, dataset)
    pairs = tensor(given.name, data, "edge_index").t()
    x = tensor(given.name, data, "x") if getattr(data, "x", None) is not None else None
    nodes = int(data.num_nodes) if x is None else len(x)
    if len(pairs) == 0 or int(pairs.min()) < 0 or int(pairs.max()) >= nodes:
        raise ScenarioError(f"{given.name}: edge_index has no edges, or edges to no node")
    counts = [len(pairs), nodes]
    found = {}
    for what in ("domain", "time"):
        values = None if getattr(given, what) is None else given.numbers(what, data, counts)
        if values is not None and len(values) != len(pairs):
            values = of_ends(values[pairs], what)
        found[what] = values
    if given.prediction:
        labels = torch.zeros(len(pairs), dtype=torch.int64)
        # One of a link and its reverse, and no loops: both would be asked for twice.
        used = first_of_each(pairs, nodes) & (pairs[:, 0] != pairs[:, 1])
    else:
        labels = given.numbers("label", data, counts[:1], "edge_label")
        used = labels >= 0
    sets = given.sets(used)
    train, test = sets or split_links(pairs, nodes, labels, request.seed, given.test_share, used)
    items = Items(labels.clamp(min=0), train, test, found["domain"], found["time"])
    features = (
        "the data's" if x is not None else "how many links out and in, one-hot by powers of two"
    )
    about = given.about(dataset, sets is not None, features)
    return link_scenario(request, x, nodes, pairs, items, about, given.prediction)


def _graphs(request: Request, given: Given, dataset: Any) -> Scenario:
    parts = several(given.name, dataset)
    graphs = [
        Graph(tensor(given.name, part, "x"), tensor(given.name, part, "edge_index"))
        for part in parts
    ]
    gathered = SimpleNamespace()
    for what, default in (("label", "y"), ("domain", None), ("time", None)):
        key = default if getattr(given, what) is None else getattr(given, what)
        if isinstance(key, str):
            values = [tensor(given.name, part, key).flatten() for part in parts]
            setattr(gathered, key, torch.cat(values))
    labels = given.numbers("label", gathered, [len(parts)], "y")
    sets = given.sets(labels >= 0)
    train, test = sets or split_rows(labels, request.seed, given.test_share, labels >= 0)
    domain, time = (
        None if getattr(given, what) is None else given.numbers(what, gathered, [len(parts)])
        for what in ("domain", "time")
    )
    items = Items(labels.clamp(min=0), train, test, domain, time)
    return graph_scenario(request, graphs, items, given.about(dataset, sets is not None))
