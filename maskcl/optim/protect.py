"""One call that keeps the promise for whatever optimizer there is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.optim import Optimizer

from maskcl.optim.fusable import not_fused_reasons, seed_of
from maskcl.optim.fused_step import FusedStep
from maskcl.optim.guard import Guard, guard
from maskcl.optim.protected_elements import ProtectedElements, protection_of

if TYPE_CHECKING:
    from maskcl.nn import HATNetwork, Protection


def protect(
    optimizer: Optimizer,
    net: HATNetwork | Protection,
    *,
    protection: str = "exact",
) -> FusedStep | Guard:
    """Keep an optimizer off what finished tasks need, until ``remove`` of what is returned.

    ``torch.optim``'s SGD, Adam and AdamW step through one op then, which does not touch protected
    elements; their gradients stay in ``grad``. Any other optimizer keeps its own step, and a
    `Guard` puts back what it moved.

    Args:
        optimizer: any ``torch.optim.Optimizer``, built after ``begin_task``.
        net: the network, or its ``protection()``; taken as it is now.
        protection: "exact", or "min", the paper's.

    Raises:
        TypeError, ValueError: an argument is not as above.
        RuntimeError: the network no longer has the parameters of its protection; a step raises the
            same.
    """
    known = protection_of("protect", net)
    if known is None:
        raise TypeError("protect: net is None, wanted a HATNetwork or its protection()")
    elements = ProtectedElements("protect", known, protection)
    if not_fused_reasons(optimizer):
        return guard(optimizer, known, exact=elements.exact, clamped=False)
    return FusedStep(optimizer, elements)


def fuse(optimizer: Optimizer, *, rounding: str = "nearest", seed: int = 0) -> FusedStep | None:
    """Let torch's SGD, Adam or AdamW step through one op, with nothing to protect.

    Args:
        optimizer: any; one of another kind keeps its own step.
        rounding: of bfloat16 parameters, as for ``maskcl.optim.SGD``; an optimizer that rounds at
            random already goes on so with "nearest".
        seed: likewise.

    Returns:
        A handle with ``remove()``, or None for another kind.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    found = seed_of("fuse", rounding, seed)
    if not callable(getattr(optimizer, "step", None)):
        raise TypeError(f"fuse: optimizer is a {type(optimizer).__name__}, wanted one with a step")
    if not_fused_reasons(optimizer):
        return None
    return FusedStep(optimizer, ProtectedElements("fuse", None), seed=found)
