"""A torch.fx tracer that computes with the example inputs while it records.

Each proxy holds what its node returned. So a branch on a size is taken as the example inputs take
it, and a node's result is known at once; a branch on a tensor's values stays refused.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import Attribute, TraceError

from maskcl.nn.tasks.graph_convolutions import is_channelwise, is_message_passing
from maskcl.nn.tasks.state import TaskAware

# The same at every size of the inputs.
_FIXED = ("dim", "ndim", "dtype", "device", "layout", "is_cuda")


class Tracer(fx.Tracer):
    """Records a model's forward.

    Args:
        inputs: the forward's arguments, those by name as a dict; those beyond take their defaults.
        keep: called with each node and what it returned.
        functions: that become nodes where the forward finds them by name.
        leaves: further modules that are not looked into.

    Attributes:
        branched: whether a branch was taken on a size or may have been on a switch.
    """

    record_stack_traces = True
    trace_asserts = True
    proxy_buffer_attributes = True

    def __init__(
        self,
        inputs: tuple[Any, ...] | dict[str, Any],
        keep: Callable[[fx.Node, Any], None],
        functions: tuple[Callable[..., Any], ...] = (),
        leaves: tuple[type[nn.Module], ...] = (),
    ) -> None:
        super().__init__(autowrap_functions=functions)
        self.branched = False
        self._inputs = inputs
        self._keep = keep
        self._leaves = leaves
        self._computes = False
        self._thread = threading.get_ident()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A proxy that holds what its node returned."""
        return _Proxy(node, self)

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
        proxy_factory_fn: Any = None,
    ) -> Any:
        """A new node; for an argument that is a switch or None, the argument itself."""
        value = self._value(kind, target, args, kwargs)
        # What is given as args[0] of a placeholder is no argument of the node.
        args = () if kind == "placeholder" else args
        proxy = super().create_proxy(kind, target, args, kwargs, name, type_expr, proxy_factory_fn)
        self._keep(proxy.node, value)
        # A number, such as how many graphs there are, may be another next time.
        varies = isinstance(value, (Tensor, tuple, list)) or type(value) in (int, float)
        if kind == "placeholder" and not varies:
            self.branched = self.branched or value is not None
            return value
        vars(proxy)["held"] = value
        return proxy

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """The forward, called with a placeholder for each argument that is given, and no others.

        Its signature is not asked: a decorator may hide it.
        """
        placed = self.inputs_by_name()
        proxies = [self.create_proxy("placeholder", n, (x,), {}) for n, x in placed.items()]

        def forward(root: nn.Module) -> Any:
            if isinstance(self._inputs, dict):
                return _plain(root_fn(root, **dict(zip(placed, proxies, strict=True))))
            return _plain(root_fn(root, *proxies))

        return forward, [self.root]

    def inputs_by_name(self) -> dict[str, Any]:
        """The arguments, those without a name numbered."""
        if isinstance(self._inputs, dict):
            return self._inputs
        return {f"argument_{place}": value for place, value in enumerate(self._inputs)}

    def _value(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kind == "placeholder":
            return args[0]
        args, kwargs = fx.node.map_aggregate((args, kwargs), _held)  # type: ignore[misc]
        self._computes = True
        try:
            match kind:
                case "get_attr":
                    return operator.attrgetter(target)(self.root)
                case "call_module":
                    return self.root.get_submodule(target)(*args, **kwargs)
                case "call_method":
                    return getattr(args[0], target)(*args[1:], **kwargs)
            return target(*args, **kwargs)
        finally:
            self._computes = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node: torch's, task-aware ones, convolutions of graphs."""
        ours = (
            isinstance(m, (TaskAware, *self._leaves)) or is_message_passing(m) or is_channelwise(m)
        )
        if ours or not super().is_leaf_module(m, module_qualified_name):
            return ours
        # torch's transformer layers are followed where tasks have a part of them.
        return not any(isinstance(inner, TaskAware) for inner in m.modules())

    def _is_aside(self) -> bool:
        """Whether a node is being computed, or another thread runs a model (fx catches all)."""
        return self._computes or threading.get_ident() != self._thread

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """The module as a node or as what it is made of, unless a node is being computed."""
        if self._is_aside():
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter as a proxy, unless a node is being computed."""
        if self._is_aside():
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of what is no tensor."""
        return bool(self.number(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """One proxy for each item of a tensor or tuple."""
        value = _held(obj)
        if isinstance(value, (Tensor, tuple, list)):
            return iter([operator.getitem(obj, i) for i in range(len(value))])  # type: ignore[call-overload]
        return super().iter(obj)

    def number(self, obj: fx.Proxy) -> Any:
        """What a proxy holds, where that is no tensor and so follows from sizes alone."""
        value = _held(obj)
        if not isinstance(value, Tensor):
            self.branched = True
        elif not self._is_constant(obj.node):
            raise TraceError("a branch depends on the values of a tensor")
        return value

    def _is_constant(self, node: fx.Node) -> bool:
        """Whether a value follows from the model's buffers alone."""
        if node.op == "get_attr":
            return str(node.target) in dict(self.root.named_buffers())
        return bool(node.all_input_nodes) and all(map(self._is_constant, node.all_input_nodes))


class _Holds(fx.Proxy):
    """What both kinds of proxies do beyond torch's."""

    tracer: Tracer

    def __len__(self) -> int:
        value = _held(self)
        if not isinstance(value, (torch.Size, tuple, list, dict)):
            self.tracer.branched = True
        return len(value)

    def __index__(self) -> int:
        return operator.index(self.tracer.number(self))

    def __int__(self) -> int:
        return int(self.tracer.number(self))

    def __float__(self) -> float:
        return float(self.tracer.number(self))

    # fx alone would take ``x += y`` for ``x + y``.
    def _write(self, function: Callable[..., Any], other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._write(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._write(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._write(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._write(operator.itruediv, other)


class _Proxy(_Holds):
    held: Any

    def __getattr__(self, name: str) -> Any:
        value = _held(self)
        if name in _FIXED and isinstance(value, Tensor):
            return getattr(value, name)
        return _Attribute(self, name)


class _Attribute(_Holds, Attribute):
    pass


def _held(x: Any) -> Any:
    """What a proxy holds; anything else as it is."""
    if isinstance(x, Attribute):
        return getattr(_held(x.root), x.attr)
    return vars(x)["held"] if isinstance(x, fx.Proxy) else x


def _plain(output: Any) -> Any:
    """What a forward returns, of a dict or dataclass the entries that hold tensors.

    Objects of other kinds are None: a cache of keys and values is no output that tasks are asked
    for.
    """
    if is_dataclass(output) and not isinstance(output, (type, dict)):
        output = vars(output)
    if isinstance(output, dict):
        entries = {str(key): _plain(value) for key, value in output.items()}
        return {key: value for key, value in entries.items() if value is not None}
    if isinstance(output, (tuple, list)):
        return tuple(_plain(value) for value in output)
    return output if isinstance(output, (fx.Proxy, Tensor)) else None
