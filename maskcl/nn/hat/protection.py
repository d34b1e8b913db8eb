"""What finished tasks need of the shared parameters, in the form that the kernels take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter, is_, itemgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from maskcl import backends
from maskcl.nn.hat.embedding_table import HATEmbedding
from maskcl.nn.hat.topology import Topology, unit_span, weight_layers
from maskcl.nn.tasks.bits import protected_fingerprint
from maskcl.nn.tasks.state import WORD
from maskcl.ops import protected_fraction
from maskcl.ops.protected_pairs import protected_pairs
from maskcl.shard_sums import totals
from maskcl.shards import cut_ends, is_sharded, local

_LAYER, _KIND, _PARAMETERS = itemgetter(0), itemgetter(1), attrgetter("_parameters")


@dataclass(frozen=True)
class Protection:
    """Every shared parameter with the tasks that use each of its two ends; a copy of the bits.

    A unit's tasks are W words of int64: bit k % 64 of word k // 64 says that finished task k uses
    it; the last word is the last finished task's. Weight (o, i) is protected where one task uses
    both ends (exact), or where each end has a task (min).

    Attributes:
        names: of the parameters, as in ``HATNetwork.named_parameters()``.
        parameters: [O, I, *] weights and [O] biases.
        out_tasks: for each, int64 [O, W], or [1, W] where every task uses all rows.
        in_tasks: for each, int64 [groups * I, W], or [1, W] of -1 where every task uses all columns
        groups: of each parameter's convolution.
        empty: no task is finished, so nothing is protected.
        owners: for each parameter the layer that it belongs to, and its name there; [] where only
            the parameters themselves are known.
        tied: further places of parameters that two layers share, with the parameter.
    """

    names: list[str]
    parameters: list[nn.Parameter]
    out_tasks: list[Tensor]
    in_tasks: list[Tensor]
    groups: list[int]
    empty: bool
    owners: list[tuple[nn.Module, str]] = field(default_factory=list, kw_only=True)
    tied: list[tuple[nn.Module, str, nn.Parameter]] = field(default_factory=list, kw_only=True)

    @cached_property
    def sides(self) -> tuple[list[Tensor], list[Tensor], list[int]]:
        """out_tasks, in_tasks and groups of the rows of each parameter that this process has."""
        ends = zip(self.parameters, self.out_tasks, self.in_tasks, self.groups, strict=True)
        cut = [cut_ends(*entry) for entry in ends]
        return [c[0] for c in cut], [c[1] for c in cut], [c[2] for c in cut]

    @torch.no_grad()
    def clamp_(
        self,
        rule: str = "hat",
        exact: bool = True,
        values: float | Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        """Scale the gradients of protected weights, in place, in one call for the whole model.

        Args:
            rule: ``hat`` (to 0), ``const``, ``adahat`` or ``random``: ``maskcl.ops.clamp_grads_``.
            exact: exact protection, else ``min``.
            values: of ``const`` and ``adahat``, one number or one a parameter.
            seed: of ``random``.

        Raises:
            ValueError: values has another length than parameters.
        """
        if self.empty:
            return
        count = len(self.parameters)
        if values is None or isinstance(values, (int, float)):
            numbers = [float(values or 0.0)] * count
        else:
            numbers = [float(v) for v in values]
        if len(numbers) != count:
            raise ValueError(
                f"Protection.clamp_: values has {len(numbers)} entries, wanted {count}"
            )
        found = [p.grad for p in self.parameters]
        lists: list[list[Any]] = [*self.sides, numbers]
        if any(grad is None for grad in found):
            rows = [i for i, grad in enumerate(found) if grad is not None]
            lists = [[entries[i] for i in rows] for entries in lists]
            found = [found[i] for i in rows]
        if found:
            grads = [*map(local, cast(list[Tensor], found))]
            run = backends.select("clamp_grads_", grads[0])
            run(grads, *lists[:3], exact, rule, lists[3], seed)

    def is_current(self) -> bool:
        """Whether the layers still have these parameters."""
        # In every step of training: no line of Python runs for a parameter.
        held = map(_PARAMETERS, map(_LAYER, self.owners))
        same = all(map(is_, map(dict.get, held, map(_KIND, self.owners)), self.parameters))
        tied = self.tied
        return same and (
            not tied or all(layer._parameters.get(kind) is p for layer, kind, p in tied)
        )

    def check_parameters(self, caller: str) -> None:
        """Raise unless the layers still have these parameters.

        Raises:
            RuntimeError: the message names one that was replaced.
        """
        if self.is_current():
            return
        places = [
            (layer, kind, parameter, name)
            for (layer, kind), parameter, name in zip(
                self.owners, self.parameters, self.names, strict=False
            )
        ]
        places += [(layer, kind, p, f"a layer's tied {kind}") for layer, kind, p in self.tied]
        for layer, kind, parameter, name in places:
            if layer._parameters.get(kind) is not parameter:
                raise RuntimeError(
                    f"{caller}: {name} is no longer the parameter that was there when the task"
                    " began (load_state_dict(assign=True), fully_shard, a parametrization, pruning"
                    " or a conversion replaced it), so nothing would protect it: do that before"
                    " begin_task, or begin the task again and build its optimizer after it"
                )

    def fingerprints(self, exact: bool = True) -> dict[str, Tensor]:
        """A hash of each parameter's protected bits, by name; {} where nothing is protected.

        Of sharded parameters each process hashes its rows, and the hashes are added up: the same as
        before they were sharded. Every process has to call it then.
        """
        if self.empty or not self.parameters:
            return {}
        sides = zip(self.out_tasks, self.in_tasks, self.groups, strict=True)
        ends = zip(self.parameters, sides, strict=True)
        found = [protected_fingerprint(parameter, *side, exact) for parameter, side in ends]
        if any(map(is_sharded, self.parameters)):
            found = list(totals(found, self.parameters))
        return dict(zip(self.names, found, strict=True))

    def snapshot(self) -> list[Tensor]:
        """Copies of the parameters, for ``restore_``; of sharded ones, of this process's rows."""
        return [local(p).detach().clone() for p in self.parameters]

    @torch.no_grad()
    def restore_(self, saved: Sequence[Tensor], exact: bool = True) -> None:
        """Put the protected elements of all parameters back from ``saved``, in place.

        Raises:
            ValueError: saved has another length or shape than the parameters.
        """
        parameters = [*map(local, self.parameters)]
        found, wanted = [tuple(s.shape) for s in saved], [tuple(p.shape) for p in parameters]
        if found != wanted:
            raise ValueError(f"Protection.restore_: saved has shapes {found}, wanted {wanted}")
        if self.empty or not parameters:
            return
        run = backends.select("restore_protected_", parameters[0])
        run(parameters, list(saved), *self.sides, exact)

    def fraction(self, exact: bool = True) -> dict[str, float]:
        """Share of each parameter's elements that is protected; waits for the device."""
        if self.empty:
            return dict.fromkeys(self.names, 0.0)
        sides = zip(self.names, self.out_tasks, self.in_tasks, self.groups, strict=True)
        return {name: _fraction(out, into, groups, exact) for name, out, into, groups in sides}


