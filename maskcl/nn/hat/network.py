"""The network that many tasks share through unit masks (HAT, Serra et al. 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.following.arguments import sizes_of
from maskcl.nn.following.trace import trace
from maskcl.nn.hat.call_arguments import arguments_like, check_sizes
from maskcl.nn.hat.embedding import check_init
from maskcl.nn.hat.example_inputs import Example
from maskcl.nn.hat.find_topology import analyse
from maskcl.nn.hat.growth import GrowingUnits
from maskcl.nn.hat.layer_runs import Gates, LayerRuns
from maskcl.nn.hat.place_masks import attach
from maskcl.nn.hat.reading_hooks import let_hooks_read_only
from maskcl.nn.hat.shared_parameters import check_owners, check_tied
from maskcl.nn.hat.task_forwards import LinearLayers
from maskcl.nn.hat.topology import Topology
from maskcl.nn.hat.topology_by_hand import Sources
from maskcl.nn.hat.unit_tasks import TaskUnits
from maskcl.nn.tasks.active import ActiveTask, active_of
from maskcl.nn.tasks.model_structure import ModelStructure
from maskcl.nn.tasks.own_parts import shared_modules
from maskcl.nn.tasks.state import Masked
from maskcl.ops.gate import Gate, hat_gates
from maskcl.shards import is_sharded


class HATNetwork(GrowingUnits):
    """A model whose layers' units carry one mask a task, m = sigmoid(s e) (HAT, eq. 1).

    Every forward happens inside ``with net.task(k):`` and computes the masks of all layers at once.
    Layers whose output is the network's (no other weight layer follows) have no mask.

    Args:
        model: HATLinear, HATConvNd, TaskNorms and TaskHeads among ordinary modules without
            trainable parameters; taken over, not copied. ``to_hat`` makes one of an ordinary model.
        num_tasks: how many tasks there will be, T.
        example_inputs: a tensor, a tuple of the forward's arguments, or a dict of them by name, to
            trace the model with.
        init: how embeddings start: "normal" N(0, 1), about half the units open (the paper's);
            "uniform" U(0, 2), all open (its compression experiment, section 4.4); "dense", all 1.
        sources: by module, the layers whose units reach its input (their sum, each repeated per
            position), or None for "every task uses every input", where tracing cannot tell.

    Attributes:
        embeddings: one float32 [U] a task, all layers' units one after the other.
        tasks: int64 [U, W]; bit k % 64 of word k // 64: finished task k uses the unit.
        finished: bool [T].
        units: layer name -> its slice of U.
        example: makes inputs of the shapes that it was traced with.

    Raises:
        ConversionError: a parameter cannot be protected or a value cannot be followed; the message
            names it and what to do.
        ValueError: num_tasks or init is not as above, or a module has another number of tasks.
    """

    def __init__(
        self,
        model: nn.Module,
        num_tasks: int,
        example_inputs: Any,
        *,
        init: str = "normal",
        sources: Sources | None = None,
    ) -> None:
        super().__init__(model, num_tasks)
        check_init(init)
        check_owners(model)
        let_hooks_read_only(model.named_modules())
        self.example = Example(example_inputs)
        self._sources = sources
        self.topology = attach(model, self._state, num_tasks, example_inputs, sources)
        check_tied(model, self.topology)
        self._structure = ModelStructure(model)
        self.units = dict(self.topology.units)
        self._sizes = [s.stop - s.start for s in self.units.values()]
        self._runs = LayerRuns(model, len(self._sizes))
        self._linear_layers = LinearLayers()
        self._build_units(init)
        self.configure_gate()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for the active task.

        Raises:
            RuntimeError: no task is active.
            ValueError: there are other arguments than example inputs; or the model branches on
                sizes, and at these (the first dimension apart) its units go other ways. Sizes that
                are new are followed once, which takes a few forwards.
        """
        active = self._prepared()
        self._check_arguments(args, kwargs)
        output = self._output(active, args, kwargs)
        if torch.compiler.is_compiling():
            active.let_masks_go()
        return output

    def _output(self, active: ActiveTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not kwargs and active.scale is not None:
            gates = self._gates_of(self._units_in(active), active.scale)
            output = self._runs.gated_output(self.model, active, args, gates)
            if output is not None:
                return output
        self._make_masks(active)
        if not kwargs:
            output = self._runs.output(self.model, active, args)
            if output is not None:
                return output
        return self.model(*args, **kwargs)

    def masked_modules(self) -> list[nn.Module]:
        """The layers, or the norms behind them, whose output carries units' masks."""
        found = [module for _, module in shared_modules(self.model) if isinstance(module, Masked)]
        return [module for module in found if module._slots is not None]

    def _outputs_of(
        self, tasks: Sequence[int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        self._check_arguments(args, kwargs)
        is_narrow = not self._state.narrow.keys().isdisjoint(tasks)  # widened since they finished
        outputs = None
        if not kwargs and not is_narrow:
            outputs = self._linear_layers.outputs(self, tasks, args)
        return self._one_by_one(tasks, args, kwargs) if outputs is None else outputs

    def _make_masks(self, active: ActiveTask) -> None:
        """Masks of all layers at once, for the modules below."""
        units = self._units_in(active)
        if active.scale is None:
            mask = units.hard_mask().to(units.embedding.dtype)
            active.set_parts(mask.split(self._sizes))
            active.term = None
        else:
            gates = self._gates_of(units, active.scale)
            parts, active.term = hat_gates(*gates)
            active.set_parts(parts)
            active.term_weight = gates[4].weight

    def _units_in(self, active: ActiveTask) -> TaskUnits:
        units: TaskUnits = active.record
        if torch.compiler.is_compiling():
            # Gathered since the task was entered, it is another parameter.
            return self._units_of(active.task) if is_sharded(units.embedding) else units
        if self._embedding(active.task) is not units.embedding:
            # functional_call has put another in its place.
            units = active.record = self._units_of(active.task)
        return units

    def _gates_of(self, units: TaskUnits, scale: Tensor) -> Gates:
        """The arguments of ``hat_gates``."""
        gate = self._gate_of(units.embedding)
        return units.embedding, scale, units.free_share, self._sizes, gate

    def _gate_of(self, embedding: Tensor) -> Gate:
        """As configured, for embeddings of this dtype."""
        gate = self._gates.get(embedding.dtype)
        if gate is None:
            gate = self._gates[embedding.dtype] = Gate.of(embedding.dtype, *self._gate_options)
        return gate

    def _fill(self, active: ActiveTask) -> None:
        super()._fill(active)
        active.record = self._units_of(active.task)
        active.make_masks = self._make_masks

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise ValueError where the model may take another path than the one that was followed."""
        topology = self.topology
        names = topology.arguments
        if names is None:
            return
        if topology.sizes is None and not (kwargs or topology.by_name) and len(args) == len(names):
            return  # no more than this where calls are most of a step
        given = arguments_like(topology, self.model, args, kwargs)
        if topology.sizes is None:
            return
        sizes = sizes_of(given.values() if isinstance(given, dict) else given)
        if sizes == topology.sizes or sizes in topology.like:
            return

        def follow() -> Topology:
            with self.task(0):
                self._make_masks(self._prepared())
                return analyse(trace(self.model, given), self._sources)

        check_sizes(topology, sizes, follow)

    def _checked_scale(self, index: int, scale: float | Tensor | None) -> Tensor | None:
        """None for hard masks, exactly 0 or 1: the recorded units, else embedding > 0.

        A positive number, or a 0-d tensor on the network's device (which may be filled anew in
        place), for the soft masks that train.
        """
        if isinstance(scale, Tensor):
            if scale.dim() != 0:
                raise ValueError(
                    f"HATNetwork.task: scale has shape {list(scale.shape)}, wanted a 0-d tensor"
                )
            return scale
        if scale is None:
            return None
        if not 0 < scale < math.inf:
            raise ValueError(f"HATNetwork.task: scale is {scale}, wanted a finite number above 0")
        embedding = self.embeddings[index]
        return torch.full((), float(scale), dtype=embedding.dtype, device=embedding.device)

    def configure_gate(
        self,
        max_scale: float | None = None,
        cosh_clamp: float = 50.0,
        compensation: str = "exact",
        sparsity: float = 1.0,
    ) -> None:
        """How the gate's gradient is compensated (HAT, section 2.5); see ``ops.hat_gate``.

        float32 soft masks below exp(-k) / 256, k = cosh_clamp or 50 if that is more, are exactly 0:
        see ``ops.gate.mask_floor``. ``sparsity`` is the weight of eq. 5 that `sparsity` is made
        with beside the masks.
        """
        options = max_scale, cosh_clamp, compensation, sparsity
        dtype = self.embeddings[0].dtype
        self._gates, self._gate_options = {dtype: Gate.of(dtype, *options)}, options

    def sparsity(self, weight: float = 1.0) -> Tensor:
        """Share of the free units that the last forward's mask takes (HAT, eq. 5), a 0-d tensor.

        Args:
            weight: that it is multiplied by.

        Raises:
            RuntimeError: the network has not run in this ``with net.task(k):``.
        """
        active = active_of(self._state)
        if active is None or not active.has_masks:
            raise RuntimeError(
                "HATNetwork.sparsity: no forward yet inside this `with net.task(k):`"
            )
        units: TaskUnits = active.record
        term = active.term
        if torch.compiler.is_compiling():
            active.term = None  # as the masks: made anew for who asks again
        # A checkpointed forward ran without gradients, and its recomputation is yet to come.
        is_to_come = not active.learns and torch.is_grad_enabled()
        if active.scale is not None and (is_to_come or (term is None and active.parts is None)):
            gates = self._gates_of(units, active.scale)
            _, term = hat_gates(*gates)
            active.term_weight = gates[4].weight
        if term is not None and weight == active.term_weight:
            return term
        return weight * torch.dot(self._mask_again(active), units.free_share)

    def _mask_again(self, active: ActiveTask) -> Tensor:
        """The last forward's mask."""
        if active.parts is None:
            self._make_masks(active)
        parts = active.parts
        if torch.compiler.is_compiling():
            active.let_masks_go()
        units: TaskUnits = active.record
        return torch.cat(parts) if parts else units.free_share  # of no units
