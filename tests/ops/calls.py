"""A right call of every public function, to be spoilt one argument at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from maskcl import ops

# What may be None, and what may have other shapes or dtypes, says each op's documentation.
OPTIONAL = {"bias", "out_tasks", "in_tasks", "out_masks", "in_masks", "max_scale", "density"}
OPTIONAL |= {"rate", "scale", "found_inf"}
WRITTEN = {
    "clamp_grads_": "grads",
    "clamp_grads_soft_": "grads",
    "restore_protected_": "params",
    "sgd_update_": "params",
    "adam_update_": "params",
    "mas_accumulate_": "importances",
    "mas_penalty_grads_": "grads",
    "linear_importance_": "importance",
}


def _bits(n: int) -> torch.Tensor:
    return torch.randint(1, 4, (n,))


def _pair(fill: float = 1.0) -> list[torch.Tensor]:
    return [torch.full((6, 8), fill), torch.full((6,), fill)]


def _tasks() -> dict[str, Any]:
    return {"out_tasks": [_bits(6), _bits(6)], "in_tasks": [_bits(8), None], "groups": [1, 1]}


def _anchored() -> dict[str, Any]:
    return {"params": _pair(), "anchors": _pair(0.0), "importances": _pair()}


def _step() -> dict[str, Any]:
    """What every optimizer's step has."""
    tensors = {"params": _pair(), "grads": _pair(0.5), **_tasks()}
    scalars = {"rate": torch.tensor(0.5), "scale": torch.tensor(2.0), "norm": torch.tensor(3.0)}
    numbers = {"lr": 0.1, "weight_decay": 0.1, "bounds": 5.0, "max_norm": 1.0}
    return {**tensors, **scalars, **numbers, "found_inf": torch.tensor(0.0)}


def _words() -> torch.Tensor:
    return ops.pack_mask(torch.randn(6, 8) > 0)


def _image_layer() -> dict[str, Any]:
    window = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1)}
    return {
        "x": torch.randn(2, 3, 6, 6),
        "weight": torch.randn(6, 3, 3, 3),
        "bias": torch.randn(6),
        **window,
    }


def _layer(**more: Any) -> dict[str, Any]:
    return {
        "x": torch.randn(4, 8),
        "weight": torch.randn(6, 8),
        "bias": torch.randn(6),
        **more,
    }


def _two_words() -> dict[str, Any]:
    return {"a": _words(), "b": _words()}


CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    **dict.fromkeys(("and_words", "andnot_words", "or_words", "xor_words"), _two_words),
    "popcount": lambda: {"words": _words()},
    "binarize": lambda: {"scores": torch.randn(6, 8), "threshold": 0.1},
    "ternarize": lambda: {"scores": torch.randn(6, 8), "threshold": 0.1},
    "topk_mask": lambda: {"scores": torch.randn(6, 8), "density": 0.5},
    "soft_mask": lambda: {"scores": torch.randn(6, 8), "threshold": 0.1, "scale": 2.0},
    "kth_largest": lambda: {"values": torch.randn(6, 8), "k": 3},
    "piggyback_weight": lambda: {
        "weight": torch.randn(6, 8),
        "scores": torch.randn(6, 8),
        "threshold": 0.1,
    },
    "piggyback_linear": lambda: _layer(scores=torch.randn(6, 8), threshold=0.1),
    "pack_mask": lambda: {"mask": torch.randn(6, 8) > 0},
    "pack_scores": lambda: {"scores": torch.randn(6, 8), "threshold": 0.1},
    "unpack_mask": lambda: {"words": _words(), "shape": (6, 8)},
    "packed_weight": lambda: {"weight": torch.randn(6, 8), "words": _words()},
    "packed_linear": lambda: _layer(words=_words()),
    "packed_embedding": lambda: {
        "index": torch.tensor([1, 2]),
        "weight": torch.randn(6, 8),
        "words": _words(),
    },
    "hat_gate": lambda: {
        "embedding": torch.randn(6),
        "scale": torch.tensor(2.0),
        "max_scale": 40.0,
        "cosh_clamp": 50.0,
        "floor": 1e-9,
    },
    "hat_sparsity": lambda: {"mask": torch.rand(6), "used": torch.rand(6) > 0.5},
    "hat_scale": lambda: {"progress": 0.5, "max_scale": 40.0},
    "epoch_progress": lambda: {"batch": 1, "batches": 3},
    "task_progress": lambda: {"epoch": 0, "epochs": 2, "batch": 1, "batches": 3},
    "masked_activation": lambda: {
        "x": torch.randn(4, 6),
        "mask": torch.rand(6),
        "bias": torch.randn(6),
        "negative_slope": 0.01,
    },
    "masked_linear": lambda: _layer(mask=torch.rand(6), negative_slope=0.01),
    "masked_conv": lambda: {**_image_layer(), "mask": torch.rand(6), "negative_slope": 0.01},
    "open_conv": _image_layer,
    "clamp_grads_": lambda: {
        "grads": _pair(),
        **_tasks(),
        "values": [0.5, 0.5],
        "rule": "const",
        "seed": 3,
    },
    "restore_protected_": lambda: {"params": _pair(), "saved": _pair(0.0), **_tasks()},
    "sgd_update_": lambda: {**_step(), "momenta": _pair(), "momentum": 0.9},
    "adam_update_": lambda: {
        **_step(),
        "exp_avgs": _pair(),
        "exp_avg_sqs": _pair(),
        "steps": [torch.tensor(3.0), torch.tensor(3.0)],
    },
    "unprotected_norm": lambda: {"grads": _pair(), **_tasks(), "scale": torch.tensor(2.0)},
    "clamp_grads_soft_": lambda: {
        "grads": _pair(),
        "out_masks": [torch.rand(6), torch.rand(6)],
        "in_masks": [torch.rand(8), None],
        "groups": [1, 1],
    },
    "protected_fraction": lambda: {"out_tasks": _bits(6), "in_tasks": _bits(8)},
    "linear_importance": lambda: {"x": torch.randn(4, 8), "grad_out": torch.randn(4, 6)},
    "linear_importance_": lambda: {
        "importance": torch.ones(6, 8),
        "x": torch.randn(4, 8),
        "grad_out": torch.randn(4, 6),
        "weight": 0.5,
    },
    "mas_accumulate_": lambda: {
        "importances": _pair(),
        "grads": _pair(),
        "weight": 0.5,
        "decay": 0.5,
    },
    "mas_penalty": _anchored,
    "mas_penalty_grads_": lambda: {"grads": _pair(), **_anchored(), "strength": 0.5},
}
