"""An op's time on each backend beside eager, torch.compile and a copy of the same bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from maskcl import backends, schemas
from maskcl.bench.case import Case, differentiated
from maskcl.bench.cases import case
from maskcl.bench.op_results import difference, drawn, on_backend, result
from maskcl.bench.timing import Spread, Timed, copy_of, in_turn

__all__ = ["COMPILED", "COPY", "EAGER", "OpTimes", "time_op"]

EAGER, COMPILED, COPY = "careful eager", "torch.compile", "copy of the same bytes"


@dataclass(frozen=True)
class OpTimes:
    """What one op takes.

    Attributes:
        op: its name.
        what: "call" or "forward + backward".
        times: of our backends, by their names, and of the others.
        ours: the backends among them.
        absent: rows without a figure, and why: a wrong result, or no compiler.
    """

    op: str
    what: str
    times: dict[str, Spread]
    ours: tuple[str, ...]
    absent: dict[str, str] = field(default_factory=dict)

    def losses(self) -> list[str]:
        """A sentence for each backend that takes longer than eager or compiled torch.

        The reference is the specification in plain torch, and slow.
        """
        found = []
        for name in self.ours:
            if name == "reference":
                continue
            for other in (EAGER, COMPILED):
                if other not in self.times:
                    continue
                ratio = self.times[name].median / self.times[other].median
                if round(ratio, 2) > 1:
                    found.append(f"{name} is slower than {other}: it takes {ratio:.2f} of its time")
        return found

    def wrong(self) -> list[str]:
        """Backends whose result is not the formula's."""
        return [name for name in self.absent if name in backends.BACKENDS]


def time_op(
    op: str,
    size: int,
    batch: int,
    *,
    device: str = "cpu",
    names: Sequence[str] | None = None,
    compiled: bool = True,
    seconds: float = 1.0,
) -> list[OpTimes]:
    """Check an op's result on every backend, then time it.

    Args:
        op: name in `maskcl.ops`.
        size: units a layer; weights are [size, size].
        batch: samples.
        device: "cpu" or "cuda".
        names: of backends; None for those that are here.
        compiled: whether torch.compile takes part; compiling takes seconds.
        seconds: of each measurement, in all.

    Returns:
        The call, and where the op has gradients the call with its backward.

    Raises:
        KeyError: there is no such op.
        maskcl.backends.BackendError: a backend of ``names`` cannot run it here.
    """
    made = case(op)
    # What moves nothing is plain Python, the same for every backend.
    chosen = _running(op, device, names) if made.moved else []
    whats = ["call", "forward + backward"] if made.wrt else ["call"]
    measure = functools.partial(_measure, op, size, batch, device, chosen, compiled, seconds)
    return [measure(what) for what in whats]


def _running(op: str, device: str, names: Sequence[str] | None) -> list[str]:
    """The backends to time; raises where one that was asked for cannot run."""
    low = op if op in schemas.STEM_OF else "hat_gate"
    found = []
    for name in backends.BACKENDS if names is None else names:
        reasons = backends.not_supported_reasons(name, low, device, torch.float32)
        if reasons and names is not None:
            raise backends.BackendError(f"{op}: {name} cannot run here: {'; '.join(reasons)}")
        if not reasons:
            found.append(name)
    return found


def _measure(
    op: str,
    size: int,
    batch: int,
    device: str,
    names: list[str],
    compiled: bool,
    seconds: float,
    what: str,
) -> OpTimes:
    both = what != "call"

    def run_of(pick: Callable[[Case], Callable[[], Any]], made: Case) -> Callable[[], Any]:
        return differentiated(pick(made), made.wrt) if both else pick(made)

    wanted = result(run_of(lambda c: c.plain, made := drawn(op, size, batch, device)), made)
    timed, absent = {}, {}
    for name in names or ["maskcl"]:
        around = on_backend(op, name, device)
        with around():
            run = run_of(lambda c: c.ours, made := drawn(op, size, batch, device))
            wrong = difference(result(run, made), wanted)
        if wrong:
            absent[name] = f"no figure: its result is not the formula's, {wrong}"
        else:
            timed[name] = Timed(run, around)
    ours = tuple(timed)
    timed[EAGER] = Timed(run_of(lambda c: c.plain, drawn(op, size, batch, device)))
    if compiled:
        torch.compiler.reset()
        try:
            run = run_of(_compiled, made := drawn(op, size, batch, device))
            run()
            timed[COMPILED] = Timed(run)
        except Exception as error:  # no compiler, or what it cannot trace
            absent[COMPILED] = f"does not compile here: {type(error).__name__}"
    if moved := made.moved_back if both else made.moved:
        timed[COPY] = Timed(copy_of(moved, device))
    return OpTimes(op, what, in_turn(timed, seconds), ours, absent)


def _compiled(made: Case) -> Callable[[], Any]:
    return torch.compile(made.formula or made.plain)
