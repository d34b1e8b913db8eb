"""What result.json says of a method's network when its last task is finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from maskcl.report.mask_metrics import mask_bytes
from maskcl.report.masks import encode_masks

if TYPE_CHECKING:
    from maskcl.nn import HATNetwork, ImportanceNetwork, PiggybackNetwork


def hat_content(net: HATNetwork, protected: dict[str, float]) -> dict[str, Any]:
    """Masks of units, what they protect and what is free.

    Args:
        net: whose last task is finished.
        protected: parameter -> share of its elements that is protected.
    """
    masks = torch.stack([net.hard_mask(task) for task in range(net.num_tasks)]).cpu().numpy()
    spans = {name: (span.start, span.stop) for name, span in net.units.items()}
    return {
        "protected_share": protected_share(net, protected),
        "free": free_counts(net),
        "mask_bytes": mask_bytes(masks),
        "masks": encode_masks(masks, spans),
    }


def protected_share(net: HATNetwork, shares: dict[str, float]) -> float:
    """Share of all shared parameters' elements that finished tasks protect, from each one's."""
    protection = net.protection()
    sizes = {
        name: parameter.numel()
        for name, parameter in zip(protection.names, protection.parameters, strict=True)
    }
    return sum(shares[name] * sizes[name] for name in shares) / max(sum(sizes.values()), 1)


def free_counts(net: HATNetwork) -> dict[str, list[int]]:
    """Units and weights: how many are free, and how many there are."""
    found = net.capacity()
    return {
        "units": [sum(found.free_units.values()), sum(found.units.values())],
        "weights": [sum(found.free_weights.values()), sum(found.weights.values())],
    }


def piggyback_content(net: PiggybackNetwork) -> dict[str, Any]:
    """What each task's mask turns off, and which masks differ by how much."""
    tasks = range(net.num_tasks)
    differing = [[0.0] * net.num_tasks for _ in tasks]
    for first in tasks:
        for second in range(first):
            differing[first][second] = differing[second][first] = net.differing(first, second)
    return {
        "base": {"sha256": net.base_hash()},
        "masked_weights": {name: layer.weight.numel() for name, layer in net.layers.items()},
        "off": [net.off(task) for task in tasks],
        "differing": differing,
    }


def importance_content(net: ImportanceNetwork, *, heads: bool) -> dict[str, Any]:
    """How many elements of each parameter are regularised.

    Args:
        net: whose importances count.
        heads: whether a shared output layer's do.
    """
    parameters = dict(net.model.named_parameters())
    return {"regularised": {name: parameters[name].numel() for name in net.names(heads=heads)}}
