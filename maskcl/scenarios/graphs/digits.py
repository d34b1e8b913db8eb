"""Graphs of scikit-learn's digits: a neighbour graph of the images, and each image a graph."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from maskcl.graph import Graph
from maskcl.scenarios import sources
from maskcl.scenarios.base import Scenario
from maskcl.scenarios.graphs.build import About, graph_scenario, node_scenario
from maskcl.scenarios.graphs.cut import Items, Request
from maskcl.scenarios.graphs.links import link_scenario, split_links
from maskcl.scenarios.sources import Images

NEIGHBOURS = 5

_SOURCE = "scikit-learn digits, 8x8"
_LINKED = f"an image is linked with its {NEIGHBOURS} nearest others, in both directions"
_PIXELS = "the 64 pixels of an image, between 0 and 1"


def nodes(request: Request) -> Scenario:
    """Nodes are images; the domain is the amount of ink, time the place in scikit-learn's file."""
    images = sources.digits(request.seed)
    train, test = (_mask(rows, len(images.labels)) for rows in (images.train, images.test))
    items = Items(images.labels, train, test, domain=_ink(images), time=_place(images))
    x = images.pixels.flatten(1) / images.full_scale
    about = About(f"{_SOURCE}; {_LINKED}", _split("digit"), _PIXELS)
    return node_scenario(request, x, neighbours(images.pixels), items, about)


def links(request: Request) -> Scenario:
    """Links of the neighbour graph between images of one digit; their class is the digit.

    The domain of a link is the ink of its two images, its time that of the later one.
    """
    images, x, pairs, items = _neighbour_links(request)
    ends = images.labels[pairs]
    same = ends[:, 0] == ends[:, 1]
    train, test = split_links(pairs, len(x), ends[:, 0], request.seed, used=same)
    items = dataclasses.replace(items, labels=ends[:, 0], train=train, test=test)
    about = About(
        f"{_SOURCE}; {_LINKED}; the class of a link is the digit that both images show",
        _split("digit"),
        _PIXELS,
        f"{int((~same).sum()):,} of {len(pairs):,} links, between different digits: "
        "they only pass messages",
    )
    return link_scenario(request, x, len(x), pairs, items, about)


def missing_links(request: Request) -> Scenario:
    """Which images are neighbours, from a graph that lacks a fifth of its links."""
    _, x, pairs, items = _neighbour_links(request)
    train, test = split_links(pairs, len(x), items.labels, request.seed)
    items = dataclasses.replace(items, train=train, test=test)
    about = About(
        f"{_SOURCE}; {_LINKED}",
        "a fifth of the links held out for test by the seed, with as many pairs that are none",
        _PIXELS,
    )
    return link_scenario(request, x, len(x), pairs, items, about, prediction=True)


def graphs(request: Request) -> Scenario:
    """Each image a graph of its lit pixels; domain and time as for the nodes."""
    images = sources.digits(request.seed)
    train, test = (_mask(rows, len(images.labels)) for rows in (images.train, images.test))
    items = Items(images.labels, train, test, domain=_ink(images), time=_place(images))
    about = About(
        f"{_SOURCE}; nodes are pixels above 0, edges between the 8 around each",
        _split("digit"),
        "a pixel's intensity between 0 and 1, its row and its column, each one of 8",
    )
    return graph_scenario(request, pixel_graphs(images.pixels, images.full_scale), items, about)


def neighbours(pixels: Tensor, count: int = NEIGHBOURS) -> Tensor:
    """int64 [2, E]: each image and the ``count`` nearest others, in both directions.

    Squared distances of whole-numbered pixels are exact, and of equal ones the image that comes
    first is nearer, so that the graph is the same on every machine.
    """
    flat = pixels.flatten(1).double().numpy()
    squares = (flat**2).sum(axis=1)
    distances = (squares[:, None] + squares[None, :] - 2 * flat @ flat.T).astype(np.int64)
    keys = distances * len(flat) + np.arange(len(flat))
    np.fill_diagonal(keys, np.iinfo(np.int64).max)
    nearest = np.argpartition(keys, count, axis=1)[:, :count]
    source = torch.from_numpy(np.ascontiguousarray(nearest)).flatten()
    target = torch.arange(len(flat)).repeat_interleave(count)
    ends = torch.cat([torch.stack([source, target]), torch.stack([target, source])], dim=1)
    return ends.unique(dim=1)


def pixel_graphs(pixels: Tensor, full_scale: float) -> list[Graph]:
    """A graph for each image [N, 1, H, W]: its pixels above 0, linked with the 8 around each.

    Features of a pixel: [intensity, row (one-hot, H), column (one-hot, W)].
    """
    count, _, height, width = pixels.shape
    lit = pixels[:, 0] > 0
    image, row, column = torch.nonzero(lit, as_tuple=True)
    intensity = (pixels[:, 0][lit] / full_scale)[:, None]
    x = torch.cat([intensity, torch.eye(height)[row], torch.eye(width)[column]], dim=1)
    # Each lit pixel's number over all images, in a frame that is never lit.
    number = torch.full((count, height + 2, width + 2), -1)
    number[:, 1:-1, 1:-1][lit] = torch.arange(len(image))
    steps = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    sources = torch.stack([number[image, row + 1 + i, column + 1 + j] for i, j in steps], dim=1)
    targets = torch.arange(len(image))[:, None].expand_as(sources)
    edges = torch.stack([sources[sources >= 0], targets[sources >= 0]])
    nodes_of = image.bincount(minlength=count)
    edges_of = image[edges[1]].bincount(minlength=count)
    starts = nodes_of.cumsum(0) - nodes_of
    parts = zip(
        x.split(nodes_of.tolist()), edges.split(edges_of.tolist(), dim=1), starts, strict=True
    )
    return [Graph(features, ends - start) for features, ends, start in parts]


def _neighbour_links(request: Request) -> tuple[Images, Tensor, Tensor, Items]:
    """Images, their pixels, the links between them and what is known of each link.

    A link's lower node is first. The links are in no set and of no class yet.
    """
    images = sources.digits(request.seed)
    source, target = neighbours(images.pixels)
    pairs = torch.stack([source, target], dim=1)[source < target]
    none = torch.zeros(len(pairs), dtype=torch.bool)
    items = Items(
        torch.zeros(len(pairs), dtype=torch.int64),
        none,
        none,
        domain=_ink(images)[pairs].mean(dim=1),
        time=_place(images)[pairs].amax(dim=1),
    )
    return images, images.pixels.flatten(1) / images.full_scale, pairs, items


def _mask(rows: Tensor, count: int) -> Tensor:
    mask = torch.zeros(count, dtype=torch.bool)
    mask[rows] = True
    return mask


def _ink(images: Images) -> Tensor:
    """float32[N]: the mean of an image's pixels."""
    return images.pixels.flatten(1).mean(dim=1)


def _place(images: Images) -> Tensor:
    """int64[N]: the place in scikit-learn's file."""
    return torch.arange(len(images.labels))


def _split(what: str) -> str:
    return f"a fifth of each {what} held out for test by the seed"
