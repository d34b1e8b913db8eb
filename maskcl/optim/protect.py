"""One call that keeps the promise for whatever optimizer there is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn
from torch.optim import Optimizer

from maskcl.optim.fused_step import FusedStep, not_fused_reasons
from maskcl.optim.guard import Guard, guard
from maskcl.optim.protected_elements import ProtectedElements, protection_of

if TYPE_CHECKING:
    from maskcl.nn import HATNetwork, Protection


def protect(
    optimizer: Optimizer,
    net: HATNetwork | Protection,
    *,
    protection: str = "exact",
    max_norm: float | None = None,
    bounds: Mapping[nn.Parameter, float] | None = None,
) -> FusedStep | Guard:
    """Keep an optimizer off what finished tasks need, until ``remove`` of what is returned.

    ``torch.optim``'s SGD, Adam and AdamW step through one op then, which does not touch protected
    elements and bounds norms and parameters in the same pass; the gradients of protected elements
    stay in ``grad``. Any other optimizer keeps its own step, and a `Guard` puts back what it moved;
    norms and bounds are the caller's then.

    Args:
        optimizer: any ``torch.optim.Optimizer``, built after ``begin_task``.
        net: the network, or its ``protection()``; taken as it is now.
        protection: "exact", or "min", the paper's.
        max_norm: of the gradients of all that the optimizer may move, or None.
        bounds: by parameter, the largest magnitude after a step.

    Raises:
        TypeError, ValueError: an argument is not as above.
        RuntimeError: the network no longer has the parameters of its protection; a step raises the
            same.
    """
    known = protection_of("protect", net)
    if known is None:
        raise TypeError("protect: net is None, wanted a HATNetwork or its protection()")
    elements = ProtectedElements("protect", known, protection, bounds)
    if not_fused_reasons(optimizer):
        return guard(optimizer, known, exact=protection == "exact")
    return FusedStep(optimizer, elements, max_norm)


def fuse(optimizer: Optimizer) -> FusedStep | None:
    """Let torch's SGD, Adam or AdamW step through one op, with nothing to protect.

    Args:
        optimizer: any; one of another kind keeps its own step.

    Returns:
        A handle with ``remove()``, or None for another kind.
    """
    if not_fused_reasons(optimizer):
        return None
    return FusedStep(optimizer, ProtectedElements("fuse", None))