def protect(model: nn.Module, topology: Topology, tasks: Tensor, finished: Tensor) -> Protection:
    """The protection of a network's layers by its task bits.

    Args:
        model: below the network's ``model``.
        topology: of ``model``.
        tasks: int64 [U, W].
        finished: bool [T].
    """
    # Words behind the last finished task's say nothing, and every step reads what there is.
    latest = finished.nonzero().flatten().tolist()[-1:]
    count = latest[0] // WORD + 1 if latest else 1
    rows = tasks[:, :count].clone()
    everyone = rows.new_full((1, count), -1)
    done = _finished_words(finished, count)
    # The slots NONE and EVERY are the last two. What has no mask is every finished task's: bits of
    # -1 on both sides would protect it before there is one.
    table = torch.cat([rows, torch.zeros_like(done), done])
    result = Protection([], [], [], [], [], empty=not latest)
    places: dict[int, int] = {}
    for name, layer in weight_layers(model).items():
        out = rows[topology.units[name]] if name in topology.units else done
        feed = topology.feeds[name]
        into = everyone if feed is None else _tasks_of(feed, table)
        for kind, parameter in layer.named_parameters():
            holder, _, leaf = kind.rpartition(".")
            owner = layer.get_submodule(holder)
            ends = _ends(layer, parameter, out, into, done)
            place = places.setdefault(id(parameter), len(places))
            if place < len(result.names):
                # A table that is an output layer too: all rows are every finished task's in both.
                result.tied.append((owner, leaf, parameter))
                result.in_tasks[place] = result.in_tasks[place] | ends[1]
                continue
            result.owners.append((owner, leaf))
            result.names.append(f"model.{name}.{kind}" if name else f"model.{kind}")
            result.parameters.append(parameter)
            result.out_tasks.append(ends[0])
            result.in_tasks.append(ends[1])
            result.groups.append(ends[2])
    return result


