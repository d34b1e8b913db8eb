"""Ratings among people and molecules as graphs, from text files in torch_geometric's raw layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from maskcl.graph import Graph
from maskcl.scenarios.base import Scenario, ScenarioError
from maskcl.scenarios.graphs.build import About, graph_scenario
from maskcl.scenarios.graphs.cut import Items, Request, split
from maskcl.scenarios.graphs.links import link_scenario, split_links
from maskcl.scenarios.graphs.reading import find_folder, first_line, geometric, require_lines

# Ratings that are one class, as BeGin groups them; 1 and 2, most of all, are in none.
RATINGS = ((-10, -10), (-9, -1), (3, 3), (4, 4), (5, 5), (6, 10))


def bitcoin(request: Request, data: Path | None, variant: str) -> Scenario:
    """Classification of who rates whom among traders (Kumar et al. 2016).

    Task, class: the classes of ``RATINGS``. Time: class 1 is a rating below 0, scored by AUROC.

    Args:
        request: what is asked.
        data: folder with ``raw/soc-sign-bitcoinotc.csv``.
        variant: "otc".

    Raises:
        ScenarioError: the file is missing, damaged or not what its name says.
    """
    file = f"soc-sign-bitcoin{variant}.csv"
    path = find_folder(request.name, data, file, ["raw", "Bitcoin/raw", "."]) / file
    table = _ratings(path)
    users, pairs = torch.from_numpy(table[:, :2].astype(np.int64)).unique(return_inverse=True)
    rating = torch.from_numpy(table[:, 2].astype(np.int64))
    setting = request.setting if isinstance(request.setting, str) else request.setting.name
    by_sign = setting == "time"
    labels = (rating < 0).long() if by_sign else _rating_classes(rating)
    used = labels >= 0
    train, test = split_links(pairs, len(users), labels, request.seed, used=used)
    items = Items(labels, train, test, time=torch.from_numpy(table[:, 3]))
    if by_sign and request.metric is None:
        request = dataclasses.replace(request, metric="auroc")
    about = About(
        f"Bitcoin {variant.upper()} ratings, SNAP's file; "
        + ("class 1: below 0" if by_sign else f"classes of ratings {_spans()}"),
        "a fifth of each class held out for test by the seed, a pair's two ratings together",
        "ratings given and got, of those that pass messages, one-hot by powers of two",
        "" if by_sign else f"{int((~used).sum()):,} ratings of 1 and 2: they only pass messages",
    )
    return link_scenario(request, None, len(users), pairs, items, about)


def molecules(request: Request, data: Path | None, variant: str) -> Scenario:
    """Classification of molecules (Morris et al. 2020); a graph's domain is its number of nodes.

    Args:
        request: what is asked.
        data: folder with ``ENZYMES/raw/ENZYMES_A.txt`` and so on.
        variant: "enzymes" or "mutag".

    Raises:
        ScenarioError: a file is missing, damaged or not what its name says.
    """
    name = variant.upper()
    places = [f"{name}/raw", f"TUDataset/{name}/raw", "raw", name, "."]
    folder = find_folder(request.name, data, f"{name}_A.txt", places)
    needed = ["A", "graph_indicator", "graph_labels", "node_labels"]
    for part in [*needed, "node_attributes"] if variant == "enzymes" else needed:
        require_lines(folder / f"{name}_{part}.txt")
    x, edges, nodes_of, labels, attributes = _tu_graphs(folder, name)
    train, test = split(labels, request.seed)
    features = "the kind of node, one of several"
    if attributes:
        x = _standardised(x, attributes, train.repeat_interleave(nodes_of))
        features += f", and {attributes} attributes, standardised by the training graphs"
    graphs = [
        Graph(part, ends) for part, ends in zip(x.split(nodes_of.tolist()), edges, strict=True)
    ]
    about = About(
        f"{name}, TUDataset's files; domains by the number of nodes",
        "a fifth of each class held out for test by the seed",
        features,
    )
    items = Items(labels, train, test, domain=nodes_of.float())
    return graph_scenario(request, graphs, items, about)


def _ratings(path: Path) -> np.ndarray:
    """float64[n, 4]: who, whom, rating, stamp."""
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2)
    except (OSError, ValueError) as error:
        raise ScenarioError(
            f"{path} cannot be read, it is cut off or damaged: {first_line(error)}"
        ) from error
    if table.size == 0 or table.shape[1] != 4 or not np.isfinite(table).all():
        raise ScenarioError(f"{path} is no table of who, whom, rating and time: it is damaged")
    whole, rating = table[:, :3], table[:, 2]
    if (whole != np.rint(whole)).any() or (np.abs(rating) > 10).any() or (rating == 0).any():
        raise ScenarioError(
            f"{path} holds ratings other than -10 to -1 and 1 to 10, or users that are no whole "
            "numbers: it is damaged"
        )
    return table


def _rating_classes(rating: Tensor) -> Tensor:
    """int64[n]: the number of the class in ``RATINGS``, -1 for none."""
    labels = torch.full_like(rating, -1)
    for index, (low, high) in enumerate(RATINGS):
        labels[(low <= rating) & (rating <= high)] = index
    return labels


def _spans() -> str:
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in RATINGS)


def _tu_graphs(folder: Path, name: str) -> tuple[Tensor, list[Tensor], Tensor, Tensor, int]:
    """Features [N, F] of all nodes; each graph's edges, number of nodes and label.

    Last, how many of the features, the first ones, are attributes.
    """
    geometric(name.lower())
    from torch_geometric.io import read_tu_data

    try:
        data, slices, sizes = read_tu_data(str(folder), name)
    except (ValueError, RuntimeError, IndexError, TypeError, OSError) as error:
        raise ScenarioError(
            f"{folder}: {name}_*.txt do not fit together, one is cut off or damaged: "
            f"{first_line(error)}"
        ) from error
    nodes_of = slices["x"].diff()
    edges = data.edge_index.split(slices["edge_index"].diff().tolist(), dim=1)
    if int(nodes_of.sum()) != len(data.x) or len(nodes_of) != len(data.y):
        raise ScenarioError(
            f"{folder}: {name}_graph_indicator.txt tells of {len(nodes_of)} graphs with "
            f"{int(nodes_of.sum())} nodes, the others of {len(data.y)} and {len(data.x)}: one is "
            "cut off or damaged"
        )
    for index, (ends, size) in enumerate(zip(edges, nodes_of.tolist(), strict=True)):
        inside = not ends.numel() or 0 <= int(ends.min()) <= int(ends.max()) < size
        # Each edge is listed in both directions: a file that is cut off lacks some.
        keys = ends[0] * size + ends[1], ends[1] * size + ends[0]
        if not inside or not torch.equal(keys[0].sort().values, keys[1].sort().values):
            raise ScenarioError(
                f"{folder / f'{name}_A.txt'}: edges of graph {index + 1} leave it or lack their "
                "reverse: it is cut off or damaged"
            )
    return data.x, list(edges), nodes_of, data.y, sizes["num_node_attributes"]


def _standardised(x: Tensor, count: int, train: Tensor) -> Tensor:
    """The first ``count`` features with mean 0 and deviation 1 over the training graphs' nodes."""
    mean = x[train, :count].mean(dim=0)
    std = x[train, :count].std(dim=0).clamp(min=1e-6)
    return torch.cat([(x[:, :count] - mean) / std, x[:, count:]], dim=1)
