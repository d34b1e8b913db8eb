"""What a torch_geometric dataset holds for each node, link or graph, by attribute or tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maskcl.graph import csr
from maskcl.scenarios.base import ScenarioError
from maskcl.scenarios.graphs.build import About
from maskcl.scenarios.graphs.links import unordered


@dataclass(frozen=True)
class Given:
    """What to cut by, as given to ``from_pyg``."""

    name: str
    label: str | Tensor | None
    domain: str | Tensor | None
    time: str | Tensor | None
    split: tuple[Tensor, Tensor] | None
    test_share: float
    prediction: bool

    def numbers(self, what: str, data: Any, counts: Sequence[int], default: str = "") -> Tensor:
        """The attribute or tensor given for ``what``, of one of the wanted lengths."""
        given = getattr(self, what)
        given = default if given is None else given
        values = getattr(data, given, None) if isinstance(given, str) else given
        if not isinstance(values, Tensor):
            raise ScenarioError(f"{self.name}: the data have no tensor {given!r} to be the {what}")
        values = values.squeeze(1) if values.dim() == 2 and values.shape[1] == 1 else values
        if values.dim() != 1 or len(values) not in counts:
            wanted = " or ".join(str(count) for count in dict.fromkeys(counts))
            raise ScenarioError(
                f"{self.name}: {what} has shape {tuple(values.shape)}, wanted {wanted} numbers"
            )
        if what != "label":
            return values.cpu()
        if values.is_floating_point():
            raise ScenarioError(f"{self.name}: label is {values.dtype}, wanted whole numbers")
        return values.long().cpu()

    def sets(self, used: Tensor) -> tuple[Tensor, Tensor] | None:
        """The sets as given, without what is not used."""
        if self.split is None:
            return None
        for mask in self.split:
            if mask.dtype != torch.bool or mask.shape != used.shape:
                raise ScenarioError(
                    f"{self.name}: split has {mask.dtype}{tuple(mask.shape)}, wanted two bool "
                    f"tensors of {len(used)}"
                )
        train, test = (mask.cpu() & used for mask in self.split)
        if bool((train & test).any()):
            raise ScenarioError(f"{self.name}: training and test share {int((train & test).sum())}")
        return train, test

    def about(self, dataset: Any, own: bool = False, features: str = "the data's") -> About:
        """The data, in words."""
        drawn = f"{self.test_share:g} of each class held out for test by the seed"
        source = f"torch_geometric data given from Python, {type(dataset).__name__}"
        return About(source, "the data's own" if own else drawn, features)


def single(name: str, dataset: Any) -> Any:
    """The one ``Data`` that this is, or that a dataset of one holds."""
    from torch_geometric.data import Data, HeteroData

    if isinstance(dataset, Data):
        return dataset
    one = dataset[0] if hasattr(dataset, "__len__") and len(dataset) == 1 else None
    if isinstance(one, HeteroData) or not isinstance(one, Data):
        raise ScenarioError(f"{name}: wanted one graph of one kind, a Data or a dataset of one")
    return one


def several(name: str, dataset: Any) -> list[Any]:
    """The ``Data`` of a dataset of graphs."""
    from torch_geometric.data import Data

    parts = [] if isinstance(dataset, Data) or not hasattr(dataset, "__len__") else list(dataset)
    if not parts or not all(isinstance(part, Data) for part in parts):
        raise ScenarioError(f"{name}: wanted a dataset of graphs, each a Data")
    return parts


def tensor(name: str, data: Any, key: str) -> Tensor:
    """An attribute that must be a tensor; features as floating numbers, sparse ones as CSR."""
    values = getattr(data, key, None)
    if not isinstance(values, Tensor):
        raise ScenarioError(f"{name}: the data have no tensor {key!r}")
    values = values.detach().cpu()
    if key != "x":
        return values
    values = values if values.is_floating_point() else values.float()
    if values.layout != torch.sparse_coo:
        return values
    values = values.coalesce()
    return csr(values.indices(), values.values(), (values.shape[0], values.shape[1]))


def of_ends(values: Tensor, what: str) -> Tensor:
    """[n]: the domain or time of links whose ends have these, [n, 2]."""
    if what == "time":
        return values.amax(dim=1)
    if values.is_floating_point():
        return values.mean(dim=1)
    return torch.where(values[:, 0] == values[:, 1], values[:, 0], -1)


def first_of_each(pairs: Tensor, nodes: int) -> Tensor:
    """bool[n]: whether a link is the first one between its two nodes."""
    _, group = unordered(pairs, nodes).unique(return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(pairs))
    first.scatter_reduce_(0, group, torch.arange(len(pairs)), "amin")
    chosen = torch.zeros(len(pairs), dtype=torch.bool)
    chosen[first] = True
    return chosen
