"""Whether an optimizer's step can be one op of all its parameters."""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import SGD, Adam, AdamW, Optimizer

from maskcl.optim.update_calls import Group, wrong_options
from maskcl.shards import are_rows, is_sharded

NOT_DONE = "amsgrad", "differentiable"
"""Options that the op does not do."""
ROUNDINGS = "nearest", "stochastic"


class StepsFused:
    """Base of optimizers that were made for a `FusedStep`."""


def not_fused_reasons(optimizer: Optimizer) -> list[str]:
    """Why an optimizer keeps its own step; empty where `FusedStep` can take its place."""
    if type(optimizer) not in (SGD, Adam, AdamW) and not isinstance(optimizer, StepsFused):
        return [f"it is a {type(optimizer).__name__}, not torch.optim's SGD, Adam or AdamW"]
    step = vars(optimizer).get("step")
    # Schedulers count steps by a wrapper, and `FusedStep` says that it needs none.
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        return ["its step was replaced by other code"]
    found = [reason for group in optimizer.param_groups for reason in _unknown(group)]
    return list(dict.fromkeys(found))


def _unknown(group: Group) -> Iterator[str]:
    """What of a group the op does not do, in words."""
    for name in NOT_DONE:
        if group.get(name):
            yield f"{name} is set"
    yield from wrong_options(group)
    parameters = group["params"]
    if not all(p.is_floating_point() for p in parameters):
        yield "parameters are not floating"
    if not all(map(are_rows, filter(is_sharded, parameters))):
        yield "parameters are sharded otherwise than by rows"


def seed_of(caller: str, rounding: str, seed: int) -> int | None:
    """``FusedStep``'s seed: None for rounding to nearest.

    Raises:
        TypeError, ValueError: rounding is neither "nearest" nor "stochastic", or the seed no int64.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"{caller}: rounding is {rounding!r}, wanted {' or '.join(ROUNDINGS)}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"{caller}: seed is a {type(seed).__name__}, wanted an int")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{caller}: seed is {seed}, wanted one of 64 bits")
    return seed if rounding == "stochastic" else None
