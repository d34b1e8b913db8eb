"""Methods: hyper-parameters, a state, and a few hooks that any training loop can call."""

from maskcl.methods.base import Method, PlanWarning, derive_seed
from maskcl.methods.hat import HAT, HATState
from maskcl.methods.piggyback import Piggyback, PiggybackState

__all__ = [
    "HAT",
    "HATState",
    "Method",
    "Piggyback",
    "PiggybackState",
    "PlanWarning",
    "derive_seed",
]
