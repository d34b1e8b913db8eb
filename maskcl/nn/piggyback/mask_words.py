"""Masks of a network's layers as words: whether they fit, and what they have in common."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from maskcl import ops
from maskcl.nn.piggyback.masked_layer import PiggybackLayer
from maskcl.shard_sums import totals

Words = Mapping[str, Tensor]


def check_all_words(owner: str, words: Words, layers: Mapping[str, PiggybackLayer]) -> None:
    """Raise unless ``words`` are one mask for every layer, and nothing else.

    Raises:
        TypeError: words of a layer are not int32.
        ValueError: a layer is missing or unknown, or its words are no mask of its weight.
    """
    if words.keys() != layers.keys():
        odd = ", ".join(map(repr, sorted(words.keys() ^ layers.keys())))
        raise ValueError(
            f"{owner}: {odd} in only one of words and net.layers, wanted the same names"
        )
    for name, layer in layers.items():
        _check_words(f"{owner}: words[{name!r}]", words[name], layer)


def off_shares(words: Words, layers: Mapping[str, PiggybackLayer]) -> dict[str, float]:
    """Share of each layer's weights that its mask turns off; waits for the device once.

    Of sharded layers ``words`` are this process's.
    """
    kept = [ops.popcount(w[0] if w.dim() == 2 else w) for w in words.values()]
    held = [layers[name].words for name in words]
    counts = dict(zip(words, totals(kept, held).tolist(), strict=True))
    sizes = {name: layer.weight.numel() for name, layer in layers.items()}
    return {name: 1.0 - counts[name] / size if size else 0.0 for name, size in sizes.items()}


def differing_bits(first: Words, second: Words, layers: Mapping[str, PiggybackLayer]) -> int:
    """Number of weights that two masks of the layers treat differently; the host waits.

    Of sharded layers the words are this process's.
    """
    counts = []
    for name, words in first.items():
        bits = ops.xor_words(words, second[name])
        if bits.dim() == 2:  # ternary: another sign is a difference too
            bits = ops.or_words(bits[0], bits[1])
        counts.append(ops.popcount(bits))
    return int(totals(counts, [layers[name].words for name in first]).sum())


def _check_words(where: str, words: Tensor, layer: PiggybackLayer) -> None:
    """Raise unless ``words`` are a mask of this layer with nothing beside it."""
    wanted = list(layer.words.shape[1:] if layer.words.shape[1] == 2 else layer.words.shape[2:])
    if not isinstance(words, Tensor) or words.dtype != torch.int32:
        found = words.dtype if isinstance(words, Tensor) else type(words).__name__
        raise TypeError(f"{where} is {found}, wanted torch.int32")
    if list(words.shape) != wanted:
        raise ValueError(f"{where} has shape {list(words.shape)}, wanted {wanted}")
    spare = -layer.weight.numel() % 32
    if spare and bool((words[..., -1] >> (32 - spare)).any()):
        raise ValueError(f"{where} has bits past the weight's end, wanted 0 there")
    if words.dim() == 2 and bool(ops.andnot_words(words[1], words[0]).any()):
        raise ValueError(f"{where} has signs where its mask is 0, wanted 0 there")
