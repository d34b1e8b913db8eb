"""From an ordinary pretrained model to one that each task sees through masks, in one call."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from maskcl.nn.following.norm_conversion import task_norm
from maskcl.nn.piggyback.cut import check_levels
from maskcl.nn.piggyback.layers import (
    PIGGYBACK_LAYERS,
    PiggybackConv1D,
    PiggybackConv1d,
    PiggybackConv2d,
    PiggybackConv3d,
    PiggybackEmbedding,
    PiggybackLinear,
)
from maskcl.nn.piggyback.masked_layer import PiggybackLayer
from maskcl.nn.piggyback.network import PiggybackNetwork
from maskcl.nn.tasks.errors import ConversionError, ConversionWarning
from maskcl.nn.tasks.graph_checks import is_graph_linear, refuse_cached, refuse_reading
from maskcl.nn.tasks.heads import TaskHeads, find_output, head_like
from maskcl.nn.tasks.replace_modules import conv_options, is_conv1d, replace_modules, with_hooks
from maskcl.nn.tasks.unconverted import check_unconverted

NORMS = ("frozen", "task")
LEAST_SHARE = 0.9
_CONVS: dict[type, type] = {
    nn.Conv1d: PiggybackConv1d,
    nn.Conv2d: PiggybackConv2d,
    nn.Conv3d: PiggybackConv3d,
}


def to_piggyback(
    model: nn.Module,
    num_tasks: int,
    *,
    classes: Sequence[int] | None = None,
    head: str | None = None,
    levels: str = "binary",
    norms: str = "frozen",
) -> PiggybackNetwork:
    """Convert an ordinary model; it is copied and stays as it is.

    ``nn.Linear``, ``nn.Conv1d`` to ``3d``, ``nn.Embedding``, torch_geometric's ``Linear``, which
    its convolutions are made of, and the ``Conv1D`` of transformers (these very classes) become
    piggyback layers with the same weights, which are frozen as all else is (``nn.LSTM``,
    ``nn.MultiheadAttention``, the vectors of graph attention and subclasses among it). A warning
    names what was left out where masks reach less than 90 % of the weights
    (``PiggybackNetwork.masked_share``). Weights that two layers share stay shared, with a mask
    for each layer. A forward that reads a layer's ``weight`` itself instead of calling
    the layer gets the base's. The same call gives the same network, so that a ``state_dict`` fits
    in another process.

    Args:
        model: pretrained; no tracing and no example inputs are needed.
        num_tasks: T.
        classes: outputs of each task's own trained head in the place of ``head``; None for none:
            the last layer is masked like the others.
        head: name of the ``nn.Linear`` that the heads replace; None for the model's last.
        levels: as for PiggybackNetwork.
        norms: "frozen": statistics and affine never change, in training mode neither. "task":
            every BatchNorm, LayerNorm and GroupNorm becomes one a task, each a copy that its task
            trains.

    Raises:
        ConversionError: the model has nothing to mask, or a module that would change itself.
        ValueError: an argument is not as above.
    """
    check_unconverted("to_piggyback", model)
    _check_arguments(model, num_tasks, classes, head, levels, norms)
    holder = nn.ModuleList([copy.deepcopy(model)])
    last = None if classes is None else find_output("to_piggyback", holder[0], head)
    heads = None if classes is None or last is None else head_like(TaskHeads, last, classes)

    def change(module: nn.Module) -> nn.Module | None:
        return heads if module is last else _swapped(module, num_tasks, levels, norms)

    replace_modules(holder, change)
    converted = holder[0]
    if not any(isinstance(module, PIGGYBACK_LAYERS) for module in converted.modules()):
        raise ConversionError(
            f"to_piggyback: {type(model).__name__} has no nn.Linear, nn.Conv1d to 3d or"
            " nn.Embedding to mask"
        )
    net = PiggybackNetwork(converted, num_tasks, levels=levels)
    _warn_of_unmasked(net)
    return net


def _warn_of_unmasked(net: PiggybackNetwork) -> None:
    """Warn where masks reach less than ``LEAST_SHARE`` of the weights, naming the others."""
    if net.masked_share >= LEAST_SHARE:
        return
    modules = dict(net.model.named_modules())
    sizes: dict[str, int] = {}
    for name, parameter in net.unmasked_weights().items():
        owner = name.rpartition(".")[0]
        sizes[owner] = sizes.get(owner, 0) + parameter.numel()
    largest = sorted(sizes, key=lambda name: -sizes[name])
    named = ", ".join(
        f"{name!r} ({type(modules[name]).__name__}, {sizes[name]:,})" for name in largest[:5]
    )
    more = f" and {len(largest) - 5} more" if largest[5:] else ""
    warnings.warn(
        f"to_piggyback: masks reach {100 * net.masked_share:.1f} % of the weights; left out, the"
        f" same for every task, are {named}{more}: write these as nn.Linear, nn.Conv1d to 3d or"
        " nn.Embedding if masks should reach them",
        ConversionWarning,
        stacklevel=3,
    )


def _check_arguments(
    model: nn.Module,
    num_tasks: int,
    classes: Sequence[int] | None,
    head: str | None,
    levels: str,
    norms: str,
) -> None:
    if not isinstance(num_tasks, int) or num_tasks < 1:
        raise ValueError(f"to_piggyback: num_tasks is {num_tasks!r}, wanted at least 1")
    if classes is not None and len(classes) != num_tasks:
        raise ValueError(
            f"to_piggyback: classes has {len(classes)} entries, wanted {num_tasks}, one a task"
        )
    if head is not None and classes is None:
        raise ValueError(f"to_piggyback: head is {head!r}, wanted None without classes")
    check_levels("to_piggyback", levels)
    if norms not in NORMS:
        raise ValueError(f"to_piggyback: norms is {norms!r}, wanted one of {', '.join(NORMS)}")
    refuse_cached("to_piggyback", model)
    refuse_reading("to_piggyback", model)
    for name, module in model.named_modules():
        where = f"to_piggyback: module {name!r} ({type(module).__name__})"
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None:
            raise ConversionError(
                f"{where} has max_norm={module.max_norm}, which rewrites the weights that all tasks"
                " share in every forward: set its max_norm to None"
            )
        for option in ("sparse", "scale_grad_by_freq"):
            if type(module) is nn.Embedding and getattr(module, option):
                raise ConversionError(
                    f"{where} has {option}=True, which scores have no gradient for: set it to False"
                )


def _swapped(module: nn.Module, num_tasks: int, levels: str, norms: str) -> nn.Module | None:
    """The piggyback layer or task norm for an ordinary module, None where it stays."""
    kind = type(module)
    if kind in (nn.Linear, nn.Embedding) or kind in _CONVS or is_graph_linear(module):
        return _swapped_layer(module, num_tasks, levels)
    if is_conv1d(module):
        return with_hooks(PiggybackConv1D(module, num_tasks=num_tasks, levels=levels), module)
    return task_norm(module, num_tasks) if norms == "task" else None


def _swapped_layer(module: nn.Module, num_tasks: int, levels: str) -> nn.Module | None:
    # A layer whose weight is computed from other parameters (weight_norm, pruning) stays frozen.
    if not set(module._parameters) <= {"weight", "bias"} or module._buffers:
        return None
    # Built without memory, then given the very parameters of the (copied) layer.
    options: dict[str, Any] = {"num_tasks": num_tasks, "levels": levels, "device": "meta"}
    new: PiggybackLayer
    if isinstance(module, nn.Linear) or is_graph_linear(module):
        weight: Any = module.weight
        bias = module.bias is not None
        new = PiggybackLinear(weight.shape[1], weight.shape[0], bias, **options)
    elif isinstance(module, nn.Embedding):
        sizes = module.num_embeddings, module.embedding_dim, module.padding_idx
        new = PiggybackEmbedding(*sizes, **options)
    else:
        assert isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        new = _CONVS[type(module)](**conv_options(module), **options)
    for name, parameter in module._parameters.items():
        setattr(new, name, parameter)
    new.words = new.words.new_zeros(new.words.shape, device=new.weight.device)
    return with_hooks(new, module)
