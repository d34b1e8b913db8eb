"""The network that many tasks share through unit masks (HAT, Serra et al. 2018)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.following.trace import sizes_of
from maskcl.nn.hat.example_inputs import Example
from maskcl.nn.hat.layer_runs import Gates, LayerRuns
from maskcl.nn.hat.place_masks import attach
from maskcl.nn.hat.protection import Protection, protect
from maskcl.nn.hat.reading_hooks import let_hooks_read_only
from maskcl.nn.hat.shared_parameters import check_owners, shared_parameters
from maskcl.nn.hat.topology_by_hand import Sources
from maskcl.nn.tasks.active import ActiveTask, active_of
from maskcl.nn.tasks.model_structure import ModelStructure
from maskcl.nn.tasks.network import TaskNetwork, own_parameters
from maskcl.nn.tasks.state import WORD
from maskcl.ops.gate import Gate, hat_gates

INITS = ("normal", "uniform", "dense")


@dataclass(frozen=True)
class TaskUnits:
    """What decides about one task's masks, as tensors: views that follow the network's.

    Attributes:
        embedding: [U], the task's.
        bits: int64 [U], the word of each unit's tasks that the task's bit is in.
        shift: int64 0-d, of that bit.
        finished: bool 0-d.
        free_share: [U], (1 - u) / sum (1 - u) of eq. 5; zeros where no unit is free.
    """

    embedding: nn.Parameter
    bits: Tensor
    shift: Tensor
    finished: Tensor
    free_share: Tensor

    def hard_mask(self) -> Tensor:
        """Units that the task uses, bool [U]: as recorded, else embedding > 0."""
        recorded = ((self.bits >> self.shift) & 1) != 0
        return torch.where(self.finished, recorded, self.embedding.detach() > 0)


class HATNetwork(TaskNetwork):
    """A model whose layers' units carry one mask a task, m = sigmoid(s e) (HAT, eq. 1).

    Every forward happens inside ``with net.task(k):`` and computes the masks of all layers at once.
    Layers whose output is the network's (no other weight layer follows) have no mask.

    Args:
        model: HATLinear, HATConvNd, TaskNorms and TaskHeads among ordinary modules without
            trainable parameters; taken over, not copied. ``to_hat`` makes one of an ordinary model.
        num_tasks: how many tasks there will be, T.
        example_inputs: a tensor, or a tuple of the forward's arguments, to trace the model with.
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

    tasks: Tensor

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
        _check_init(init)
        check_owners(model)
        let_hooks_read_only(model)
        self.example = Example(example_inputs)
        self.topology = attach(model, self._state, num_tasks, example_inputs, sources)
        self._structure = ModelStructure(model)
        self.units = dict(self.topology.units)
        self._sizes = [s.stop - s.start for s in self.units.values()]
        self._runs = LayerRuns(model, len(self._sizes))
        self._build_units(init)
        self.configure_gate()

    def _build_units(self, init: str) -> None:
        device = self._device()
        count = sum(self._sizes)
        self.embeddings = nn.ParameterList(
            nn.Parameter(torch.empty(count, device=device)) for _ in range(self.num_tasks)
        )
        words = -(-self.num_tasks // WORD)
        self.register_buffer("tasks", torch.zeros(count, words, dtype=torch.int64, device=device))
        for k in range(self.num_tasks):
            self.reset_embedding(k, init)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output for the active task.

        Raises:
            RuntimeError: no task is active.
            ValueError: there are more or fewer arguments than example inputs; or the model branches
                on sizes, and these are others than the examples' (the first dimension apart).
        """
        active = self._prepared()
        self._check_arguments(*args, *kwargs.values())
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

    def begin_task(self, task: int, *, check: bool = True) -> None:
        """Let what the task trains require gradients, and nothing else; all gradients are dropped.

        Args:
            task: not finished.
            check: whether finished tasks have to be what they were.

        Raises:
            RuntimeError: the task is finished, or finished tasks are not what they were.
            ConversionError: the model is not the one that was followed; nothing has changed then.
        """
        self._check_open("begin_task", task)
        self._structure.check("HATNetwork.begin_task", self.model)
        let_hooks_read_only(self.model)
        if check:
            self.check_kept("HATNetwork.begin_task")
        super().begin_task(task)

    def _make_masks(self, active: ActiveTask) -> None:
        """Masks of all layers at once, for the modules below."""
        units = self._units_in(active)
        if active.scale is None:
            mask = units.hard_mask().to(units.embedding.dtype)
            active.parts, active.term = mask.split(self._sizes), None
        else:
            gates = self._gates_of(units, active.scale)
            active.parts, active.term = hat_gates(*gates)
            active.term_weight = gates[4].weight

    def _units_in(self, active: ActiveTask) -> TaskUnits:
        units: TaskUnits = active.record
        if not torch.compiler.is_compiling():
            embedding = self._embedding(active.task)
            if embedding is not units.embedding:  # functional_call has put another in its place
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

    def _units_of(self, task: int) -> TaskUnits:
        # Every `with net.task(k)` asks: what was found last is found by a few comparisons.
        tasks, finished = self._buffers["tasks"], self._buffers["finished"]
        embedding = self._embedding(task)
        assert tasks is not None and finished is not None
        name = f"last units {task}"
        seen = tasks._version, finished._version
        last = self._state.cache.get(name)
        if (
            last is not None
            and last[0] is tasks
            and last[1] is finished
            and last[2] is embedding
            and last[3] == seen
        ):
            units: TaskUnits = last[4]
            return units

        def make() -> TaskUnits:
            bits = tasks[:, task // WORD]
            shift = torch.tensor(task % WORD, device=bits.device)
            free = (tasks == 0).all(1).to(embedding.dtype)
            share = free / free.sum().clamp_min(1)
            return TaskUnits(embedding, bits, shift, finished[task], share)

        units = self._state.kept(f"units {task}", make, (tasks, finished, embedding))
        self._state.cache[name] = tasks, finished, embedding, seen, units
        return units

    def _embedding(self, task: int) -> nn.Parameter:
        # By the way that ``self.embeddings[task]`` goes, which takes several times as long.
        found = self._modules["embeddings"]._parameters[str(task)]  # type: ignore[union-attr]
        assert found is not None
        return found

    def _check_arguments(self, *found: Any) -> None:
        """Raise ValueError where the model may take another path than the one that was followed."""
        count, sizes = self.topology.arguments, self.topology.sizes
        if count is not None and len(found) != count:
            raise ValueError(
                f"HATNetwork: {len(found)} arguments, and the model was followed with {count}:"
                " convert it with example_inputs for all that it will be given"
            )
        if sizes is not None and sizes_of(found) != sizes:
            raise ValueError(
                f"HATNetwork: inputs have sizes {sizes_of(found)} behind the first dimension, and"
                f" the model branches on sizes, so that its units were followed for {sizes} alone:"
                " convert it with example_inputs of the size that it will see"
            )

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
        if active.scale is not None and not active.learns and torch.is_grad_enabled():
            # A checkpointed forward ran without gradients, and its recomputation is yet to come.
            _, term = hat_gates(*self._gates_of(units, active.scale))
        if term is not None and weight == active.term_weight:
            return term
        mask = torch.cat(active.parts) if active.parts else units.free_share  # of no units
        return weight * torch.dot(mask, units.free_share)

    def hard_mask(self, task: int) -> Tensor:
        """Units that a task uses, bool [U]: as recorded by finish_task, else embedding > 0."""
        self._check_task("hard_mask", task)
        return self._units_of(task).hard_mask()

    def used(self) -> Tensor:
        """Units that any finished task uses, bool [U]."""
        return self._used().clone()

    def _used(self) -> Tensor:
        return self._state.kept("used", lambda: (self.tasks != 0).any(1), (self.tasks,))

    def capacity(self) -> dict[str, float]:
        """Fraction of each layer's units that finished tasks use."""
        used = self._used().cpu()
        return {name: float(used[span].double().mean()) for name, span in self.units.items()}

    @torch.no_grad()
    def finish_task(self, task: int, *, check: bool = True) -> None:
        """Record the units with embedding > 0 as the task's, and freeze all that is its own.

        Args:
            task: not finished.
            check: whether the tasks before have to be what they were.

        Raises:
            RuntimeError: it is finished already, or finished tasks are not what they were.
            ConversionError: the model is not the one that was followed; nothing has changed then.
        """
        self._check_open("finish_task", task)
        self._structure.check("HATNetwork.finish_task", self.model)
        if check:
            self.check_kept("HATNetwork.finish_task")
        bits = (self.embeddings[task] > 0).to(torch.int64) << (task % WORD)
        self.tasks[:, task // WORD] |= bits
        self.finished[task] = True
        for parameter in (self.embeddings[task], *own_parameters(self.model, task)):
            parameter.requires_grad_(False)
        self._follow_finished()

    @torch.no_grad()
    def forget_task(self, task: int) -> None:
        """Take a task's record back: what only it used is free, its outputs are no longer kept."""
        self._check_task("forget_task", task)
        bit = torch.ones((), dtype=torch.int64, device=self.tasks.device) << (task % WORD)
        self.tasks[:, task // WORD] &= ~bit
        self.finished[task] = False
        self._follow_finished()

    @torch.no_grad()
    def reset_embedding(
        self, task: int, init: str = "normal", generator: torch.Generator | None = None
    ) -> None:
        """Draw a task's embedding anew; ``init`` as for the class, ``generator`` on the CPU.

        Raises:
            RuntimeError: the task is finished.
        """
        self._check_open("reset_embedding", task)
        _check_init(init)
        count = sum(self._sizes)
        match init:
            case "normal":
                start = torch.randn(count, generator=generator)
            case "uniform":
                start = 2 * torch.rand(count, generator=generator)
            case _:
                start = torch.ones(count)
        self.embeddings[task].copy_(start)

    def task_parameters(self, task: int) -> list[nn.Parameter]:
        """What a task trains: the shared weights, its embedding, its norms' affine and its head."""
        self._check_task("task_parameters", task)
        return [
            *shared_parameters(self.model),
            self.embeddings[task],
            *own_parameters(self.model, task),
        ]

    def kept_bits(self) -> dict[str, Tensor]:
        """Fingerprints of all that the finished tasks' outputs depend on, by name; {} for none.

        Elements whose two ends one task uses, the tasks' norms, heads and bits, what is frozen.
        """
        if not bool(self.finished.any()):
            return {}
        protection = self.protection()
        return self._state_fingerprints([*protection.names, "embeddings."]) | (
            protection.fingerprints()
        )

    def protection(self) -> Protection:
        """What the finished tasks need of the shared parameters, from the bits as they are now."""
        parameters = shared_parameters(self.model)

        def make() -> Protection:
            return protect(self.model, self.topology, self.tasks, self.finished)

        return self._state.kept("protection", make, (self.tasks, self.finished, *parameters))


def _check_init(init: str) -> None:
    if init not in INITS:
        raise ValueError(f"HATNetwork: init is {init!r}, wanted one of {', '.join(INITS)}")
