"""Methods: hyper-parameters, a state, and a few hooks that any training loop can call."""

from maskcl.methods.base import Method, PlanWarning, TaskData, derive_seed
from maskcl.methods.baselines import Finetune, Independent, Joint
from maskcl.methods.ewc import EWC
from maskcl.methods.hat import HAT
from maskcl.methods.hat_state import HATState
from maskcl.methods.mas import MAS
from maskcl.methods.piggyback import Piggyback, PiggybackState
from maskcl.methods.quadratic import QuadraticState

__all__ = [
    "EWC",
    "Finetune",
    "HAT",
    "HATState",
    "Independent",
    "Joint",
    "MAS",
    "Method",
    "Piggyback",
    "PiggybackState",
    "PlanWarning",
    "QuadraticState",
    "TaskData",
    "derive_seed",
]
