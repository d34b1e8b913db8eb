"""Data of BeGin's four problems that train in a moment, and trainers of every class on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.begin.data import DataGraph, graph
from maskcl.compat.begin.scenarios.graphs import GCScenarioLoader
from maskcl.compat.begin.scenarios.links import LCScenarioLoader, LPScenarioLoader
from maskcl.compat.begin.scenarios.nodes import NCScenarioLoader
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.compat.begin.utils import GCNGraph, GCNLink, GCNNode

TASKS, CLASSES, FEATURES, HIDDEN = 3, 6, 8, 8
LOADERS = {
    "NC": NCScenarioLoader,
    "LC": LCScenarioLoader,
    "LP": LPScenarioLoader,
    "GC": GCScenarioLoader,
}
MODELS: dict[str, type[nn.Module]] = {"NC": GCNNode, "LC": GCNLink, "LP": GCNLink, "GC": GCNGraph}


def features(labels: Tensor, chance: torch.Generator) -> Tensor:
    """Rows that tell their class."""
    centres = 2 * torch.randn(CLASSES, FEATURES, generator=chance)
    return centres[labels] + 0.3 * torch.randn(len(labels), FEATURES, generator=chance)


def ring(count: int, x: Tensor) -> DataGraph:
    """A ring with both directions."""
    here = torch.arange(count)
    there = here.roll(-1)
    made = graph((torch.cat([here, there]), torch.cat([there, here])), num_nodes=count)
    made.ndata["feat"] = x
    return made


def nodes(save_path: Any) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(1)
    labels = torch.arange(90) % CLASSES
    found = ring(90, features(labels, chance))
    found.ndata["label"] = labels
    for name in ("domain", "time"):
        found.ndata[name] = torch.arange(90) // 30
    return {"graph": found, "num_feats": FEATURES, "num_classes": CLASSES}


def links(save_path: Any, *, twice: bool = False) -> dict[str, Any]:
    """Class of a link: of its first node's; or, ``twice``, each link in both directions."""
    chance = torch.Generator().manual_seed(2)
    kinds = torch.arange(40) % CLASSES
    pairs = torch.randint(0, 40, (400, 2), generator=chance)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]].unique(dim=0)
    pairs = pairs[torch.randperm(len(pairs), generator=chance)[:120]]
    times, labels = torch.arange(len(pairs)) * TASKS // len(pairs), kinds[pairs[:, 0]]
    if twice:
        pairs = torch.stack([pairs, pairs.flip(1)], dim=1).reshape(-1, 2)
        times = times.repeat_interleave(2)
    found = graph((pairs[:, 0], pairs[:, 1]), num_nodes=40)
    found.ndata["feat"] = features(kinds, chance)
    found.edata["time"] = found.edata["domain"] = times
    if twice:
        held = (torch.arange(len(pairs) // 2) % 5 == 0).repeat_interleave(2)
        return {"graph": found, "num_feats": FEATURES, "tvt_splits": 2 * held.long()}
    found.edata["label"] = labels
    return {"graph": found, "num_feats": FEATURES, "num_classes": CLASSES}


def signed_links(save_path: Any) -> dict[str, Any]:
    """Two classes, as the time setting has them."""
    found = links(save_path)
    found["graph"].edata["label"] = found["graph"].edata["label"] % 2
    return found


def graphs(save_path: Any) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(3)
    labels = torch.arange(72) % CLASSES
    x = features(labels.repeat_interleave(4), chance).view(72, 4, FEATURES)
    items = [(ring(4, rows), int(label)) for rows, label in zip(x, labels, strict=True)]
    third = torch.arange(72) // 24
    return {"graphs": items, "num_feats": FEATURES, "domain_info": third, "time_info": third}


def scenario(problem: str, setting: str, **options: Any) -> Any:
    """A loader on tiny data."""
    load: dict[str, Callable[..., dict[str, Any]]] = {
        "NC": nodes,
        "LC": signed_links if setting == "time" else links,
        "LP": lambda save_path: links(save_path, twice=True),
        "GC": graphs,
    }
    metric = {"LC": "rocauc" if setting == "time" else None, "LP": "hits@3"}.get(problem)
    options = {"metric": metric, "seed": 0, "dataset_load_func": load[problem], **options}
    return LOADERS[problem]("tiny", None, TASKS, setting, **options)


def loss_of(found: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """As BeGin's examples have it."""
    if found.num_classes > 1:
        return nn.CrossEntropyLoss(ignore_index=-1)
    return lambda preds, answers: nn.BCEWithLogitsLoss()(preds, answers.float())


def model_for(kind: str, found: Any, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return MODELS[kind](found.num_feats, found.num_classes, HIDDEN)


def make(kind: type[BaseTrainer], setting: str | None = None, **options: Any) -> BaseTrainer:
    """A trainer of this class, on a scenario of its own."""
    problem = kind.__name__.replace("My", "")[:2]
    found = scenario(problem, setting or kind.setting or "task")
    fixed: dict[str, Any] = {"benchmark": True, "seed": 0, "verbose": False}
    optimizer = options.pop("optimizer_fn", lambda p: torch.optim.Adam(p, lr=0.01))
    model = options.pop("model", None) or model_for(problem, found)
    loss = options.pop("loss_fn", loss_of(found))
    return kind(model, found, optimizer, loss, torch.device("cpu"), **{**fixed, **options})
