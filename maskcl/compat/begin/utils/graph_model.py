"""What BeGin's models share: a core that can be converted, and BeGin's names for its parts."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from maskcl.compat.begin.data import DataGraph, without_edges
from maskcl.compat.begin.utils.classifier import AdaptiveLinear
from maskcl.compat.begin.utils.layer_names import LayerNames
from maskcl.nn.hat.network import HATNetwork
from maskcl.nn.tasks.network import TaskNetwork


class GraphModel(LayerNames, nn.Module):
    """Base of the models: unpacks a graph, runs the core, masks the logits.

    Attributes:
        core: takes tensors alone, so that it can be converted; ``core.head`` is ``nn.Identity``.
            Once converted it is a network of maskcl's, which has the output layers in it.
        classifier: None where there is none.
        adjacency: the kind of edges that the core takes (``maskcl.graph.Graph.edges``).
    """

    core: Any
    classifier: AdaptiveLinear | None
    adjacency: str = "gcn"

    def __setattr__(self, name: str, value: Any) -> None:
        found = getattr(type(self), name, None)
        if isinstance(found, property) and found.fset is None:
            # torch would take a module in and go on giving the core's.
            raise AttributeError(
                f"{type(self).__name__}: {name} is given by the core, and cannot be set: put the"
                " layer into model.core"
            )
        super().__setattr__(name, value)

    def logits(self, tensors: tuple[Any, ...], task_masks: Tensor | None) -> Tensor:
        """The core's outputs, as the classifier lets them through.

        A converted model outside ``with model.task(k):`` answers for the latest task begun.
        """
        return self._let_through(self._outputs(tensors), task_masks)

    def features(self, tensors: tuple[Any, ...]) -> Tensor:
        """What goes into the output layer; under the active task's masks in a converted model."""
        if not isinstance(self.core, TaskNetwork):
            return self.core(*tensors)
        return self._seen(tensors, entering=[self._inside.head])[1][0]

    def observe_labels(self, new_labels: Tensor, verbose: bool = True) -> None:
        """See `AdaptiveLinear.observe_outputs`."""
        self._classifier().observe_outputs(new_labels, verbose)

    def get_observed_labels(self, tid: int | None = None) -> Tensor:
        """Classes observed so far, bool [C]; or by task ``tid``."""
        head = self._classifier()
        return head.observed if tid is None or tid < 0 else head.masks_so_far[tid]

    def reset_parameters(self) -> None:
        """Draw all weights anew, those of the classifier too.

        Raises:
            RuntimeError: the model was converted: finished tasks' outputs would be lost.
        """
        if isinstance(self.core, TaskNetwork):
            raise RuntimeError(
                f"{type(self).__name__}.reset_parameters: the model is a converted one, of"
                f" {self.core.num_tasks} tasks, wanted one as it was given to a trainer"
            )
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def converted(self, convert: Callable[[nn.Module], TaskNetwork]) -> Any:
        """A copy whose core, output layer included, is what ``convert`` makes of it."""
        model = copy.deepcopy(self)
        model.core.head = model._classifier().lin
        model._classifier().lin = nn.Identity()
        model.core = convert(model.core)
        return model

    @contextmanager
    def task(self, index: int, scale: Tensor | None = None) -> Iterator[None]:
        """Make a task active in a converted model; nothing in another."""
        if not isinstance(self.core, TaskNetwork):
            yield
            return
        with self.core.task(index, scale):
            yield

    _latest = 0

    def begin_task(self, index: int) -> None:
        """Which task is the latest."""
        self._latest = index

    @property
    def _inside(self) -> Any:
        """The core as a module: of a converted one what the network has in it."""
        return self.core.model if isinstance(self.core, TaskNetwork) else self.core

    def _outputs(self, tensors: tuple[Any, ...]) -> Tensor:
        with self._in_a_task():
            return self.core(*tensors)

    def _under(self, hat_masks: Sequence[Tensor], tensors: tuple[Any, ...]) -> Tensor:
        """Outputs of a HAT network under masks that are given, one a layer, not its own."""
        net = self.core
        assert isinstance(net, HATNetwork)
        wanted = [span.stop - span.start for span in net.units.values()]
        if [mask.numel() for mask in hat_masks] != wanted:
            raise ValueError(
                f"{type(self).__name__}.forward_hat: hat_masks have"
                f" {[mask.numel() for mask in hat_masks]} units, wanted {wanted}, one a layer"
            )
        with self._in_a_task():
            active = net._prepared()
            active.set_parts(tuple(mask.flatten() for mask in hat_masks))
            return net.model(*tensors)

    def _seen(
        self,
        tensors: tuple[Any, ...],
        behind: Sequence[nn.Module] = (),
        entering: Sequence[nn.Module] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """Outputs, and in the same forward what comes out of modules of the core or goes in."""
        here, found = threading.get_ident(), {}

        def leaves(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() == here:
                found[module] = output

        def enters(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if threading.get_ident() == here:
                found[module] = inputs[0]

        put = [module.register_forward_hook(leaves) for module in behind]
        put += [module.register_forward_pre_hook(enters) for module in entering]
        try:
            out = self._outputs(tensors)
        finally:
            for handle in put:
                handle.remove()
        return out, [found[module] for module in (*behind, *entering)]

    @contextmanager
    def _in_a_task(self) -> Iterator[None]:
        """The latest task where none is active."""
        if isinstance(self.core, TaskNetwork) and self.core._state.task is None:
            with self.core.task(self._latest):
                yield
        else:
            yield

    def _let_through(self, out: Tensor, task_masks: Tensor | None) -> Tensor:
        return out if self.classifier is None else self.classifier(out, task_masks)

    def _graph(self, graph: DataGraph | None, feat: Tensor) -> DataGraph:
        return without_edges(len(feat)) if graph is None else graph

    def _classifier(self) -> AdaptiveLinear:
        if self.classifier is None:
            raise RuntimeError(f"{type(self).__name__}: use_classifier is False: no classes here")
        return self.classifier
