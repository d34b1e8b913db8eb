"""A model's graph with the shapes that flow through it.

Of the model nothing is changed; tensors that its forward makes of constants become attributes.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from maskcl.nn.following.arguments import arguments_of, call, names_of, sizes_of
from maskcl.nn.following.operations import FACTORIES, READOUTS
from maskcl.nn.following.tracer import Tracer
from maskcl.nn.following.trees import leaves_of
from maskcl.nn.tasks.errors import ConversionError

_ONE_AT_A_TIME = threading.RLock()
_OTHERS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


@dataclass(frozen=True)
class Shape:
    """Stands for a tensor of this shape in the recorded results."""

    size: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """What a forward does.

    Attributes:
        graph: torch.fx graph; modules of torch.nn and task-aware ones are its leaves.
        results: what each node returned on the example inputs, with a Shape for each tensor.
        modules: the traced model's modules by name.
        arguments: names of those that the forward was given, in their order (`names_of`).
        by_name: whether they were given by name.
        sizes: ``sizes_of`` them, where the forward branches on sizes, so that the graph holds for
            these alone; else None.
    """

    graph: fx.Graph
    results: dict[fx.Node, Any]
    modules: dict[str, nn.Module]
    arguments: tuple[str, ...]
    sizes: tuple[Any, ...] | None
    by_name: bool = False

    def calls(self, name: str) -> list[fx.Node]:
        """Nodes that call module ``name``."""
        return [n for n in self.graph.nodes if n.op == "call_module" and n.target == name]

    def called(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, None where it calls none."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def carries_tensor(self, node: fx.Node) -> bool:
        """Whether a node's result has a tensor in it."""
        return any(True for _ in leaves_of(self.results.get(node), Shape))

    def describe(self, node: fx.Node) -> str:
        """A node as an error message names it: its name, what it calls and where in the source."""
        match node.op:
            case "call_module":
                what = f"module {node.target!r} ({type(self.called(node)).__name__})"
            case "call_method":
                what = f"tensor method .{node.target}()"
            case "call_function":
                what = f"function {getattr(node.target, '__name__', node.target)}()"
            case _:
                what = f"{node.op} {node.target}"
        line = _source_line(node)
        return f"node {node.name!r}: {what}{f' at {line}' if line else ''}"


def trace(
    model: nn.Module, example_inputs: Any, *, leaves: tuple[type[nn.Module], ...] = ()
) -> Trace:
    """Trace a model whose forward is plain Python over torch calls.

    Args:
        model: runs once, in evaluation mode and without gradients; its modes are put back.
        example_inputs: a tensor, a tuple of the forward's arguments, or a dict of them by name.
        leaves: further modules that are not looked into.

    Raises:
        ConversionError: torch.fx cannot follow the forward, or it fails on the example inputs.
    """
    inputs = arguments_of(example_inputs)
    modes = {module: module.training for module in model.modules()}
    # One at a time: fx puts functions of its own in the place of torch's.
    _ONE_AT_A_TIME.acquire()
    try:
        model.eval()
        results: dict[fx.Node, Any] = {}

        def keep(node: fx.Node, result: Any) -> None:
            results[node] = _record(result)

        tracer = Tracer(inputs, keep, tuple(_readouts().values()), leaves)
        with _recorded(tracer), torch.no_grad(), torch.random.fork_rng(devices=[]):
            graph = tracer.trace(model)
            if model._forward_hooks or model._forward_pre_hooks:
                call(model, inputs)  # the tracer leaves out the whole model's own, which may refuse
        for node in graph.nodes:
            if node.op == "get_attr" and node not in results:
                results[node] = _record(operator.attrgetter(node.target)(model))
    except ConversionError:
        raise
    except Exception as error:
        raise ConversionError(
            f"{type(model).__name__} cannot be traced by torch.fx on the example inputs"
            f" ({type(error).__name__}: {_first_line(error)}); name by hand the layers that feed"
            " each module, sources={'module': ['layer', ...], ...}, for every layer and norm in it"
        ) from error
    finally:
        _ONE_AT_A_TIME.release()
        for module, mode in modes.items():
            module.training = mode
    modules = dict(model.named_modules(remove_duplicate=False))
    sizes = sizes_of(tracer.inputs_by_name().values()) if tracer.branched else None
    return Trace(graph, results, modules, names_of(model, inputs), sizes, isinstance(inputs, dict))


def _readouts() -> dict[str, Callable[..., Any]]:
    """torch_geometric's readouts, which fx cannot look into; none where nothing has imported it."""
    geometric = sys.modules.get("torch_geometric.nn")
    return {name: getattr(geometric, name) for name in sorted(READOUTS)} if geometric else {}


@contextmanager
def _recorded(tracer: fx.Tracer) -> Iterator[None]:
    """Inside, functions that fx would not notice are nodes.

    Those are ``torch_geometric.nn.NAME(...)``, as fx itself knows names in globals only, and what
    makes tensors of sizes that are proxies, which torch's own parser refuses.
    """
    geometric, readouts = sys.modules.get("torch_geometric.nn"), _readouts()
    originals = [(geometric, name, function) for name, function in readouts.items()]
    originals += [(torch, name, getattr(torch, name)) for name in FACTORIES]

    def recorded(function: Callable[..., Any], always: bool) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if always or any(True for _ in leaves_of((args, kwargs), fx.Proxy)):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return run

    for module, name, function in originals:
        setattr(module, name, recorded(function, always=name in readouts))
    try:
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def _record(result: Any) -> Any:
    if isinstance(result, Tensor):
        return Shape(tuple(result.shape))
    if isinstance(result, torch.Size):
        return result
    if isinstance(result, (tuple, list)):
        return tuple(_record(item) for item in result)
    if isinstance(result, dict):
        return {key: _record(value) for key, value in result.items()}
    return result


def _source_line(node: fx.Node) -> str:
    """File and line in the user's code: the innermost frame that is neither torch's nor ours."""
    frames = [line.strip() for line in (node.stack_trace or "").splitlines()]
    lines = [f for f in frames if f.startswith("File ") and not any(o in f for o in _OTHERS)]
    return lines[-1].removeprefix("File ").rsplit(", in ", 1)[0] if lines else ""


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else "no message"
