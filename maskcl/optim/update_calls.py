"""From an optimizer's groups and state to calls of the op ``update``: one for all groups alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from operator import attrgetter
from typing import Any, NamedTuple

from torch import Tensor, nn

from maskcl import backends
from maskcl.reference.gate import compute_dtype
from maskcl.shards import local

Group = dict[str, Any]
Parameters = list[nn.Parameter]
Grads = list[Tensor | None]
_GRAD = attrgetter("grad")
_NUMBERS = "lr", "weight_decay", "momentum", "dampening", "eps", "betas"


class Scaling(NamedTuple):
    """What all gradients of a step are divided by, and what bounds them.

    Attributes:
        scale: 0-d, of the loss; None for 1.
        found_inf: 0-d, not 0 where nothing is to be written; None for never.
        norm: 0-d, of the unscaled gradients; None for no bound.
        max_norm: the bound.
        draw: 0-d, of the random numbers that round bfloat16; None for rounding to nearest.
        seed: of them.
    """

    scale: Tensor | None
    found_inf: Tensor | None
    norm: Tensor | None = None
    max_norm: float = 0.0
    draw: Tensor | None = None
    seed: int = 0


class Kind(NamedTuple):
    """An op, and how groups tell it what to do.

    Attributes:
        op: its name.
        state: names of a parameter's entries in the optimizer's state.
        options: names of what the groups of one call have to share.
        pace: from one of these groups and the call's state to what the op takes of the options;
            None where the state is not what they want.
    """

    op: str
    state: tuple[str, ...]
    options: tuple[str, ...]
    pace: Callable[[Group, list[list[Tensor]]], tuple[Any, ...] | None]


@dataclass(eq=False)
class Call:
    """One call of the op, all but the gradients and what scales them.

    Attributes:
        kind: the op.
        parameters: that it steps.
        numbers: of each, its number among all of the optimizer's.
        groups: of each, the number of its group.
        state: a list of each kind.
        sides: out_tasks, in_tasks and groups of convolutions.
        exact: whether protection is exact, else "min".
        bounds: of each, its largest magnitude.
        places: of each, the number of its first element among those of all of the optimizer's.
        sharding: how the parameters are sharded, None where they are not.
        first: what the op takes behind the options: that the state has not been written.
        begins: of each parameter whose momentum the call begins, its state, where the momentum
            is put when it has been written.
    """

    kind: Kind
    parameters: Parameters
    numbers: list[int]
    groups: list[int]
    state: list[list[Tensor]]
    sides: tuple[list[Tensor], list[Tensor], list[int]]
    exact: bool
    bounds: list[float]
    places: list[int]
    sharding: Any = None
    first: tuple[bool, ...] = ()
    begins: list[dict[str, Any]] = field(default_factory=list)
    _own: list[int] = field(default_factory=list, init=False)
    _rest: tuple[Any, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        self._own = list(dict.fromkeys(self.groups))

    def follow(self, groups: list[Group]) -> bool:
        """Take the options as they are now; False where one call no longer does for all.

        Raises:
            TypeError: an option is no number.
        """
        own = [groups[g] for g in self._own]
        shared = [shared_options(group, self.kind.options) for group in own]
        pace = self.kind.pace(own[0], self.state)
        if pace is None or shared.count(shared[0]) < len(shared):
            return False
        lr, rate = [group["lr"] for group in groups], None
        if isinstance(own[0]["lr"], Tensor):
            lr, rate = [1.0] * len(groups), own[0]["lr"]
        decay = [group["weight_decay"] for group in groups]
        rates, decays = [float(lr[g]) for g in self.groups], [float(decay[g]) for g in self.groups]
        self._rest = *self.sides, self.exact, rates, decays, self.bounds, *pace, *self.first, rate
        return True

    def __call__(self, grads: Grads, scaling: Scaling) -> None:
        """Step the parameters by these gradients, which are those of all of the optimizer's."""
        lists: list[Any] = [self.parameters, [grads[n] for n in self.numbers], *self.state]
        if self.sharding is not None:
            lists = [[*map(local, tensors)] for tensors in lists]
        elif not all(map(Tensor.dim, lists[0])):
            lists = [rows(tensors) for tensors in lists]
        places = [] if scaling.draw is None else self.places
        backends.select(self.kind.op, lists[0][0])(*lists, *self._rest, *scaling, places)
        for entries, momentum in zip(self.begins, self.state[0], strict=False):
            entries["momentum_buffer"] = momentum


def check_state(call: Call) -> None:
    """Raise unless the op takes the state: what was loaded, or of a network that was converted.

    Raises:
        TypeError, ValueError: the message names an entry.
    """
    for name, tensors in zip(call.kind.state, call.state, strict=True):
        for number, value, p in zip(call.numbers, tensors, call.parameters, strict=False):
            what = f"the protected step: {name} of parameter {number}"
            if not isinstance(value, Tensor):
                raise TypeError(f"{what} is a {type(value).__name__}, wanted a tensor")
            if name == "step":
                continue
            if value.shape != p.shape:
                found, wanted = list(value.shape), list(p.shape)
                raise ValueError(f"{what} has shape {found}, wanted the parameter's, {wanted}")
            if value.dtype not in (p.dtype, compute_dtype(p.dtype)):
                raise TypeError(
                    f"{what} is {value.dtype}, and the parameter {p.dtype}: after a conversion of"
                    " the network build its optimizer anew"
                )


def parameters_of(optimizer: Any) -> Parameters:
    """Of all groups."""
    found: Parameters = []
    for group in optimizer.param_groups:
        found += group["params"]
    return found


def grads_of(parameters: Parameters) -> Grads:
    """Of each its gradient, None where it has none."""
    return [*map(_GRAD, parameters)]


def wrong_options(group: Group) -> list[str]:
    """What is no number that the op takes, in words; lr may be a tensor."""
    found: list[str] = []
    betas = group.get("betas", (0.0, 0.0))
    if type(betas) not in (tuple, list) or len(betas) != 2:
        found.append(f"betas is {betas!r}, wanted two numbers")
        betas = ()
    for name in _NUMBERS:
        for one in betas if name == "betas" else (group.get(name, 0.0),):
            # A number's own type says enough: isinstance takes ten times as long.
            if type(one) is float or type(one) is int or isinstance(one, Real):
                continue
            if not isinstance(one, Tensor):
                wanted = "a number or a tensor" if name == "lr" else "a number"
                found.append(f"{name} is a {type(one).__name__}, wanted {wanted}")
            elif name != "lr":
                found.append(f"{name} is a tensor, wanted a number")
            elif one.numel() != 1:
                found.append(f"lr has shape {list(one.shape)}, wanted a 0-d tensor")
    return found


def shared_options(group: Group, names: tuple[str, ...]) -> tuple[Any, ...]:
    """What a group's parameters have to share with others' to go into one call with them.

    Raises:
        TypeError: an option is no number.
    """
    if wrong := wrong_options(group):
        raise TypeError(f"the protected step: {wrong[0]}")
    lr = group["lr"]
    found: list[Any] = [id(lr) if type(lr) is not float and isinstance(lr, Tensor) else None]
    for name in names:
        value = group.get(name, False)
        found.append(tuple(value) if type(value) is list else value)
    return tuple(found)


def rows(tensors: list[Any]) -> list[Any]:
    """The same where a scalar is a row of one, as the op takes it."""
    return [t if t.dim() else t.view(1) for t in tensors]
