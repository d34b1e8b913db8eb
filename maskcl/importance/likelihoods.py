"""Log p(y|outputs), of which Fisher information takes the gradient, and the y that it takes it at.

What a network's outputs are the parameters of: a softmax over classes, the means of Gaussians of
unit variance, the logits of yes-or-no labels. Outputs whose square is infinite, as those of classes
that are masked with -inf or the lowest number of the dtype, are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Draw = Callable[[Sequence[int]], Tensor]  # shape -> numbers uniform in [0, 1), float64


class Likelihood(Protocol):
    """Of targets y given a network's outputs."""

    def log(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Log p(y|outputs) of every sample, [N], in float32 (float64); constants are left out."""
        ...

    def check(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """The data's targets as y.

        Raises:
            TypeError, ValueError: there are none, or such as the outputs cannot have.
        """
        ...

    def likeliest(self, outputs: Tensor) -> Tensor:
        """The y of the largest p."""
        ...

    def sample(self, outputs: Tensor, draw: Draw) -> Tensor:
        """A y from p. One number a draw, so that they do not depend on the batches."""
        ...


class Categorical:
    """Classes, dimension 1 of the logits [N, C, ...], y int64 [N, ...].

    One logit alone is that of y = 1 beside y = 0, which has 0: a sigmoid.
    """

    def log(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See Likelihood."""
        return self._logits(outputs).log_softmax(1).gather(1, y.unsqueeze(1)).flatten(1).sum(1)

    def check(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See Likelihood."""
        lost = wide(self._classes(outputs))[1]
        wanted = [lost.shape[0], *lost.shape[2:]]
        targets = _given(targets)
        if targets.is_floating_point() or targets.is_complex():
            raise TypeError(f"estimate: targets are {targets.dtype}, wanted integers (classes)")
        if list(targets.shape) != wanted:
            raise ValueError(f"estimate: targets have shape {list(targets.shape)}, wanted {wanted}")
        targets = targets.long()
        outside = (targets < 0) | (targets >= lost.shape[1])
        if bool(outside.any()):
            raise ValueError(
                f"estimate: targets hold {int(targets[outside][0])}, wanted 0 to"
                f" {lost.shape[1] - 1}"
            )
        if bool(lost.gather(1, targets.unsqueeze(1)).any()):
            raise ValueError("estimate: targets hold a class whose output is masked")
        return targets

    def likeliest(self, outputs: Tensor) -> Tensor:
        """See Likelihood."""
        return self._logits(outputs).argmax(1)

    def sample(self, outputs: Tensor, draw: Draw) -> Tensor:
        """See Likelihood."""
        drawn = draw([outputs.shape[0], 1, *outputs.shape[2:]])
        heights = self._logits(outputs).double().softmax(1).cumsum(1)
        return (heights <= drawn * heights[:, -1:]).sum(1)

    def _logits(self, outputs: Tensor) -> Tensor:
        logits, lost = wide(self._classes(outputs))
        return logits.masked_fill(lost, -torch.inf)

    def _classes(self, outputs: Tensor) -> Tensor:
        """[N, C, ...] with C of at least 2: one logit is the difference of two."""
        if outputs.dim() < 2:
            raise ValueError(
                f"estimate: outputs have shape {list(outputs.shape)}, wanted logits [N, C, ...]"
            )
        if outputs.shape[1] == 1:
            return torch.cat([torch.zeros_like(outputs), outputs], 1)
        return outputs


class Gaussian:
    """Values around the outputs f [N, ...] with unit variance, y floating of the same shape.

    Log p = -|y - f|^2 / 2, whose gradient is (y - f) df/dW: with the data's y the gradient of half
    the squared error; with sampled y one draw e df/dW of normal e, whose square has the Fisher
    information sum_k (df_k/dW)^2 as its mean. At the likeliest y, which is f, it is 0 for every
    parameter.
    """

    def log(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See Likelihood."""
        means, lost = wide(outputs)
        return _sum((y - means).masked_fill(lost, 0.0).square()) / -2

    def check(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See Likelihood."""
        return _shaped(outputs, targets)

    def likeliest(self, outputs: Tensor) -> Tensor:
        """Not defined: see the class.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            'estimate: labels is "predicted", at which the gradient of a Gaussian likelihood is 0;'
            ' wanted "data" or "sampled"'
        )

    def sample(self, outputs: Tensor, draw: Draw) -> Tensor:
        """See Likelihood."""
        # The inverse of the distribution function: of 0, which is drawn once in 2^53, it is -inf.
        noise = torch.special.ndtri(draw(outputs.shape).clamp(min=2**-54))
        means, _ = wide(outputs)
        return means + noise.to(means.dtype)


class Bernoulli:
    """Labels that a sample has or has not, each with its logit in [N, ...], y of 0 and 1."""

    def log(self, outputs: Tensor, y: Tensor) -> Tensor:
        """See Likelihood."""
        logits, lost = wide(outputs)
        logits = logits.masked_fill(lost, 0.0)
        losses = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        return -_sum(losses.masked_fill(lost, 0.0))

    def check(self, outputs: Tensor, targets: Tensor | None) -> Tensor:
        """See Likelihood."""
        found = _shaped(outputs, targets)
        other = found[(found != 0) & (found != 1)]
        if other.numel():
            raise ValueError(f"estimate: targets hold {other[0].item():g}, wanted 0 or 1")
        return found

    def likeliest(self, outputs: Tensor) -> Tensor:
        """See Likelihood."""
        logits, _ = wide(outputs)
        return (logits > 0).to(logits.dtype)

    def sample(self, outputs: Tensor, draw: Draw) -> Tensor:
        """See Likelihood."""
        logits, _ = wide(outputs)
        return (draw(outputs.shape) < logits.double().sigmoid()).to(logits.dtype)


LIKELIHOODS: dict[str, Likelihood] = {
    "categorical": Categorical(),
    "gaussian": Gaussian(),
    "bernoulli": Bernoulli(),
}


def wide(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs in the dtype of importances, and which of them are left out."""
    found = outputs if outputs.dtype == torch.float64 else outputs.float()
    lost = found.detach().square().isinf()
    if outputs.dtype != found.dtype:
        lost = lost | (outputs.detach().abs() >= torch.finfo(outputs.dtype).max)
    return found, lost


def _sum(values: Tensor) -> Tensor:
    """[N]: over all that a sample has."""
    return values.reshape(values.shape[0], -1).sum(1)


def _given(targets: Tensor | None) -> Tensor:
    if targets is None:
        raise ValueError(
            'estimate: labels "data" of kind "fisher" wants the targets, found none'
            " (batches of (x, y), or forward= that returns them)"
        )
    return targets


def _shaped(outputs: Tensor, targets: Tensor | None) -> Tensor:
    """Targets of the outputs' shape and dtype of importances; [N] are those of outputs [N, 1]."""
    targets = _given(targets)
    if targets.is_complex():
        raise TypeError(f"estimate: targets are {targets.dtype}, wanted real numbers")
    if list(outputs.shape) == [*targets.shape, 1]:
        targets = targets.unsqueeze(-1)
    if targets.shape != outputs.shape:
        raise ValueError(
            f"estimate: targets have shape {list(targets.shape)}, wanted {list(outputs.shape)}"
        )
    return targets.to(wide(outputs)[0].dtype)
