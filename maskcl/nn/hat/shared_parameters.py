"""Which parameters tasks share, which are their own, and which nothing could protect."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.layers import HATLinear
from maskcl.nn.hat.topology import Topology, weight_layers
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.state import TaskAware


def check_owners(model: nn.Module) -> None:
    """Raise ConversionError for trainable parameters and statistics outside of task-aware modules.

    A parameter that two modules hold is refused too, as it would have two sets of units; but a
    table of embeddings may be an output layer's weight, which has none (`check_tied`). What a
    module only registers that a layer has too is the layer's.
    """
    layers = weight_layers(model)
    taken = {id(p) for layer in layers.values() for p in layer.parameters()}
    aware = {inner for m in model.modules() if isinstance(m, TaskAware) for inner in m.modules()}
    holders: dict[int, str] = {}
    for prefix, module in model.named_modules():
        for kind, parameter in module.named_parameters(recurse=False):
            name = f"{prefix}.{kind}" if prefix else kind
            if not parameter.requires_grad:
                continue
            if module not in aware:
                if id(parameter) in taken:
                    continue  # reading it is refused where the forward is followed
                raise ConversionError(
                    f"parameter {name!r} ({type(module).__name__}) is shared by all tasks and in no"
                    " module that maskcl protects: freeze it with requires_grad_(False), or build"
                    " this part of HAT layers and task norms"
                )
            before = holders.get(id(parameter))
            if before is not None and not _may_be_tied(layers.get(before), layers.get(prefix)):
                before = f"{before}.{kind}"
                raise ConversionError(
                    f"parameter {name!r} is also {before!r}: tied parameters would"
                    " have two sets of units; give each layer its own"
                )
            holders[id(parameter)] = prefix
        if (
            isinstance(module, _NormBase)
            and module.running_mean is not None
            and module not in aware
        ):
            raise ConversionError(
                f"module {prefix!r} ({type(module).__name__}) keeps running statistics that all"
                " tasks share: use a TaskBatchNorm, or to_hat on the ordinary model"
            )


def _may_be_tied(one: nn.Module | None, other: nn.Module | None) -> bool:
    kinds = {type(one), type(other)}
    return kinds == {HATEmbedding, HATLinear}


def check_tied(model: nn.Module, topology: Topology) -> None:
    """Raise ConversionError where a layer with units has the weight of a table of embeddings."""
    layers = weight_layers(model)
    tables = {id(m.weight): n for n, m in layers.items() if isinstance(m, HATEmbedding)}
    for name, layer in layers.items():
        table = tables.get(id(getattr(layer, "weight", None)))
        if table not in (None, name) and name in topology.units:
            raise ConversionError(
                f"parameter '{name}.weight' is also '{table}.weight': tied parameters would have"
                " two sets of units; give each layer its own"
            )


def shared_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of the HAT layers: all tasks train them, within their protection."""
    layers = weight_layers(model).values()
    found = {id(p): p for layer in layers for p in layer.parameters()}
    return list(found.values())