def _ends(
    layer: nn.Module, parameter: nn.Parameter, out: Tensor, into: Tensor, done: Tensor
) -> tuple[Tensor, Tensor, int]:
    """Tasks of the rows and the columns of one parameter of a layer, and its groups.

    Args:
        layer: that has it.
        parameter: a weight or a bias.
        out: tasks of the layer's units.
        into: of its inputs.
        done: all finished tasks.
    """
    if isinstance(layer, HATEmbedding):  # its units are columns
        return done, out, 1
    # Attention heads that are averaged have the same channels.
    heads = len(parameter) // len(out) if len(out) > 1 else 1
    out = out.repeat(heads, 1) if heads > 1 else out
    if parameter.dim() > 1:
        return out, into, getattr(layer, "groups", 1)
    return out, torch.full_like(done, -1), 1


def protected_count(out: Tensor, into: Tensor, groups: int, numel: int) -> int:
    """How many of a parameter's elements are protected (exact); waits for the device.

    Args:
        out: tasks of its rows, as in ``Protection.out_tasks``.
        into: of its columns, as in ``Protection.in_tasks``.
        groups: of its convolution.
        numel: its elements.
    """
    return round(_fraction(out, into, groups, exact=True) * numel) if numel else 0


def _finished_words(finished: Tensor, words: int) -> Tensor:
    """Bits of all finished tasks, int64 [1, W]."""
    bits = torch.zeros(words * WORD, dtype=torch.int64, device=finished.device)
    some = finished[: words * WORD]
    bits[: some.numel()] = some.to(torch.int64)
    shifts = torch.arange(WORD, device=finished.device)
    return (bits.view(words, WORD) << shifts).sum(1)[None]


def _tasks_of(feed: Tensor, table: Tensor) -> Tensor:
    """Tasks that use any of the units feeding each input, int64 [C, W]."""
    if feed.shape[0] == 1 and (span := unit_span(feed[0])) is not None:
        return table[span[0] : span[1]]
    found = table[feed.to(table.device)]
    while found.shape[0] > 1:
        half = found.shape[0] // 2
        both = found[:half] | found[half : 2 * half]
        found = torch.cat([both, found[2 * half :]])
    return found[0]


def _fraction(out: Tensor, into: Tensor, groups: int, exact: bool) -> float:
    if groups == 1:
        return protected_fraction(out, into, protection="exact" if exact else "min")
    # Rows of a group meet the columns of that group only.
    out = out.expand(max(out.shape[0], groups), -1).reshape(groups, -1, out.shape[-1])
    into = into.expand(max(into.shape[0], groups), -1).reshape(groups, -1, into.shape[-1])
    pairs = out.shape[0] * out.shape[1] * into.shape[1]
    return protected_pairs(out, into, exact) / pairs if pairs else float("nan")
