"""Features of samples that tasks are told apart by: random ones of inputs, or a masked layer's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskcl.nn.inference.first_layer import Product, first_rows
from maskcl.nn.inference.random_features import projection, random_features, width_for

SPACES = ("shared", "masked", "base")
PerSample = Callable[..., Tensor]


class SampleFeatures:
    """(network, its arguments) -> [n, F], a row a sample.

    Args:
        space: "shared", of the input; "base", of what a frozen base makes of it; "masked", of the
            first masked layer under the active task.
        features: random ones, how many; None for as many as go with the input.
        seed: of random ones.
        per_sample: from rows to samples; None where rows are samples.
    """

    def __init__(
        self, space: str, features: int | None, seed: int, per_sample: PerSample | None
    ) -> None:
        self.space, self.features, self.seed = space, features, seed
        self.per_sample = per_sample
        self._weight: Tensor | None = None

    def __call__(self, net: Any, args: tuple[Any, ...], product: Product | None = None) -> Tensor:
        """Of the samples that these arguments are.

        Args:
            net: the network.
            args: of its forward.
            product: of the tasks before, where the same arguments are seen under several.

        Raises:
            ValueError: there are several arguments and no ``per_sample``; the network has no base.
        """
        if len(args) > 1 and self.per_sample is None:
            raise ValueError(
                f"TaskInference: the network takes {len(args)} arguments, so its rows need not be"
                " its samples: wanted per_sample, such as problems.Node().per_sample"
            )
        if self.space == "masked":
            rows = first_rows(net, net.masked_modules(), args, product)
        else:
            seen = net.base_rows(args) if self.space == "base" else args[0]
            rows = random_features(seen, self._projection(seen))
        # In one dtype, whatever the network's: statistics are as they were when it is cast.
        rows = rows.float()
        return rows if self.per_sample is None else self.per_sample(rows, *args)

    def _projection(self, x: Tensor) -> Tensor:
        """Made once for inputs of this size."""
        inputs = x.shape[1:].numel()
        kept = self._weight
        if kept is None or kept.shape[1] != inputs or kept.device != x.device:
            features = self.features or width_for(inputs)
            # A tensor made in inference mode could take no part in training later.
            with torch.inference_mode(False):
                kept = projection(inputs, features, self.seed).to(x.device)
            self._weight = kept
        return kept
