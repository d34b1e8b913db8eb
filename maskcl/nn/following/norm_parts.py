"""Norms that compute more than a norm: the norm by itself, and the modules that follow inside."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from maskcl.nn.following.tracer import Tracer


@dataclass(frozen=True)
class NormParts:
    """A norm taken apart.

    Attributes:
        norm: a copy whose trailing modules are nn.Identity.
        tail: those modules, in the order in which they were called.
        is_channelwise: it calls F.batch_norm on its input and does nothing else.
    """

    norm: nn.Module
    tail: list[nn.Module]
    is_channelwise: bool


def parts_of(norm: nn.Module) -> NormParts:
    """Take a norm of a class made from one of torch's apart, as far as its graph shows how.

    Where torch.fx cannot follow it, the tail is empty and ``is_channelwise`` is False.
    """
    whole = copy.deepcopy(norm)
    graphs = _graphs(norm)
    if graphs is None:
        return NormParts(whole, [], is_channelwise=False)
    tails = [_tail(graph) for graph in graphs]
    if tails[0] != tails[1]:
        return NormParts(whole, [], is_channelwise=False)
    tail = [whole.get_submodule(name) for name in tails[0]]
    tail = [module for module in tail if type(module) is not nn.Identity]
    for name in tails[0]:
        setattr(whole, name, nn.Identity())
    return NormParts(whole, tail, all(_is_batch_norm(graph, tails[0]) for graph in graphs))


def _graphs(norm: nn.Module) -> list[fx.Graph] | None:
    """Of evaluation and of training mode, whatever the sizes; None where there is no following."""
    for shape in _shapes(norm):
        found = []
        for mode in (False, True):
            whole = copy.deepcopy(norm).train(mode)
            weight = next(norm.parameters(), torch.empty(()))
            x = torch.ones(shape, dtype=weight.dtype, device=weight.device)
            tracer = Tracer((x,), lambda *_: None, leaves=(nn.Module,))
            try:
                with torch.no_grad(), torch.random.fork_rng(devices=[]):
                    found.append(tracer.trace(whole))
            except Exception:  # it wants another shape, or cannot be followed
                break
            if tracer.branched:
                return None
        else:
            return found
    return None


def _shapes(norm: nn.Module) -> list[tuple[int, ...]]:
    """Of inputs that a norm of this kind may take."""
    match norm:
        case nn.LayerNorm() | nn.RMSNorm():
            sizes = norm.normalized_shape
            return [(2, *sizes), (2, *sizes, 2, 2)]
        case nn.GroupNorm():
            channels = norm.num_channels
        case _:
            channels = int(norm.num_features)  # type: ignore[arg-type]
    return [(2, channels, *[2] * space) for space in (2, 1, 0, 3)]


def computes_as(module: nn.Module, plain: type[nn.Module]) -> bool:
    """Whether a module of a class made from ``plain`` computes what ``plain`` does, by its graph.

    In evaluation and in training mode; False where torch.fx cannot follow it.
    """
    if type(module) is plain:
        return True
    twin = copy.copy(module)
    twin.__class__ = plain
    try:
        return all(_steps(module, mode) == _steps(twin, mode) for mode in (False, True))
    except Exception:
        return False


def _steps(module: nn.Module, mode: bool) -> list[str]:
    """What a module does, node by node, with the nodes numbered."""
    graph = _Tracer().trace(copy.deepcopy(module).train(mode))
    numbers = {node: i for i, node in enumerate(graph.nodes)}

    def step(node: fx.Node) -> str:
        read = fx.node.map_arg((node.args, node.kwargs), lambda n: f"%{numbers[n]}")
        return f"{node.op} {'' if node.op == 'placeholder' else node.target} {read}"

    return [step(node) for node in graph.nodes]


class _Tracer(fx.Tracer):
    trace_asserts = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _tail(graph: fx.Graph) -> list[str]:
    """Names of the child modules that are called one after the other at the end, each once."""
    names: list[str] = []
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    (output,) = (node for node in graph.nodes if node.op == "output")
    node = output.args[0]
    while (
        isinstance(node, fx.Node)
        and node.op == "call_module"
        and "." not in str(node.target)
        and calls.count(node.target) == 1
        and (len(node.args), len(node.kwargs), len(node.users)) == (1, 0, 1)
    ):
        names.insert(0, str(node.target))
        node = node.args[0]
    return names


def _is_batch_norm(graph: fx.Graph, tail: list[str]) -> bool:
    """Whether all that reads the input is F.batch_norm, which the tail alone reads."""
    (data,) = (node for node in graph.nodes if node.op == "placeholder")
    found = [node for node in graph.nodes if node.target is F.batch_norm]
    if len(found) != 1 or found[0].args[:1] != (data,) or len(found[0].users) != 1:
        return False
    (reader,) = found[0].users
    first = tail[0] if tail else "output"
    is_last = reader.op == "output" if not tail else str(reader.target) == first
    return is_last and len(list(_modules(graph))) == len(tail)


def _modules(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "call_module"]
