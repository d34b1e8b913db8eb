"""What a training loop asks of a method."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from maskcl.settings import Setting


class Method(Protocol):
    """Frozen hyper-parameters and the hooks of one method; all that changes is in the state.

    The order in a step: ``before_step``, forward inside ``net.task(state.task, state.scale)``,
    loss plus ``loss_term`` (still inside), backward, ``after_backward``, ``optimizer.step()``,
    ``after_step``.
    """

    def begin_task(self, net: Any, task: int, *, seed: int = 0) -> Any:
        """Make the network ready for a task; build the optimizer after it."""
        ...

    def protect(self, optimizer: Optimizer, net: Any, state: Any) -> Any:
        """Keep the optimizer off what earlier tasks need; a handle with ``remove()`` or None."""
        ...

    def before_step(self, net: Any, state: Any, progress: float) -> None:
        """Before the forward; progress in [0, 1] of the epoch."""
        ...

    def loss_term(self, net: Any, state: Any) -> Tensor:
        """What the method adds to the loss, 0-d."""
        ...

    def after_backward(self, net: Any, state: Any) -> None:
        """Between backward and the optimizer's step."""
        ...

    def after_step(self, net: Any, state: Any) -> None:
        """After the optimizer's step."""
        ...

    def end_task(self, net: Any, state: Any) -> None:
        """After the last step of a task."""
        ...

    def not_supported_reasons(self, problem: Any, setting: Setting) -> list[str]:
        """Why this combination cannot be; empty where it can."""
        ...


def derive_seed(purpose: str, *parts: int) -> int:
    """A seed in [0, 2^63) from a purpose and some numbers, the same on every machine.

    Seeds of different purposes or numbers are unrelated, so that a task's shuffling does not
    repeat another's initialisation, nor seed 0's task 1 that of seed 1's task 0.
    """
    text = "/".join([purpose, *map(str, parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
