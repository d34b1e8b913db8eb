"""Steps of the methods written carefully in torch's own operations.

What holds for a task is made before, lists are stepped by torch's foreach operations, the optimizer
is torch's fused one, and they run while numbers below 2^-126 are taken as 0 (`flushing`). None of
them is guarded: momentum and decay move what earlier tasks need. HAT gates what each layer, or the
BatchNorm behind it, gives, in front of the ReLU: the same numbers as behind it. Which weights are
protected is drawn, for the cost is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EagerHAT", "EagerMAS", "EagerPiggyback", "Unmasked", "flushing"]

_SCALE, _MAX_SCALE, _SPARSITY, _USED, _THRESHOLD = 200.0, 400.0, 0.75, 0.3, 5e-3
OptimizerOf = Callable[[Any], torch.optim.Optimizer]


@contextlib.contextmanager
def flushing() -> Iterator[None]:
    """Have torch take subnormal numbers as 0 in this thread.

    Gates that are nearly closed bring them forth in every product, and each costs an x86 core a
    hundred cycles: a step of HAT's takes two to seven times as long without.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


class Unmasked:
    """The ordinary network's step; the others change parts of it.

    Args:
        model: trained as it is.
        optimizer_of: makes the optimizer of parameters.
        compiled: whether forward and loss are compiled.
    """

    def __init__(self, model: nn.Module, optimizer_of: OptimizerOf, compiled: bool) -> None:
        self.model = model.train()
        self.prepare()
        self.optimizer = optimizer_of(self.trained())
        self.run = torch.compile(self.loss) if compiled else self.loss

    def prepare(self) -> None:
        """Make what holds for the task."""

    def trained(self) -> list[nn.Parameter]:
        """What the optimizer steps."""
        return list(self.model.parameters())

    def loss(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Of a batch."""
        return F.cross_entropy(self.model(*inputs), targets)

    def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> None:
        """One training step."""
        self.optimizer.zero_grad()
        self.run(inputs, targets).backward()
        self.optimizer.step()


class EagerHAT(Unmasked):
    """HAT (Serra et al. 2018): gates, sparsity term, clamp masks, compensation, bound."""

    def prepare(self) -> None:
        """Masks of weights and of units, and hooks that gate."""
        layers = _layers(self.model)[:-1]  # the last one is the task's own head
        sizes = [weight.shape[0] for weight, _, _ in layers]
        self.embeddings = [nn.Parameter(torch.randn(size)) for size in sizes]
        used = [(torch.rand(size) < _USED).float() for size in sizes]
        self.free = [1 - mask for mask in used]
        self.count = sum(float(mask.sum()) for mask in self.free)
        self.clamped: list[tuple[nn.Parameter, Tensor]] = []
        for index, (weight, units, place) in enumerate(layers):
            columns = (torch.rand(weight.shape[1]) < _USED).float() if index else torch.ones(1)
            outer = torch.minimum(used[index][:, None], columns[None])
            self.clamped.append((weight, 1 - _over(outer, weight).expand_as(weight).contiguous()))
            self.clamped += [(parameter, self.free[index]) for parameter in units]
            place.register_forward_hook(lambda _m, _x, y, i=index: self._gated(i, y))

    def trained(self) -> list[nn.Parameter]:
        """Embeddings too."""
        return [*self.model.parameters(), *self.embeddings]

    def _gated(self, index: int, y: Tensor) -> Tensor:
        return y * _over(self.masks[index], y, dim=1)

    def loss(self, inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """Of a batch, with the term of section 2.6."""
        self.masks = [torch.sigmoid(_SCALE * e) for e in self.embeddings]
        taken = sum((m * free).sum() for m, free in zip(self.masks, self.free, strict=True))
        return super().loss(inputs, targets) + _SPARSITY / self.count * taken

    def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> None:
        """One training step; in the end the embeddings are bounded."""
        self.optimizer.zero_grad()
        self.run(inputs, targets).backward()
        self._clamp()
        self.optimizer.step()
        with torch.no_grad():
            embeddings: list[Tensor] = [*self.embeddings]
            torch._foreach_clamp_min_(embeddings, -6.0)
            torch._foreach_clamp_max_(embeddings, 6.0)

    @torch.no_grad()
    def _clamp(self) -> None:
        """Compensate the embeddings' gradients, clamp the others."""
        for e in self.embeddings:
            top = torch.cosh((_SCALE * e).clamp(-50, 50)).add_(1)
            assert e.grad is not None
            e.grad.mul_(top.mul_(_MAX_SCALE / _SCALE).div_(torch.cosh(e).add_(1)))
        grads = _grads(parameter for parameter, _ in self.clamped)
        torch._foreach_mul_(grads, [mask for _, mask in self.clamped])


class EagerPiggyback(Unmasked):
    """Piggyback (Mallya et al. 2018): weights times thresholded scores, which are trained."""

    def prepare(self) -> None:
        """Freeze all but the last layer, and give scores to the others."""
        self.model.requires_grad_(False)
        self.scores: list[nn.Parameter] = []
        named = [
            (parent, name, child)
            for parent in self.model.modules()
            for name, child in parent.named_children()
            if _is_product(child)
        ]
        for parent, name, child in named[:-1]:
            masked = _ThresholdedLayer(child)
            self.scores.append(masked.scores)
            setattr(parent, name, masked)
        self.head = named[-1][2].requires_grad_(True)

    def trained(self) -> list[nn.Parameter]:
        """Scores and the head."""
        return [*self.scores, *self.head.parameters()]


class EagerMAS(Unmasked):
    """MAS (Aljundi et al. 2018): the penalty's gradient is added to the loss's."""

    def prepare(self) -> None:
        """Anchors and importances, the strength in them."""
        self.held: list[Tensor] = list(self.model.parameters())
        self.anchors = [parameter.detach().clone() for parameter in self.held]
        self.pull = [torch.ones_like(anchor) for anchor in self.anchors]

    def step(self, inputs: tuple[Tensor, ...], targets: Tensor) -> None:
        """One training step; parameters are pulled towards their anchors."""
        self.optimizer.zero_grad()
        self.run(inputs, targets).backward()
        with torch.no_grad():
            apart = [*torch._foreach_sub(self.held, self.anchors)]  # type: ignore[arg-type]
            torch._foreach_mul_(apart, self.pull)
            torch._foreach_add_(_grads(self.held), apart)
        self.optimizer.step()


class _Threshold(torch.autograd.Function):
    """Scores above the threshold; gradients go straight through."""

    @staticmethod
    def forward(scores: Tensor) -> Tensor:
        return (scores > _THRESHOLD).to(scores.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class _ThresholdedLayer(nn.Module):
    """A linear layer or convolution under the mask of its scores."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.scores = nn.Parameter(0.01 * torch.randn_like(layer.weight))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight * _Threshold.apply(self.scores)
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, weight, self.layer.bias)
        return F.linear(x, weight, self.layer.bias)


def _grads(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _is_product(module: nn.Module) -> bool:
    """A linear layer or convolution, torch's or inside one of torch_geometric's."""
    return isinstance(module, nn.Conv2d) or type(module).__name__ == "Linear"


def _layers(model: nn.Module) -> list[tuple[nn.Parameter, list[nn.Parameter], nn.Module]]:
    """In order the weights of products, parameters of their units, and whose output is gated."""
    found: list[tuple[nn.Parameter, list[nn.Parameter], nn.Module]] = []
    convolution: nn.Module | None = None
    module: Any
    for module in model.modules():
        if type(module).__name__ == "GCNConv":
            convolution = module
        elif _is_product(module):
            owner: Any = module if convolution is None else convolution
            units = [] if owner.bias is None else [owner.bias]
            found.append((module.weight, units, owner))
            convolution = None
        elif isinstance(module, nn.BatchNorm2d):
            weight, units, _ = found[-1]
            found[-1] = weight, [*units, module.weight, module.bias], module
    return found


def _over(mask: Tensor, other: Tensor, dim: int = 0) -> Tensor:
    """With dimensions of 1 around, so that it broadcasts over ``other`` from ``dim`` on."""
    shape = [1] * dim + [*mask.shape]
    return mask.view(shape + [1] * (other.dim() - len(shape)))
