"""What pretraining methods are made of."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class PretrainingMethod(nn.Module):
    """Base of pretraining methods; a trainer's ``pretraining`` makes one of a model.

    One of your own says in `inference` what the loss is.

    Args:
        encoder: the model; trained.
    """

    class PretrainIterator:
        """What an epoch goes through: the graph, once.

        Args:
            inputs: the graph.
            device: where it is to be.
        """

        def __init__(self, inputs: Any, device: Any) -> None:
            self.inputs, self.device, self.count = inputs, device, 0

        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            if self.count:
                raise StopIteration
            self.count = 1
            return self.inputs.to(self.device)

    best_checkpoint: dict[str, Any]

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss_fn: Any = None

    def iterator(self, inputs: Any, device: Any) -> Any:
        """What an epoch goes through, for a graph of the loader's."""
        return self.PretrainIterator(inputs, device)

    def inference(self, inputs: Any) -> Tensor:
        """The loss, 0-d, of what the iterator gives (whole graphs: of a batch of them)."""
        raise NotImplementedError

    def update(self) -> None:
        """Keep the encoder's weights as the best so far."""
        self.best_checkpoint = copy.deepcopy(self.encoder.state_dict())

    def processAfterTraining(self, original_model: nn.Module) -> None:
        """Give a model the best weights."""
        original_model.load_state_dict(self.best_checkpoint)
