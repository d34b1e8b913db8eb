"""The backbone with one mask a task over the units of every weighted layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.compat.clarena.backbones.handed_masks import Masks
from maskcl.compat.clarena.backbones.protection import per_input
from maskcl.compat.clarena.backbones.units import MaskedUnits
from maskcl.compat.clarena.checks import check_number
from maskcl.compat.clarena.spelling import MASK, is_at, older_order, spellings
from maskcl.ops import epoch_progress, hat_gate, hat_scale
from maskcl.ops.gate import mask_floor

STAGES = ("train", "validation", "test", "unlearning_test")
INITS = ("N01", "U-11", "U01", "U-10", "last")
_RANGES = {"U-11": (-1.0, 1.0), "U01": (0.0, 1.0), "U-10": (-1.0, 0.0)}
_AGGREGATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "min": torch.minimum,
    "max": torch.maximum,
    "mean": lambda a, b: (a + b) / 2,
}


class HATMaskBackbone(MaskedUnits):
    """Base of the backbones of HAT (Serra et al. 2018) and AdaHAT (Wang et al. 2024).

    A subclass puts an ``nn.Embedding(1, units)`` for each of its ``weighted_layer_names`` into
    ``task_embedding_t`` and, in its forward, multiplies by what ``get_mask`` returns. Forward takes
    the input and ``get_mask``'s arguments, and returns (features [N, output_dim], masks, by
    weighted layer what it hands on).

    Args:
        output_dim: features that heads are given.
        gate: "sigmoid"; None where ``register_hat_mask_module_explicitly`` is called later.
        kwargs: for the next class of a multiple inheritance.

    Attributes:
        gate_fn: the gate by itself; ``get_mask`` computes it and its gradient in one op.

    Raises:
        ValueError: gate is not "sigmoid".
    """

    gate: str | None = None
    # How a subclass uses BatchNorm: None, "shared" or "independent".
    batch_normalization: Any = None
    # Of the algorithm's compensation: masks that it no longer moves are exactly 0.
    clamp_threshold: float = 50.0

    def __init__(self, output_dim: int | None, gate: str | None = None, **kwargs: Any) -> None:
        super().__init__(output_dim=output_dim, **kwargs)
        if gate is not None:
            self.register_hat_mask_module_explicitly(gate)
            HATMaskBackbone.sanity_check(self)

    def register_hat_mask_module_explicitly(self, gate: str) -> None:
        """Make the modules and buffers of the masks, in place of any that are there.

        For a class of several bases, each of whose ``__init__`` makes an empty module of it: after
        the last one, call this.

        Args:
            gate: "sigmoid"; ``sanity_check`` says so where it is not.
        """
        self.gate = gate
        self.register_units()
        if gate == "sigmoid":
            self.gate_fn = nn.Sigmoid()

    def sanity_check(self) -> None:
        """Raise ValueError unless the gate is "sigmoid" and the masks are registered."""
        if self.gate is not None and self.gate != "sigmoid":
            raise ValueError(f"{type(self).__name__}: gate is {self.gate!r}, wanted 'sigmoid'")
        self.check_registered()

    @torch.no_grad()
    def initialize_task_embedding(self, mode: str) -> None:
        """Draw the current task's embedding.

        Args:
            mode: "N01", normal; "U-11", "U01" or "U-10", uniform between these two; "last", as the
                task before has left it.

        Raises:
            ValueError: it is none of these.
        """
        if mode not in INITS:
            wanted = ", ".join(INITS)
            raise ValueError(f"initialize_task_embedding: mode is {mode!r}, wanted one of {wanted}")
        for weight in self.embeddings():
            if mode == "N01":
                weight.normal_()
            elif mode in _RANGES:
                weight.uniform_(*_RANGES[mode])

    initialise_task_embedding = initialize_task_embedding

    def initialize_independent_bn(self) -> None:
        """Start the current task's BatchNorm afresh, where each task has its own."""
        for norms in self.norms_by_task():
            norms.reset_source()

    def store_bn(self) -> None:
        """Keep the current task's BatchNorm, where each task has its own."""
        for norms in self.norms_by_task():
            norms.keep(self.current_task())

    def norm_task(self, stage: str, test_task_id: int | None) -> int | None:
        """The task whose stored BatchNorms count at a stage; None: those in training."""
        if self.batch_normalization == "independent" and stage in ("test", "unlearning_test"):
            return self.current_task() if test_task_id is None else test_task_id
        return None

    @older_order("stage s_max batch_idx num_batches test_mask", is_at(4, MASK))
    @spellings(task_id="test_task_id")
    def get_mask(
        self,
        stage: str,
        s_max: float | None = None,
        batch_idx: int | None = None,
        num_batches: int | None = None,
        test_task_id: int | None = None,
        test_mask: Masks | None = None,
    ) -> Masks:
        """Masks of all layers, [units] each.

        Args:
            stage: "train": sigmoid(s e), s from 1 / s_max at the first batch to s_max at the last
                (HAT, eq. 3). "validation": sigmoid(s_max e). "test": the stored mask of
                ``test_task_id``, 0 or 1, or ``test_mask``. "unlearning_test": all ones.
            s_max: largest scale, at least 1.
            batch_idx: of the epoch, from 0.
            num_batches: of the epoch.
            test_task_id: a stored task; before version 1.0 its name was ``task_id``.
            test_mask: layer -> mask, as early versions of 1.0 took it.

        Raises:
            ValueError: the stage is none of these, or what it needs is missing or out of range.
        """
        if stage not in STAGES:
            raise ValueError(
                f"get_mask: stage is {stage!r}, wanted one of {', '.join(map(repr, STAGES))}"
            )
        needs = {
            "train": {"s_max": s_max, "batch_idx": batch_idx, "num_batches": num_batches},
            "validation": {"s_max": s_max},
        }.get(stage, {})
        for name, value in needs.items():
            if value is None:
                raise ValueError(f"get_mask: {name} is None, wanted a number at stage {stage!r}")
        if needs:
            check_number("get_mask: s_max", s_max, 1)
        if stage == "test":
            return self._test_mask(test_task_id, test_mask)
        flat = self.flat_embedding()
        if stage == "unlearning_test":
            return self.by_layer(torch.ones_like(flat))
        assert s_max is not None
        progress = 1.0
        if stage == "train":
            assert batch_idx is not None and num_batches is not None
            progress = epoch_progress(batch_idx, num_batches)
        floor = mask_floor(flat.dtype, self.clamp_threshold)
        return self.by_layer(hat_gate(flat, hat_scale(progress, s_max), floor=floor))

    def _test_mask(self, task_id: int | None, given: Masks | None) -> Masks:
        if given is None:
            if task_id is None:
                raise ValueError(
                    "get_mask: test_task_id is None, wanted a stored task at stage 'test'"
                )
            return self.by_layer(self.task_bits.mask(task_id, self._dtype()))
        for name, span in self.unit_spans().items():
            found = list(given[name].shape) if name in given else "missing"
            if found != [span.stop - span.start]:
                raise ValueError(
                    f"get_mask: test_mask[{name!r}] is {found}, wanted [{span.stop - span.start}]"
                )
        return {name: given[name] for name in self.weighted_layer_names}

    @older_order("input stage s_max batch_idx num_batches test_mask", is_at(5, MASK))
    @spellings(task_id="test_task_id")
    def forward(  # type: ignore[override]
        self,
        input: Tensor,
        stage: str,
        s_max: float | None = None,
        batch_idx: int | None = None,
        num_batches: int | None = None,
        test_task_id: int | None = None,
        test_mask: Masks | None = None,
    ) -> Any:
        """(features [N, output_dim], masks, by layer what it hands on); a subclass says how.

        Arguments behind ``input`` are `get_mask`'s.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward, wanted one of its own")

    def combine_masks(self, masks: list[Masks], mode: str) -> Masks:
        """The masks' elementwise minimum ("intersection") or maximum ("union").

        Raises:
            ValueError: the mode is neither, or there is no mask.
        """
        if mode not in ("intersection", "union") or not masks:
            found = f"{mode!r} of {len(masks)} masks"
            raise ValueError(f"combine_masks: {found}, wanted 'intersection' or 'union' of some")
        combine = torch.amin if mode == "intersection" else torch.amax
        return {name: combine(torch.stack([m[name] for m in masks]), 0) for name in masks[0]}

    @spellings(unit_wise_measure="neuron_wise_measure", aggregation="aggregation_mode")
    def get_layer_measure_parameter_wise(
        self, neuron_wise_measure: Masks, layer_name: str, aggregation_mode: str
    ) -> tuple[Tensor, Tensor]:
        """A measure of units made one of the weights and biases of a layer.

        Args:
            neuron_wise_measure: layer -> [units].
            layer_name: one of ``weighted_layer_names``.
            aggregation_mode: of a weight's two ends: "min", "max" or "mean". The first layer's
                weights have the one end.

        Returns:
            Of the weight's shape, and [units].

        Raises:
            ValueError: the layer or the mode is unknown.
        """
        before = self.preceding_layer_name(layer_name)
        if layer_name is None:
            raise ValueError("get_layer_measure_parameter_wise: layer_name is None, wanted a name")
        weight = self.weighted_layer(layer_name).weight
        own = neuron_wise_measure[layer_name]
        tail = (1,) * (weight.dim() - 2)
        rows = own.view(-1, 1, *tail).expand(weight.shape)
        if aggregation_mode not in _AGGREGATIONS:
            wanted = ", ".join(_AGGREGATIONS)
            raise ValueError(
                f"get_layer_measure_parameter_wise: aggregation_mode is {aggregation_mode!r},"
                f" wanted one of {wanted}"
            )
        if before is None:
            return rows, own
        columns = per_input(layer_name, neuron_wise_measure[before], before, weight.shape[1])
        columns = columns.view(1, -1, *tail).expand(weight.shape)
        return _AGGREGATIONS[aggregation_mode](rows, columns), own
