"""One task's network as an ordinary module, free of maskcl's machinery."""

from __future__ import annotations

from torch import nn

from maskcl.nn.hat.network import HATNetwork
from maskcl.nn.hat.plain import plain_hat
from maskcl.nn.importance.network import ImportanceNetwork
from maskcl.nn.importance.plain import plain_importance
from maskcl.nn.piggyback.network import PiggybackNetwork
from maskcl.nn.piggyback.plain import plain_piggyback
from maskcl.shards import UNSHARDED


def to_plain(net: HATNetwork | PiggybackNetwork | ImportanceNetwork, task: int) -> nn.Module:
    """One task's network as an ordinary module in evaluation mode, sharing nothing with ``net``.

    Its outputs are those of ``net`` under the task's hard mask, in evaluation mode: the same bits
    with relu and leaky_relu on the same device, and up to rounding where an op computes another
    activation or adds a bias in its own way. Closed units have weights and biases of 0; where an
    activation does not keep 0 (sigmoid) a UnitMask follows it. A PiggybackNetwork's layers become
    ordinary ones with the masks multiplied into their weights; an ImportanceNetwork's are as they
    are, with the task's head.

    Args:
        net: a HATNetwork, a PiggybackNetwork or an ImportanceNetwork.
        task: finished (its recorded units or bits) or not (embedding > 0; of a PiggybackNetwork,
            the one in training).

    Raises:
        ValueError: no such task.
        RuntimeError: the task of a PiggybackNetwork is neither finished nor in training, or
            parameters are sharded.
    """
    net._refuse_sharded("to_plain", UNSHARDED)
    if isinstance(net, PiggybackNetwork):
        return plain_piggyback(net, task)
    if isinstance(net, ImportanceNetwork):
        return plain_importance(net, task)
    return plain_hat(net, task)
