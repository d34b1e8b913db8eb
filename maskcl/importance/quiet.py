"""A model in evaluation mode for one pass, and put back as it was."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterable, Iterator
from operator import attrgetter

import torch
from torch import Tensor, nn

from maskcl.nn.tasks.frozen_modules import FrozenNorm
from maskcl.nn.tasks.own_parts import all_modules, parameters_of
from maskcl.randomness import rng_state, set_rng_state

_TRAINING = attrgetter("training")


@contextlib.contextmanager
def quiet(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode, no parameter that requires a gradient, submodules that are really called.

    The mode of every submodule, ``requires_grad`` of every parameter, the state of every random
    generator and torch's switches are put back at the end, whatever happens inside.
    """
    modules = all_modules(model)
    trainable = [p for p in parameters_of(modules) if p.requires_grad]
    random = rng_state(device)
    with _switches(model, device), torch.enable_grad():
        try:
            with _evaluation(modules):
                for parameter in trainable:
                    parameter.requires_grad_(False)
                yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)
            set_rng_state(device, *random)


@contextlib.contextmanager
def _evaluation(modules: list[nn.Module]) -> Iterator[None]:
    """The model, which comes first, and all below it in evaluation mode, and back as it was."""
    training, model = list(map(_TRAINING, modules)), modules[0]
    # Whoever has a `train` of its own is asked; flags are all that there is to most models.
    ways = {getattr(kind, "train", None) for kind in set(map(type, modules))}
    plain = ways <= {nn.Module.train, FrozenNorm.train}
    try:
        if not plain:
            model.eval()
        for module in itertools.compress(modules, training):
            module.__dict__["training"] = False
        yield
    finally:
        if not plain:
            model.train(training[0])
        for module, mode in zip(modules, training, strict=True):
            module.__dict__["training"] = mode


@contextlib.contextmanager
def requiring(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters, which require a gradient inside."""
    listed = list(parameters)
    try:
        yield [p.requires_grad_(True) for p in listed]
    finally:
        for p in listed:
            p.requires_grad_(False)


@contextlib.contextmanager
def _switches(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Torch's shortcuts past the submodules, or past autograd in evaluation mode, off inside."""
    with contextlib.ExitStack() as stack:
        # Transformer layers and attention would read their children's weights instead of calling.
        stack.callback(
            torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled()
        )
        torch.backends.mha.set_fastpath_enabled(False)
        # Compiled code was traced without the hooks. What is compiled has imported the compiler.
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        # cuDNN has no gradient of an RNN in evaluation mode.
        if device.type == "cuda" and any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.callback(setattr, torch.backends.cudnn, "enabled", torch.backends.cudnn.enabled)
            torch.backends.cudnn.enabled = False
        yield
