"""From an ordinary model to one that many tasks share, in one call."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from maskcl.nn.following.trace import Shape, Trace, trace
from maskcl.nn.hat.fused_activation import FusedActivation
from maskcl.nn.hat.layer_conversion import check_tables, task_aware_like
from maskcl.nn.hat.layers import HATLinear
from maskcl.nn.hat.network import HATNetwork
from maskcl.nn.hat.place_masks import unmasked
from maskcl.nn.hat.reading_hooks import has_hooks, let_hooks_read_only
from maskcl.nn.hat.shared_parameters import check_owners
from maskcl.nn.hat.topology import output_modules, sole_reader, weight_layers
from maskcl.nn.hat.topology_by_hand import Sources
from maskcl.nn.tasks.activations import fused_name
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.heads import TaskHeads, head_like
from maskcl.nn.tasks.replace_modules import replace_modules
from maskcl.nn.tasks.state import Masked
from maskcl.nn.tasks.task_parameters import loosen
from maskcl.nn.tasks.unconverted import check_unconverted

EMBEDDINGS = ("units", "frozen")


def to_hat(
    model: nn.Module,
    num_tasks: int,
    example_inputs: Any,
    *,
    classes: Sequence[int] | None = None,
    fuse: bool = True,
    init: str = "normal",
    sources: Sources | None = None,
    embeddings: str = "units",
) -> HATNetwork:
    """Convert an ordinary model; it is copied and stays as it is.

    Linear and convolution layers, tables of embeddings and the ``Conv1D`` of transformers become
    HAT layers with the same weights, GCNConv, GraphConv, SAGEConv, GATConv and GINConv of
    torch_geometric among them and the projections of ``nn.MultiheadAttention``; norms become one
    norm a task (each a copy), and so do parameters that a module of the user's own holds itself,
    such as a class token or a layer scale. Layers whose parameters are all frozen stay as they are.
    The same call gives the same network, so that a ``state_dict`` fits in another process.

    Args:
        model: of torch.nn modules; its forward can be traced by torch.fx.
        num_tasks: T.
        example_inputs: a tensor, a tuple of the forward's arguments, or a dict of them by name, on
            the model's device.
        classes: outputs of each task's own head, which replaces the last ``nn.Linear`` (each of
            several that make one output); None keeps that layer: all tasks share it, and what a
            finished task needs is protected.
        fuse: compute an activation module that directly follows a layer together with its mask.
        init: as for HATNetwork.
        sources: as for HATNetwork.
        embeddings: what becomes of each ``nn.Embedding`` that trains. "units": its channels are
            units as a layer's are; of a channel that a finished task uses all rows are protected.
            "frozen": it stays as it is, for all tasks.

    Raises:
        ConversionError: something cannot be followed or protected; the message names it and the
            remedy.
        ValueError: num_tasks, classes, init or embeddings is not as above.
    """
    if embeddings not in EMBEDDINGS:
        raise ValueError(
            f"to_hat: embeddings is {embeddings!r}, wanted one of {', '.join(EMBEDDINGS)}"
        )
    if num_tasks < 1:
        raise ValueError(f"to_hat: num_tasks is {num_tasks}, wanted at least 1")
    if classes is not None and len(classes) != num_tasks:
        raise ValueError(
            f"to_hat: classes has {len(classes)} entries, wanted {num_tasks}, one a task"
        )
    check_unconverted("to_hat", model)
    model = copy.deepcopy(model)
    if type(model).__module__.startswith("torch.nn") and not isinstance(model, nn.Sequential):
        model = nn.Sequential(model)
    if embeddings == "frozen":
        for module in model.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)
    check_tables(model)
    replace_modules(model, lambda module: task_aware_like(module, num_tasks))
    loosen(model, num_tasks)
    check_owners(model)
    let_hooks_read_only(model.named_modules())
    traced = _trace(model, example_inputs, sources)
    outputs = _outputs(model, traced, sources)
    if classes is not None:
        _put_heads(model, traced, outputs, classes)
    if fuse and traced is not None:
        _fuse(model, traced, outputs)
    for module in model.modules():
        # In place they would overwrite what a mask's backward needs.
        if getattr(module, "inplace", False) is True:
            setattr(module, "inplace", False)  # noqa: B010 - not every Module has it
    return HATNetwork(model, num_tasks, example_inputs, init=init, sources=sources)


def _trace(model: nn.Module, example_inputs: Any, sources: Sources | None) -> Trace | None:
    """The converted model's trace; None where it has none and ``sources`` has to do."""
    try:
        with unmasked(model):
            return trace(model, example_inputs)
    except ConversionError:
        if not sources:
            raise
        return None


def _outputs(model: nn.Module, traced: Trace | None, sources: Sources | None) -> set[str]:
    if traced is not None:
        return output_modules(traced)
    named = {layer for layers in (sources or {}).values() for layer in layers or ()}
    return set(weight_layers(model)) - named


def _put_heads(
    model: nn.Module, traced: Trace | None, outputs: set[str], classes: Sequence[int]
) -> None:
    layers = {name: layer for name, layer in weight_layers(model).items() if name in outputs}
    linear = [layer for layer in layers.values() if isinstance(layer, HATLinear)]
    # Several may be averaged into the one tensor that the forward returns.
    is_one = len({layer.out_features for layer in linear}) == 1 and len(linear) == len(outputs)
    if not is_one or (len(outputs) > 1 and not _returns_tensor(traced)):
        found = ", ".join(f"{n!r} ({type(m).__name__[3:]})" for n, m in layers.items()) or "none"
        raise ConversionError(
            f"to_hat: classes puts heads in the place of the one nn.Linear before the output, found"
            f" {found}; leave classes out, or build the heads (maskcl.nn.TaskHeads) into the model"
        )
    replaced: dict[nn.Module, nn.Module] = {
        last: head_like(TaskHeads, last, classes) for last in linear
    }
    replace_modules(model, replaced.get)


def _returns_tensor(traced: Trace | None) -> bool:
    if traced is None:
        return False
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    value = output.args[0]
    return isinstance(value, fx.Node) and isinstance(traced.results[value], Shape)


def _fuse(model: nn.Module, traced: Trace, outputs: set[str]) -> None:
    """Let each masked module compute the activation module that alone reads it."""
    replaced: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        if not isinstance(module, Masked) or name in outputs:
            continue
        reader = sole_reader(traced, name)
        known = fused_name(reader[1]) if reader else None
        if reader is None or known is None or has_hooks(module) or has_hooks(reader[1]):
            continue  # a hook sees what its own module gives
        module.activation, module.negative_slope = known
        replaced[reader[1]] = FusedActivation(reader[1], name)
    replace_modules(model, replaced.get)
