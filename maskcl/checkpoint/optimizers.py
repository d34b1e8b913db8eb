"""An optimizer's state as named tensors and JSON, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from maskcl.checkpoint.content import CheckpointError


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors and a JSON object."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}

    def split(prefix: str, values: dict[Any, Any]) -> dict[str, Any]:
        tensors.update({f"{prefix}.{k}": v for k, v in values.items() if isinstance(v, Tensor)})
        return {str(k): v for k, v in values.items() if not isinstance(v, Tensor)}

    facts = {
        "state": {str(i): split(f"state.{i}", values) for i, values in state["state"].items()},
        "groups": [split(f"group.{i}", g) for i, g in enumerate(state["param_groups"])],
    }
    return tensors, facts


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Put `optimizer_state`'s result into an optimizer of the same kind and parameters.

    Raises:
        CheckpointError: it is of an optimizer with other parameters.
    """
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in facts["state"].items()}
    groups = [dict(group) for group in facts["groups"]]
    for name, tensor in tensors.items():
        kind, index, key = name.split(".", 2)
        (state if kind == "state" else groups)[int(index)][key] = tensor  # type: ignore[index]
    for fresh, group in zip(optimizer.param_groups, groups, strict=False):
        # JSON has no tuples.
        group.update({k: tuple(group[k]) for k, v in fresh.items() if isinstance(v, tuple)})
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"the checkpoint's optimizer does not fit: {error}") from None
    _keep_dtypes(optimizer, state)


def _keep_dtypes(optimizer: Optimizer, state: dict[int, dict[str, Any]]) -> None:
    """Torch casts what it loads to the parameter's dtype, products of NAdam's factors too."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, values in state.items():
        loaded = optimizer.state[parameters[index]]
        for key, value in values.items():
            if isinstance(value, Tensor) and loaded[key].dtype != value.dtype:
                loaded[key] = value.to(loaded[key].device)


def describe_optimizer(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The hyper-parameters of each group; what JSON does not know as text."""
    groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    plain = (int, float, str, type(None))
    return [{k: v if isinstance(v, plain) else str(v) for k, v in g.items()} for g in groups]
