"""``load_state_dict`` in time proportional to the state.

torch hands each module the entries that begin with its name, and looks through all of its parent's
for them: T heads look through T heads' entries each. Here a parent's are sorted once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from maskcl.sharded_modules import class_name


class Loading(nn.Module):
    """Base of LaterTasks: what is loaded, reported and raised is ``nn.Module``'s."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As ``nn.Module.load_state_dict``.

        Raises:
            TypeError: state_dict is no mapping.
            RuntimeError: it does not fit.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
        found: tuple[list[str], list[str], list[str]] = [], [], []
        state: Any = OrderedDict(state_dict)
        if (metadata := getattr(state_dict, "_metadata", None)) is not None:
            state._metadata = metadata
        _load(self, state, "", metadata or {}, assign, found)
        missing, unexpected, errors = found
        for keys, what in ((unexpected, "Unexpected"), (missing, "Missing")):
            if strict and keys:
                named = ", ".join(f'"{key}"' for key in keys)
                errors.insert(0, f"{what} key(s) in state_dict: {named}. ")
        if errors:
            name, text = class_name(self), "\n\t".join(errors)
            raise RuntimeError(f"Error(s) in loading state_dict for {name}:\n\t{text}")
        return _IncompatibleKeys(missing, unexpected)


def _load(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Mapping[str, Any],
    assign: bool,
    found: tuple[list[str], list[str], list[str]],
) -> None:
    """Load a module and its children from the entries that begin with ``prefix``."""
    local = metadata.get(prefix[:-1], {})
    if assign:
        local["assign_to_params_buffers"] = assign
    module._load_from_state_dict(state, prefix, local, True, *found)
    entries: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        if key.startswith(prefix):
            child = key[len(prefix) :].partition(".")[0]
            entries.setdefault(child, {})[key] = value
    for name, inner in module._modules.items():
        if inner is not None:
            _load(inner, entries.get(name, {}), f"{prefix}{name}.", metadata, assign, found)
    for hook in module._load_state_dict_post_hooks.values():
        if hook(module, _IncompatibleKeys(found[0], found[1])) is not None:
            raise AssertionError(
                "Hooks registered with `register_load_state_dict_post_hook` are not expected to"
                " return new values, if incompatible_keys need to be modified, it should be done"
                " inplace."
            )
