"""What tests of graph scenarios share: all tensors that something holds, links as sets."""

import torch


def tensors(thing, seen=None):
    """Every tensor reachable from ``thing`` through attributes, sequences and mappings."""
    seen = set() if seen is None else seen
    if id(thing) in seen:
        return []
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor):
        return [thing]
    if isinstance(thing, dict):
        parts = list(thing.values())
    elif isinstance(thing, list | tuple):
        parts = thing
    else:
        parts = vars(thing).values() if hasattr(thing, "__dict__") else []
    return [found for part in parts for found in tensors(part, seen)]


def unordered(pairs):
    """The pairs of int64[n, 2], whatever their direction."""
    return {tuple(sorted(pair)) for pair in pairs.tolist()}
