"""Scenarios of nodes and of whole graphs, from labels, domains and stamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskcl.graph import Graph
from maskcl.scenarios.base import Scenario, Task
from maskcl.scenarios.graphs.cut import Cut, Items, Request, cut
from maskcl.scenarios.graphs.features import between_first, first_rows, permuted_rows
from maskcl.scenarios.graphs.sets import GraphSet, NodeSet


@dataclass(frozen=True)
class About:
    """Where data come from, in words.

    Attributes:
        source: what and whose.
        split: how training and test were divided.
        features: of a node.
        left_out: what is in no task, where anything is.
    """

    source: str
    split: str
    features: str
    left_out: str = ""


def node_scenario(
    request: Request, x: Tensor, edge_index: Tensor, items: Items, about: About
) -> Scenario:
    """Classification of the nodes of one graph.

    Task, class, domain: every task has the whole graph. Time: the graph of task j has the nodes
    whose window is at most j and the edges among them; nodes are numbered by window, so that a
    node keeps its number.

    Args:
        request: what is asked.
        x: [N, F] floating, dense or sparse CSR.
        edge_index: int64 [2, E]; an undirected edge is there in both directions.
        items: the N nodes.
        about: the data, in words.

    Raises:
        ScenarioError: the request does not go with the items.
    """
    made = cut(request, items)
    rank = torch.arange(len(items.labels))
    if made.window is None:
        graphs = [Graph(x, edge_index)] * len(made.parts)
        edges = f"all {edge_index.shape[1]:,}"
    else:
        order, rank, sizes = by_window(made.window, len(made.parts))
        x, edge_index = permuted_rows(x, order), rank[edge_index]
        graphs = [Graph(first_rows(x, n), between_first(edge_index, n)) for n in sizes]
        edges = f"{growth(graphs)} among nodes of the task's window and earlier ones"
    tasks = [
        Task(
            part.classes,
            NodeSet(graph, rank[part.train], part.train_labels),
            NodeSet(graph, rank[part.test]),
            part.test_labels,
        )
        for part, graph in zip(made.parts, graphs, strict=True)
    ]
    edges += "; test nodes pass messages, without labels"
    return finished(request, made, tasks, "node", edges, graphs[0].num_features, about)


def graph_scenario(
    request: Request, graphs: Sequence[Graph], items: Items, about: About
) -> Scenario:
    """Classification of whole graphs; ``items`` are the graphs.

    Raises:
        ScenarioError: the request does not go with the items.
    """
    made = cut(request, items)

    def chosen(rows: Tensor, labels: Tensor | None = None) -> GraphSet:
        return GraphSet([graphs[row] for row in rows.tolist()], labels)

    tasks = [
        Task(
            part.classes, chosen(part.train, part.train_labels), chosen(part.test), part.test_labels
        )
        for part in made.parts
    ]
    edges = "each graph's own"
    return finished(request, made, tasks, "graph", edges, graphs[0].num_features, about)


def by_window(window: Tensor, count: int) -> tuple[Tensor, Tensor, list[int]]:
    """Nodes numbered by their window: those of the first j + 1 windows come first.

    Args:
        window: int64[N]; ``count`` or more for nodes that no task has.
        count: of tasks.

    Returns:
        (order, rank, sizes): int64[N], the node in each place; int64[N], each node's place; and
        how many nodes each task has.
    """
    order = window.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    return order, rank, window.bincount(minlength=count).cumsum(0)[:count].tolist()


def growth(graphs: Sequence[Graph]) -> str:
    """The first and the last number of edges."""
    first, last = (graph.edge_index.shape[1] for graph in (graphs[0], graphs[-1]))
    return f"{first:,} growing to {last:,}"


def finished(
    request: Request,
    made: Cut,
    tasks: list[Task],
    problem: str,
    edges: str,
    features: int,
    about: About,
    prediction: bool = False,
) -> Scenario:
    """The scenario of these tasks; a metric that ranks scores needs one logit.

    Raises:
        ScenarioError: a task has no examples, or its labels do not allow the metric.
    """
    metric = request.metric or ("auroc" if prediction else "accuracy")
    detail = {
        "edges": edges,
        "split": about.split,
        "features": about.features,
        "order": made.order,
    }
    if about.left_out:
        detail["left_out"] = about.left_out
    return Scenario(
        request.name,
        made.setting,
        request.seed,
        tasks,
        (features,),
        about.source,
        problem=problem,
        metric=metric,
        outputs=None if metric == "accuracy" and not prediction else [1] * len(tasks),
        prediction=prediction,
        detail=detail,
    )
