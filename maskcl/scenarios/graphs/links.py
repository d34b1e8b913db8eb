"""Scenarios of links: their classification, and the prediction of which pairs are links."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from maskcl.graph import Graph
from maskcl.scenarios.base import Scenario, ScenarioError, Task
from maskcl.scenarios.class_order import NEGATIVES
from maskcl.scenarios.graphs.build import About, by_window, finished, growth
from maskcl.scenarios.graphs.cut import TEST_SHARE, Cut, Items, Part, Request, cut, split
from maskcl.scenarios.graphs.features import both_ways, degrees, first_rows, permuted_rows
from maskcl.scenarios.graphs.sets import LinkSet


def link_scenario(
    request: Request,
    x: Tensor | None,
    num_nodes: int,
    pairs: Tensor,
    items: Items,
    about: About,
    prediction: bool = False,
) -> Scenario:
    """Classification of links, or prediction of which pairs are links.

    Messages use the links that are no test links, in both directions: those of all tasks, or in
    the time setting those whose window is at most the task's, between nodes that had a link by
    then (numbered by their first window). A link whose reverse is a test link passes none.

    Args:
        request: what is asked; with ``prediction`` its setting is "domain" or "time".
        x: [N, F]; None for the degrees among the links that pass messages (`degrees`).
        num_nodes: N.
        pairs: int64[n, 2], all links.
        items: the links; with ``prediction`` their labels are not used.
        about: the data, in words.
        prediction: test pairs are the test links and as many pairs that are no link in either
            direction, drawn by the seed once and for all.

    Raises:
        ScenarioError: the request does not go with the links.
    """
    if prediction:
        refuse_classes(request)
    made = cut(request, items)
    keys = unordered(pairs, num_nodes)
    carries = ~torch.isin(keys, keys[items.test])
    if made.window is None:
        graphs = [_graph(x, pairs[carries], num_nodes)] * len(made.parts)
        edges = f"the {graphs[0].edge_index.shape[1]:,} of links not held out for test"
    else:
        graphs, pairs = _grown(made, made.window, x, num_nodes, pairs, carries)
        edges = f"{growth(graphs)} of links not held out, of the task's window and earlier ones"
    tasks = []
    for index, (part, graph) in enumerate(zip(made.parts, graphs, strict=True)):
        if prediction:
            tasks.append(_prediction_task(request, index, part, graph, pairs))
        else:
            train = LinkSet(graph, pairs[part.train], part.train_labels)
            inputs = LinkSet(graph, pairs[part.test])
            tasks.append(Task(part.classes, train, inputs, part.test_labels))
    features = graphs[0].num_features
    return finished(request, made, tasks, "link", edges, features, about, prediction)


def refuse_classes(request: Request) -> None:
    """Raise a ScenarioError where link prediction is asked for in a setting that cuts by class."""
    name = request.setting if isinstance(request.setting, str) else request.setting.name
    if name in ("task", "class"):
        raise ScenarioError(
            f"{request.name}: link prediction has no classes to cut by, so no {name} setting: "
            "wanted domain or time"
        )


def split_links(
    pairs: Tensor,
    num_nodes: int,
    labels: Tensor,
    seed: int,
    share: float = TEST_SHARE,
    used: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(train, test) as bool[n]: a share of each class for test; a link and its reverse together.

    Args:
        pairs: int64[n, 2].
        num_nodes: N.
        labels: int64[n]; a link and its reverse may differ: the first one counts.
        seed: of the draw.
        share: of the pairs of each class.
        used: bool[n]: the links to divide; None for all.
    """
    rows = torch.arange(len(pairs)) if used is None else torch.nonzero(used).flatten()
    _, group = unordered(pairs[rows], num_nodes).unique(return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(rows))
    first.scatter_reduce_(0, group, torch.arange(len(rows)), "amin")
    _, held_out = split(labels[rows][first], seed, share)
    test = torch.zeros(len(pairs), dtype=torch.bool)
    test[rows] = held_out[group]
    train = torch.zeros_like(test)
    train[rows] = ~held_out[group]
    return train, test


def unordered(pairs: Tensor, num_nodes: int) -> Tensor:
    """int64[n]: a number for each pair of nodes, the same in both directions."""
    return pairs.amin(dim=1) * num_nodes + pairs.amax(dim=1)


def _graph(x: Tensor | None, links: Tensor, num_nodes: int) -> Graph:
    features = degrees(links, num_nodes) if x is None else first_rows(x, num_nodes)
    return Graph(features, both_ways(links, num_nodes))


def _grown(
    made: Cut, window: Tensor, x: Tensor | None, num_nodes: int, pairs: Tensor, carries: Tensor
) -> tuple[list[Graph], Tensor]:
    """The graph of each task in the time setting, and the pairs by the nodes' new numbers."""
    count = len(made.parts)
    first = torch.full((num_nodes,), count)
    first.scatter_reduce_(0, pairs.flatten(), window.repeat_interleave(2), "amin")
    order, rank, sizes = by_window(first, count)
    x = None if x is None else permuted_rows(x, order)
    pairs = rank[pairs]
    graphs = [_graph(x, pairs[carries & (window <= task)], size) for task, size in enumerate(sizes)]
    return graphs, pairs


def _prediction_task(request: Request, index: int, part: Part, graph: Graph, pairs: Tensor) -> Task:
    """Links to train on; to test, links and as many pairs that are none, in a drawn order."""
    random = np.random.RandomState([request.seed, NEGATIVES, index])
    # The lower node first, of links and of others: the order of a pair must not tell them apart.
    pairs = pairs.sort(dim=1).values
    links = pairs[part.test]
    none = _no_links(request, random, len(links), graph.num_nodes, pairs)
    order = torch.from_numpy(random.permutation(2 * len(links)))
    labels = torch.arange(2).flip(0).repeat_interleave(len(links))[order]
    inputs = LinkSet(graph, torch.cat([links, none])[order])
    return Task([0, 1], LinkSet(graph, pairs[part.train]), inputs, labels)


def _no_links(
    request: Request, random: np.random.RandomState, count: int, num_nodes: int, links: Tensor
) -> Tensor:
    """int64[count, 2]: distinct pairs of different nodes, the first ones, that are no link."""
    links = links[(links < num_nodes).all(dim=1)]
    taken = unordered(links, num_nodes).unique().numpy()
    # So that at least a quarter of what is drawn can be kept, and the loop ends soon.
    if num_nodes * (num_nodes - 1) // 2 < 2 * (len(taken) + count):
        raise ScenarioError(
            f"{request.name}: {num_nodes} nodes with {len(taken)} links have too few other pairs "
            f"to draw {count} from"
        )
    kept = np.empty(0, dtype=np.int64)
    while len(kept) < count:
        drawn = random.randint(0, num_nodes, size=(2 * count, 2))
        low, high = drawn.min(axis=1), drawn.max(axis=1)
        keys = (low * num_nodes + high)[low != high]
        kept = np.concatenate([kept, keys[~np.isin(keys, taken)]])
        _, where = np.unique(kept, return_index=True)
        kept = kept[np.sort(where)]
    kept = kept[:count]
    return torch.from_numpy(np.stack([kept // num_nodes, kept % num_nodes], axis=1))
