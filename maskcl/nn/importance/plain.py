"""One task's view of a network with importances as an ordinary module."""

from __future__ import annotations

import torch
from torch import nn

from maskcl.nn.importance.network import ImportanceNetwork
from maskcl.nn.tasks.frozen_modules import thaw_norm
from maskcl.nn.tasks.heads import GrowingHead, TaskHeads
from maskcl.nn.tasks.norms import TaskNorm
from maskcl.nn.tasks.own_parts import copy_for
from maskcl.nn.tasks.replace_modules import replace_modules, with_hooks


@torch.no_grad()
def plain_importance(net: ImportanceNetwork, task: int) -> nn.Module:
    """``to_plain`` of an ImportanceNetwork: the task's head and norms in their places.

    Raises:
        ValueError: no such task.
    """
    net._check_task("to_plain", task)
    holder = nn.ModuleList([copy_for(net.model, task)])

    def plain(module: nn.Module) -> nn.Module | None:
        if isinstance(module, TaskHeads):
            return with_hooks(module.own_module(task), module)
        if isinstance(module, TaskNorm):
            return with_hooks(module.own_module(task), module)
        if isinstance(module, GrowingHead):
            return _visible(module, task)
        return None

    replace_modules(holder, plain)
    for module in holder.modules():
        thaw_norm(module)
    for parameter in holder.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())
    return holder[0].eval()


def _visible(head: GrowingHead, task: int) -> nn.Module:
    """A linear layer of the classes that the task sees."""
    whole, count = head.linear, head.classes[task]
    plain = nn.Linear(whole.in_features, count, whole.bias is not None, device="meta")
    for kind, value in whole.named_parameters(recurse=False):
        setattr(plain, kind, nn.Parameter(value.detach()[:count].clone()))
    return with_hooks(plain, head)
