"""Wider layers for a network that is full: old tasks keep their bits, new units are free.

A task finished before the growth goes on computing with tensors of the shapes that it had, cut out
of the wider ones: the same calls in the same order, so the same bits, whatever library sums.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.hat.embedding import CLOSED, new_embedding
from maskcl.nn.hat.example_inputs import Example
from maskcl.nn.hat.growth_plan import Narrowing, all_places, check_same, checked_units, parts_of
from maskcl.nn.hat.layer_runs import LayerRuns
from maskcl.nn.hat.place_masks import attach
from maskcl.nn.hat.task_forwards import LinearLayers
from maskcl.nn.hat.topology import HAT_LAYERS, Topology, weight_layers
from maskcl.nn.hat.unlearning import ForgettingTasks
from maskcl.nn.hat.wider_modules import (
    widen_head,
    widen_layer,
    widen_norm,
)
from maskcl.nn.tasks.errors import ConversionError
from maskcl.nn.tasks.heads import TaskHeads
from maskcl.nn.tasks.model_structure import ModelStructure
from maskcl.nn.tasks.narrow import Narrow
from maskcl.nn.tasks.norms import TaskNorm
from maskcl.nn.tasks.state import Masked
from maskcl.randomness import derive_seed


class GrowingUnits(ForgettingTasks):
    """Base of HATNetwork: layers that gain units.

    Attributes:
        growth: int64 [G, L], by growth the units that each layer gained; only after one.
        grown_past: int64 [N, 2], pairs (growth, task): the task was finished when it happened.
    """

    growth: Tensor
    grown_past: Tensor
    example: Example
    _runs: LayerRuns
    _linear_layers: LinearLayers
    _sources: Any

    @torch.no_grad()
    def grow(
        self, units: int | Mapping[str, int], *, seed: int = 0, example_inputs: Any = None
    ) -> None:
        """Widen layers: finished tasks keep their bits, the new units are free for the others.

        A finished task goes on with the widths it had, also when it is forgotten and trained again.
        Unfinished ones get wider norms and heads. What is new is drawn by ``reset_parameters``.
        Between tasks: a task in training begins anew, with a new optimizer.

        Args:
            units: that every masked layer gains, or layer name -> units for some. Layers that are
                added to each other have to gain the same; those that are added to what every task
                uses, as a transformer's positions, keep their width.
            seed: of what is drawn.
            example_inputs: as for the class; None for zeros of the shapes that it was made with.

        Raises:
            ValueError: units is not as above, or example_inputs is missing.
            RuntimeError: all tasks are finished, or finished ones are not what they were.
            ConversionError: a layer cannot grow, or the model does not run with the wider ones.
                Nothing has changed in any of these cases.
        """
        added = checked_units(units, self.units, parts_of(self.model, self.topology))
        self._structure.check("HATNetwork.grow", self.model)
        self._refuse_sharded("HATNetwork.grow")
        refuse_tied(self.model)
        self.check_kept("HATNetwork.grow")
        done = torch.nonzero(self.finished).flatten().tolist()
        inputs = example_inputs
        if inputs is None:
            inputs = self.example.make(self._device(), self.embeddings[0].dtype)
        # A rehearsal: what cannot be done is found before anything is written.
        copy.deepcopy(self)._grow(added, done, seed, inputs)
        self._grow(added, done, seed, inputs)

    def _grow(self, added: dict[str, int], done: list[int], seed: int, inputs: Any) -> None:
        open_tasks = [k for k in range(self.num_tasks) if k not in done and not self._is_narrow(k)]
        if not open_tasks:
            raise RuntimeError(
                "HATNetwork.grow: there is no task left that could use new units; add tasks first"
            )
        count = self.growth.shape[0] if "growth" in self._buffers else 0
        old, places = self.topology, all_places(self.model, self.topology, added)
        seed = derive_seed("grow network", seed, count)
        _widen_all(self.model, places, open_tasks, seed)
        self._state.release()
        for module in self.model.modules():
            if isinstance(module, Masked):
                module.set_mask(None)
        topology = attach(
            self.model, self._state, self.num_tasks, inputs, self._sources, open_tasks[0]
        )
        check_same(old, topology, places)
        self._follow_growth(topology, places, open_tasks, seed)
        self._narrow_tasks(places, open_tasks)
        self._record_growth(count, added, [k for k in range(self.num_tasks) if k not in open_tasks])
        self._structure = ModelStructure(self.model)
        self._runs = LayerRuns(self.model, len(self._sizes))
        self._linear_layers = LinearLayers()
        self._state.cache.clear()
        self._follow_finished()

    def _is_narrow(self, task: int) -> bool:
        return task in self._state.narrow

    def _follow_growth(
        self, topology: Topology, places: dict[str, Narrowing], open_tasks: list[int], seed: int
    ) -> None:
        """Bits and embeddings of the wider layers."""
        kept = [topology.units[n].start + u for n in self.units for u in places[n].out.kept]
        index = torch.tensor(kept, device=self.tasks.device)
        self.topology, self.units = topology, dict(topology.units)
        self._sizes = [span.stop - span.start for span in self.units.values()]
        total = sum(self._sizes)
        tasks = self.tasks.new_zeros(total, self.tasks.shape[1])
        tasks[index] = self.tasks
        self.tasks = tasks
        for task, embedding in enumerate(list(self.embeddings)):
            new = torch.full((total,), CLOSED)
            if task in open_tasks:
                generator = torch.Generator().manual_seed(derive_seed("units", seed, task))
                new = new_embedding(total, self.init, generator)
            wide = new.to(embedding)
            wide[index] = embedding.detach()
            self.embeddings[task] = nn.Parameter(wide, embedding.requires_grad)

    def _narrow_tasks(self, places: dict[str, Narrowing], open_tasks: list[int]) -> None:
        """What tasks of before see of each module, in the numbers of the wider ones."""
        modules = dict(self.model.named_modules())
        for task in range(self.num_tasks):
            if task in open_tasks:
                continue
            seen = self._state.narrow.setdefault(task, {})
            for name, place in places.items():
                module: Any = modules[name]
                before = seen.get(module.place, Narrow())
                seen[module.place] = place.after(before)

    def _record_growth(self, count: int, added: dict[str, int], past: list[int]) -> None:
        device = self.tasks.device
        row = torch.tensor([[added[name] for name in self.units]], device=device)
        pairs = torch.tensor([[count, task] for task in past], device=device).reshape(-1, 2)
        if count:
            row, pairs = torch.cat([self.growth, row]), torch.cat([self.grown_past, pairs])
        self.register_buffer("growth", row)
        self.register_buffer("grown_past", pairs)

    def grow_like(self, state: Mapping[str, Tensor]) -> None:
        """Grow as the network had that a ``state_dict`` is of, so that it can be loaded.

        ``load_state_dict`` does.

        Raises:
            RuntimeError: this network has grown otherwise, has other layers or fewer tasks.
        """
        self.check_count(state)
        wanted = state.get("growth")
        rows = [] if wanted is None else wanted.tolist()
        mine = self.growth.tolist() if "growth" in self._buffers else []
        if rows[: len(mine)] != mine:
            raise RuntimeError(
                f"HATNetwork: the state is of a network that grew by {rows}, this one grew by"
                f" {mine}: load it into one that was made as that was"
            )
        if rows and len(rows[0]) != len(self.units):
            raise RuntimeError(
                f"HATNetwork: the state is of a network of {len(rows[0])} masked layers, this one"
                f" has {len(self.units)}"
            )
        for place in range(len(mine), len(rows)):
            pairs = state["grown_past"].tolist()
            past = [task for growth, task in pairs if growth == place]
            added = dict(zip(self.units, rows[place], strict=True))
            inputs = self.example.make(self._device(), self.embeddings[0].dtype)
            self._grow(added, past, 0, inputs)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        start = len(prefix)
        own = {n[start:]: tensor for n, tensor in state_dict.items() if n.startswith(prefix)}
        # First, so that tasks that the state lacks have the widths that they will have.
        self.grow_like(own)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def refuse_tied(model: nn.Module) -> None:
    """Raise ConversionError where two layers share a weight: they would be widened apart."""
    seen: dict[int, str] = {}
    for name, layer in weight_layers(model).items():
        for parameter in layer.parameters():
            if (other := seen.setdefault(id(parameter), name)) != name:
                raise ConversionError(
                    f"HATNetwork.grow: {other!r} and {name!r} share a weight, and cannot grow; give"
                    " each its own before the conversion"
                )


def _widen_all(
    model: nn.Module, places: dict[str, Narrowing], open_tasks: list[int], seed: int
) -> None:
    for name, place in places.items():
        module: Any = model.get_submodule(name)
        if isinstance(module, HAT_LAYERS):
            assert place.into is not None
            if place.out.grows or place.into.grows:
                widen_layer(name, module, place.out, place.into, seed)
        elif isinstance(module, TaskNorm) and place.out.grows:
            for task in open_tasks:
                widen_norm(f"{name}.norms.{task}", module.norms[task], place.out, seed)
            # What tasks that are added later start from.
            widen_norm(f"{name}.start", module._start[0], place.out, seed)
        elif isinstance(module, TaskHeads) and place.into is not None and place.into.grows:
            module.in_features = place.into.size
            for task in open_tasks:
                head: Any = module.heads[task]
                widen_head(f"{name}.heads.{task}", head, place.into, seed)
