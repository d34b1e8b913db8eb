"""The rules by which units are followed from node to node of a traced model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from maskcl.nn.following import operations as ops
from maskcl.nn.following import provenance as p
from maskcl.nn.following.operations import operation
from maskcl.nn.following.provenance import Value
from maskcl.nn.following.trace import Shape, Trace
from maskcl.nn.following.trees import leaves_of, mapped
from maskcl.nn.tasks.activations import keeps_zero
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.graph_convolutions import is_channelwise
from maskcl.nn.tasks.state import NONE, TaskAware
from maskcl.nn.tasks.task_parameters import TaskParameter

Layer = Callable[[fx.Node, TaskAware, Value], Value]


def follow(trace: Trace, layer: Layer) -> dict[fx.Node, Any]:
    """Value of every node (a tuple of Values, or a plain result where it holds no tensor).

    Args:
        trace: of a model whose weight layers and norms are task-aware.
        layer: called with each node that calls a task-aware module, in order, and the Value that
            it reads; returns the Value of its output.

    Raises:
        ConversionError: a node would make one task's outputs depend on another's training.
    """
    env: dict[fx.Node, Any] = {}
    for node in trace.graph.nodes:
        if node.op == "output":
            continue
        env[node] = _Node(trace, node, env).value(layer)
    return env


class _Node:
    """One node, with the values that it reads."""

    def __init__(self, trace: Trace, node: fx.Node, env: dict[fx.Node, Any]) -> None:
        self.trace = trace
        self.node = node
        self.result = trace.results[node]
        self.args = mapped(node.args, fx.Node, env.__getitem__)
        self.kwargs = mapped(node.kwargs, fx.Node, env.__getitem__)
        self.values = list(leaves_of((self.args, self.kwargs), Value))

    def value(self, layer: Layer) -> Any:
        if self.node.op == "placeholder" or self.node.op == "get_attr":
            return self._all(p.every)
        module = self.trace.called(self.node)
        if isinstance(module, TaskParameter):
            return self._all(p.every)
        if isinstance(module, TaskAware):
            data, others = self.values[0], self.values[1:]
            if module._takes_edges and all(value.every for value in others):
                others = []  # edges and what they carry
            if others or not isinstance(self.result, Shape):
                raise ConversionError(f"{self._where()}: wanted one tensor as its input")
            return layer(self.node, module, data)
        if not self.trace.carries_tensor(self.node):
            return self.result
        name = operation(self.node) if module is None else ""
        if name == "batch_norm":
            raise ConversionError(
                f"{self._where()} updates statistics that all tasks share; use a nn.BatchNorm"
                " module, which becomes one norm a task"
            )
        if all(value.every for value in self.values):
            return self._all(p.every)
        found = self._module(module) if module is not None else self._operation(name)
        if found is None or not self._fits(found):
            lost = next((v.problem for v in self.values if not v.followed), None)
            problem = lost or f"{self._where()} cannot be followed"
            return self._all(lambda shape: p.unknown(shape, problem))
        return found

    def _module(self, module: nn.Module) -> Any:
        value = self.values[0]
        kind = type(module).__name__
        if is_channelwise(module):
            return self._rows()
        if ops.is_frozen_layer(module):
            return p.every(self.result.size)  # each element comes from many
        if len(self.values) != 1 or not value.followed:
            return None
        if isinstance(module, ops.MOVING_MODULES):
            return self._moved(module)
        if kind.startswith("InstanceNorm") and getattr(module, "affine", False):
            return None
        if kind.lower().startswith(
            ("upsample", "zeropad", "reflectionpad", "replicationpad", "circularpad")
        ):
            return p.resized(value, self.result.size, len(value.shape) - 2)
        if kind.endswith(("Pool1d", "Pool2d", "Pool3d")) or kind.startswith("InstanceNorm"):
            return p.resized(value, self.result.size, int(kind[-2])) if self._one() else None
        return self._unary(keeps_zero(module))

    def _operation(self, name: str) -> Any:
        if name == "getitem" and isinstance(self.args[0], tuple):
            return self.args[0][self.args[1]]
        if name in ops.READOUTS or (name in ops.PICKS and self._picks_rows()):
            return self._rows()
        if name in ops.MOVES:
            first = self.args[0] if self.args else None
            data = list(leaves_of(first, Value))
            return self._moved(self._call) if len(data) == len(self.values) else None
        if name == "getattr":
            return self._moved(self._call) if self.args[1] in ("T", "mT", "data") else None
        if not self._one() or self._has_odd_number(name):
            return None
        if name in ("view_as", "reshape_as", "expand_as", "type_as") and isinstance(
            self.args[0], Value
        ):
            return self._as_other(name)
        if name in ops.SUMS:
            return self._sum()
        if name in ops.PRODUCTS:
            return p.product(self.values, self.result.size)
        if name in ops.MIXES:
            return p.every(self.result.size)
        if name == "rms_norm":
            return self._rms_norm()
        if name in ("matmul", "bmm") and len(self.args) == 2:
            left, right = (x if isinstance(x, Value) else None for x in self.args)
            # Where units are summed over, each element comes from many: all tasks use it.
            return p.contracted(left, right, self.result.size) or p.every(self.result.size)
        if name == "addcmul":
            return self._scaled_product()
        if name == "scaled_dot_product_attention":
            return self._attention()
        if len(self.values) > 1 and not (name in ops.QUOTIENTS and self.values[-1].every):
            return None
        return self._one_tensor(name)

    def _has_odd_number(self, name: str) -> bool:
        """Whether 0 meets an infinity, a NaN or a division by 0 here."""
        numbers = [a for a in (*self.args, *self.kwargs.values()) if isinstance(a, float | int)]
        is_divided = name in ops.QUOTIENTS and any(number == 0 for number in numbers)
        in_arithmetic = name in ops.PRODUCTS or name in ops.SUMS or name in ops.QUOTIENTS
        return is_divided or (in_arithmetic and not all(map(math.isfinite, numbers)))

    def _one_tensor(self, name: str) -> Value | None:
        value = self.values[0]
        if not value.followed:
            return None
        if name == "pow":
            exponent = self.args[1] if len(self.args) > 1 else self.kwargs.get("exponent")
            is_number = isinstance(exponent, (int, float)) and math.isfinite(exponent)
            return self._unary(is_number and exponent > 0 and self.args[:1] == (value,))
        if name in ops.QUOTIENTS:
            return self._unary(self.args[0] is value)
        if name in ops.REDUCTIONS:
            dims = self.kwargs.get("dim", self.args[1] if len(self.args) > 1 else None)
            dims = range(len(value.shape)) if dims is None else dims
            keep = len(self.result.size) == len(value.shape)
            return p.reduced(
                value, self.result.size, [dims] if isinstance(dims, int) else dims, keep
            )
        if name.startswith(ops.POOLS):
            return p.resized(value, self.result.size, len(value.shape) - 2)
        if name == "pad":
            return self._padded(value)
        if name in ops.CLAMPS:
            return self._unary(self._clamps_zero_to_zero())
        if name in ops.KEEP_ZERO or name in ops.CHANGE_ZERO:
            return self._unary(name in ops.KEEP_ZERO)
        return None

    def _unary(self, keeps: bool | None) -> Value | None:
        if keeps is None:
            return None
        value = self.values[0]
        if value.shape != self.result.size:
            return None
        problem = None if keeps else f"{self._where()} does not keep the 0 of a closed unit"
        return dataclasses.replace(value, problem=value.problem or problem)

    def _sum(self) -> Value | None:
        total = p.joined(self.values, self.result.size)
        shift = next((a for a in self.args if isinstance(a, (int, float)) and a != 0), None)
        if shift is None or total.every:
            return total
        problem = f"{self._where()} adds {shift} to closed units"
        return dataclasses.replace(total, problem=total.problem or problem)

    def _scaled_product(self) -> Value | None:
        """addcmul: a + value * b * c."""
        first, *factors = (x for x in self.args[:3] if isinstance(x, Value))
        if len(factors) != 2:
            return None
        size = self.result.size
        return p.joined([first, p.product(factors, size)], size)

    def _rms_norm(self) -> Value | None:
        """0 stays 0, unless a row of zeros is divided by 0."""
        value, *weights = self.values
        eps = self.kwargs.get("eps", self.args[3] if len(self.args) > 3 else None)
        if not value.followed or eps == 0 or not all(weight.every for weight in weights):
            return None
        return value

    def _attention(self) -> Value | None:
        named = [self.kwargs.get("value"), *self.args[2:3]]
        found = next((v for v in named if isinstance(v, Value)), None)
        if found is None or found.every:
            return None
        size = self.result.size
        heads = size[-3] if len(size) > 2 else 1
        if len(found.shape) > 2 and found.shape[-3] != heads:  # enable_gqa: heads share values
            shape = (*found.shape[:-3], heads, *found.shape[-2:])
            found = p.repeated(found, len(shape) - 3, shape)
        return p.contracted(None, found, size)

    def _picks_rows(self) -> bool:
        index = self.args[-1]
        return isinstance(index, Value) and self.args[1:-1] in ((), (0,))

    def _rows(self) -> Value | None:
        """Rows picked, added up or averaged: each channel stays by itself, and 0 stays 0."""
        value, *others = self.values
        if not value.followed or any(not other.every for other in others):
            return None
        terms = [p.aligned(term, len(value.shape)) for term in value.terms]
        if not self._one() or any(term.shape[0] != 1 for term in terms):
            return None
        return Value(tuple(terms), self.result.size, value.problem)

    def _padded(self, value: Value) -> Value | None:
        names = ("input", "pad", "mode", "value")
        given = {**dict(zip(names, self.args, strict=False)), **self.kwargs}
        pad, mode = list(given["pad"]), given.get("mode", "constant")
        if mode != "constant":
            return p.resized(value, self.result.size, len(pad) // 2)
        if given.get("value") not in (None, 0, 0.0):
            return None
        # Zeros around whole images leave each channel its units.
        around = p.resized(value, self.result.size, len(pad) // 2)
        return around or p.moved([value], lambda terms: F.pad(terms[0], pad, value=NONE))

    def _clamps_zero_to_zero(self) -> bool | None:
        low, high = (*self.args[1:3], None, None)[:2]
        low = self.kwargs.get("min", self.kwargs.get("min_val", low))
        high = self.kwargs.get("max", self.kwargs.get("max_val", high))
        return (low is None or low <= 0) and (high is None or high >= 0)

    def _as_other(self, name: str) -> Any:
        size = self.result.size
        if not self.args[0].followed:
            return None
        if name == "type_as":
            return self.args[0]
        return p.moved(
            [self.args[0]],
            lambda t: t[0].expand(size) if name == "expand_as" else t[0].reshape(size),
        )

    def _moved(self, call: Callable[..., Any]) -> Any:
        """Run this node on the unit numbers of the values that it reads."""
        if any(not value.followed for value in self.values):
            return None

        def move(terms: list[Tensor]) -> Any:
            rest = iter(terms)
            args, kwargs = mapped((self.args, self.kwargs), Value, lambda _: next(rest))
            return call(*args, **kwargs)

        try:
            return p.moved(self.values, move)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return None

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        if self.node.op == "call_method":
            # Unit numbers are spread over a value without memory, which view wants.
            name = "reshape" if self.node.target == "view" else str(self.node.target)
            return getattr(args[0], name)(*args[1:], **kwargs)
        return self.node.target(*args, **kwargs)  # type: ignore[operator]

    def _one(self) -> bool:
        return isinstance(self.result, Shape)

    def _fits(self, found: Any) -> bool:
        if isinstance(found, Value):
            return isinstance(self.result, Shape) and found.shape == self.result.size
        sizes = [value.shape for value in leaves_of(found, Value)]
        return sizes == [shape.size for shape in leaves_of(self.result, Shape)]

    def _all(self, make: Callable[[tuple[int, ...]], Value]) -> Any:
        return mapped(self.result, Shape, lambda shape: make(shape.size))

    def _where(self) -> str:
        return self.trace.describe(self.node)
