"""One network that all tasks train, with a record of how much each parameter matters (MAS, EWC)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn.importance.named_buffers import TensorTree, owner_of
from maskcl.nn.tasks.frozen_modules import freeze_norm, has_statistics
from maskcl.nn.tasks.heads import GrowingHead, TaskHeads
from maskcl.nn.tasks.later_tasks import LaterTasks
from maskcl.nn.tasks.network import check_members, numbers_where
from maskcl.nn.tasks.own_parts import (
    all_parameters,
    holders,
    own_parameters,
    shared_modules,
)
from maskcl.shard_sums import totals
from maskcl.sharded_modules import class_name
from maskcl.shards import cut, is_sharded, kind_of, local, shard

ANCHORS = ("last", "mean")


class ImportanceNetwork(LaterTasks):
    """A model with an importance and an anchor for every parameter that tasks share.

    Importances say how much earlier tasks would suffer if a parameter left its anchor. They are
    buffers, and so are anchors: ``importance.NAME`` and ``anchor.NAME`` in the ``state_dict``, by
    the parameters' names below ``model``. Every forward happens inside ``with net.task(k):``.

    A task's own parameters are its head in a TaskHeads and its norms in a TaskNorm; all others are
    shared, apart from those that do not require gradients here. Running statistics of other norms
    are shared too, and no penalty holds them. DistributedDataParallel sends all buffers in every
    step unless its ``broadcast_buffers`` is False; importances are equal everywhere without that.

    Under ``fully_shard`` importances and anchors are DTensors from ``begin_task`` or the first
    ``state_dict()`` on, sharded as their parameters are: each process has those of its rows.

    Args:
        model: ordinary modules, TaskHeads or a GrowingHead, TaskNorms; taken over, not copied.
            ``to_importance`` makes one of an ordinary model.
        num_tasks: how many tasks there will be, T.
        head: name of a module that is the output layer, and as such may be left out of penalties;
            None for the GrowingHead, or, in a model without heads of maskcl's, the last nn.Linear.
        freeze_statistics: from the first finished task on, norms that tasks share stay in
            evaluation mode, so that their statistics are what that task made them.

    Attributes:
        finished: bool [T].
        drifts: float32 [T, P], for each task and shared parameter the root mean square of its
            distance from its anchor at the task's end; -1 where there was no anchor yet.

    Raises:
        ValueError: num_tasks or head is not as above, or the model has nothing that tasks share.
    """

    drifts: Tensor

    def __init__(
        self,
        model: nn.Module,
        num_tasks: int,
        *,
        head: str | None = None,
        freeze_statistics: bool = True,
    ) -> None:
        super().__init__(model, num_tasks)
        self.freeze_statistics = freeze_statistics
        check_members("ImportanceNetwork", model, num_tasks)
        lists = [held for _, held in holders(model)]
        own = {id(p) for p in all_parameters(*lists)}
        shared = {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in own}
        if not shared:
            raise ValueError(
                "ImportanceNetwork: the model has no parameter that tasks share and that trains"
            )
        self._names = list(shared)
        self._output = _output_names(model, shared, head)
        self.anchor = TensorTree({name: p.detach().clone() for name, p in shared.items()})
        zeros = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in shared.items()}
        self.importance = TensorTree(zeros, wide=True)
        shape = (num_tasks, len(shared))
        drifts = torch.full(shape, -1.0, device=self._device(), dtype=torch.float32)
        self.register_buffer("drifts", drifts)
        self._state.bind(model)
        self.register_load_state_dict_post_hook(_freeze_after_loading)

    def finish_task(self, task: int) -> None:
        """Mark the task as trained, and freeze its own head and norms.

        Raises:
            RuntimeError: it is finished already.
        """
        self._check_open("finish_task", task)
        self.finished[task] = True
        for parameter in own_parameters(self.model, task):
            parameter.requires_grad_(False)
            parameter.grad = None
        self._follow_finished()
        self._freeze_norms()

    def _freeze_norms(self) -> None:
        """Hold the statistics of shared norms once there is a finished task."""
        if not (self.freeze_statistics and numbers_where(self.finished)):
            return
        for norm in shared_norms(self.model):
            freeze_norm(norm)

    def forget_task(self, task: int, reset: bool = False, *, seed: int = 0) -> None:
        """Refused for a finished task, and with ``reset``; else there is nothing to take back.

        Every task moves the weights that all share, from where the tasks before had left them, and
        importances are sums: no part of either is one task's alone, so none can be unlearned.

        Raises:
            RuntimeError: the task is finished, or ``reset`` is asked for.
        """
        self._check_task("forget_task", task)
        if bool(self.finished[task]):
            raise RuntimeError(
                f"ImportanceNetwork.forget_task: task {task} is finished, and importances are sums"
                " that no task can be taken out of again, nor out of the weights that all tasks"
                " moved; net.add_tasks makes room for more"
            )
        if reset:
            raise RuntimeError(
                "ImportanceNetwork.forget_task: all tasks move the same weights, so none can be"
                " unlearned; train a fresh network on the other tasks"
            )
        self._give_up(task, reset)

    def _answer(self, task: int, classes: Tensor, args: tuple[Any, ...]) -> Tensor:
        """A head of all classes answers as the latest task sees it, for the task's classes."""
        if not any(isinstance(head, GrowingHead) for head in self._heads()):
            return super()._answer(task, classes, args)
        latest = int(torch.nonzero(self.finished).max())
        outputs = super()._answer(latest, classes, args)
        allowed = torch.zeros(outputs.shape[1], dtype=torch.bool, device=outputs.device)
        allowed[classes] = True
        return outputs.masked_fill(~allowed, -torch.inf)

    def task_parameters(self, task: int) -> list[nn.Parameter]:
        """What a task trains: all shared parameters, its head and its norms."""
        self._check_task("task_parameters", task)
        self._reshard()
        own = own_parameters(self.model, task)
        return [*(self._parameter(name) for name in self._names), *own]

    def names(self, *, heads: bool = True) -> list[str]:
        """Names below ``model`` of the shared parameters, in its order.

        Args:
            heads: with the output layer's, where tasks share it.
        """
        return [name for name in self._names if heads or name not in self._output]

    @property
    def importances(self) -> dict[str, Tensor]:
        """By parameter, float32 (float64) of its shape; the buffers themselves."""
        return {name: self.importance.of(name) for name in self._names}

    @property
    def anchors(self) -> dict[str, Tensor]:
        """By parameter, where the penalty holds it; the buffers themselves."""
        return {name: self.anchor.of(name) for name in self._names}

    def anchored(
        self, names: Sequence[str]
    ) -> tuple[list[nn.Parameter], list[Tensor], list[Tensor]]:
        """Parameters, anchors and importances of these names as the ops take them, not copied.

        Parameters that do not require gradients now are left out: they do not move.
        """
        parameters, anchors, importances = [], [], []
        for name in names:
            parameter = self._parameter(name)
            if parameter.requires_grad:
                parameters.append(parameter)
                anchors.append(self.anchor.of(name))
                importances.append(self.importance.of(name))
        return parameters, anchors, importances

    def places(self, names: Sequence[str]) -> list[tuple[dict[str, Any], str, Any]]:
        """Where the network holds what `anchored` gives: (dictionary, name in it, what is there).

        The modules on the way to a parameter are among them, as one may be replaced as a whole.
        """
        found: dict[tuple[int, str], tuple[dict[str, Any], str, Any]] = {}
        for name in names:
            self._parameter(name)  # says so where there is none
            *path, leaf = "model", *name.split(".")
            module: Any = self
            for part in path:
                found[id(module), part] = module._modules, part, module._modules[part]
                module = module._modules[part]
            for tree in (self.anchor, self.importance):
                held = tree.holder(name)
                found[id(held), leaf] = held, leaf, tree.of(name)
            held = module._parameters
            found[id(held), leaf] = held, leaf, held[leaf]
        return [*found.values()]

    @torch.no_grad()
    def consolidate(
        self, task: int, new: Mapping[str, Tensor], *, decay: float = 1.0, anchors: str = "last"
    ) -> None:
        """Add a task's importances to the earlier ones', and move the anchors.

        Args:
            task: not finished; its drift is recorded, see ``drifts``.
            new: by parameter; float, none negative. Those that it lacks count as zeros. Copied.
                Of a sharded parameter all of it, or a DTensor sharded likewise.
            decay: the earlier ones' factor: 1 sums over tasks, below 1 is online EWC's.
            anchors: "last": the parameters as they are now. "mean": the mean of what they were
                after each task, weighted by the tasks' importances: with it one anchor pulls as
                all tasks' own anchors together would, as sum_t F_t (W - W_t)^2 and
                (sum_t F_t) (W - mean)^2 differ by a constant.

        Raises:
            RuntimeError: the task is finished.
            ValueError, TypeError: an argument is not as above; nothing has changed then.
        """
        self._check_open("consolidate", task)
        caller = "ImportanceNetwork.consolidate"
        if not 0 <= decay <= 1:
            raise ValueError(f"{caller}: decay is {decay!r}, wanted a number from 0 to 1")
        if anchors not in ANCHORS:
            raise ValueError(f"{caller}: anchors is {anchors!r}, wanted one of {ANCHORS}")
        _check_new(caller, new, {name: self._parameter(name) for name in self._names})
        if bool(self.finished.any()):
            self.drifts[task] = self._drift()
        for name in self._names:
            parameter = self._parameter(name)
            anchor, omega = local(self.anchor.of(name)), local(self.importance.of(name))
            weight = local(parameter).detach()
            omega.mul_(decay)
            if name in new:
                own = cut(new[name], parameter).to(omega)
                omega.add_(own)
            if anchors == "last":
                anchor.copy_(weight)
            elif name in new:
                # Where nothing matters the anchor is free: it goes with the parameter.
                share = torch.where(omega > 0, own / omega, 1.0)
                anchor.copy_(torch.lerp(anchor.to(omega.dtype), weight.to(omega.dtype), share))

    def mean_importance(self, names: Sequence[str]) -> dict[str, float]:
        """Mean of each parameter's importances; waits for the device once."""
        if not names:
            return {}
        found = [self.importance.of(name) for name in names]
        sums = totals([local(omega).double().sum() for omega in found], found)
        means = sums / sums.new_tensor([omega.numel() for omega in found])
        return dict(zip(names, means.tolist(), strict=True))

    def drift(self, task: int, names: Sequence[str]) -> dict[str, float]:
        """How far parameters had gone from their anchors at a task's end, root mean squares.

        Empty where there were no anchors: for the first task, and before a task is consolidated.
        """
        self._check_task("drift", task)
        row = dict(zip(self._names, self.drifts[task].tolist(), strict=True))
        return {name: row[name] for name in names if row[name] >= 0}

    def lasting_state(self) -> dict[str, dict[str, slice | None]]:
        """As of any network; importances and anchors change where a task ends."""
        names = [f"{kind}.{name}" for kind in ("importance", "anchor") for name in self._names]
        return super().lasting_state() | {"importance": dict.fromkeys(names)}

    def _records(self) -> dict[str, tuple[int, int, float]]:
        return super()._records() | {"drifts": (0, self.num_tasks, -1)}

    def _class_rows(self) -> dict[str, Tensor]:
        rows = super()._class_rows()
        for full, parameter in list(rows.items()):
            name = full.removeprefix("model.")
            if name in self._names:
                rows[f"anchor.{name}"] = parameter
                rows[f"importance.{name}"] = torch.zeros_like(parameter, dtype=_wide(parameter))
        return rows

    def _follow_classes(self) -> None:
        for name, rows in self._class_rows().items():
            holder, _, leaf = name.rpartition(".")
            buffers = self.get_submodule(holder)._buffers
            if (found := buffers.get(leaf)) is not None:
                buffers[leaf] = torch.cat([found, rows[len(found) :].to(found)])

    def _parameter(self, name: str) -> nn.Parameter:
        holder = owner_of(self.model, name)
        parameter = None if holder is None else holder._parameters.get(name.rpartition(".")[2])
        if parameter is None:
            raise RuntimeError(
                f"{class_name(self)}: the model has no parameter {name!r} any more: a deletion, a"
                " parametrization or pruning took it away; undo that, or convert the model after it"
            )
        return parameter

    def _drift(self) -> Tensor:
        found = [self._parameter(name) for name in self._names]
        anchors = [local(self.anchor.of(name)) for name in self._names]
        pairs = zip(found, anchors, strict=True)
        moved = [local(p.detach()).double() - anchor.double() for p, anchor in pairs]
        squares = totals([m.square().sum() for m in moved], found)
        return (squares / squares.new_tensor([p.numel() for p in found])).sqrt().to(self.drifts)

    def _reshard(self) -> None:
        super()._reshard()
        if not self.is_sharded:
            return
        for name in self._names:
            parameter = self._parameter(name)
            for tree in (self.anchor, self.importance):
                if is_sharded(parameter) and not is_sharded(whole := tree.of(name)):
                    with torch.inference_mode(False):
                        tree.put(name, shard(whole, parameter))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._reshard()  # never the whole of what only rows are kept of
        return super()._apply(fn, recurse)


def shared_norms(model: nn.Module) -> set[nn.Module]:
    """Norms with running statistics that are not one task's."""
    return {module for _, module in shared_modules(model) if has_statistics(module)}


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _output_names(
    model: nn.Module, shared: Mapping[str, nn.Parameter], head: str | None
) -> frozenset[str]:
    """Names of the shared parameters that are an output layer's."""
    modules = dict(model.named_modules())
    if head is not None and head not in modules:
        raise ValueError(f"ImportanceNetwork: head is {head!r}, wanted the name of a module")
    built = [m for m in modules.values() if isinstance(m, (TaskHeads, GrowingHead))]
    if head is not None:
        outputs = [modules[head]]
    elif built:
        outputs = built
    else:
        outputs = [m for m in modules.values() if type(m) is nn.Linear][-1:]
    inside = {id(p) for module in outputs for p in module.parameters()}
    return frozenset(name for name, p in shared.items() if id(p) in inside)


def _check_new(caller: str, new: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    for name, tensor in new.items():
        if name not in like:
            raise ValueError(f"{caller}: new has {name!r}, wanted names of shared parameters")
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            found = getattr(tensor, "dtype", type(tensor).__name__)
            raise TypeError(f"{caller}: new[{name!r}] is {found}, wanted a floating tensor")
        if is_sharded(tensor) and kind_of(tensor) != kind_of(like[name]):
            raise ValueError(
                f"{caller}: new[{name!r}] is sharded otherwise than the parameter, wanted all of it"
                " (full_tensor()) or as the parameter is"
            )
        if tensor.shape != like[name].shape:
            raise ValueError(
                f"{caller}: new[{name!r}] has shape {list(tensor.shape)}, wanted"
                f" {list(like[name].shape)}"
            )
    if not new:
        return
    rows = [cut(tensor, like[name]) for name, tensor in new.items()]
    bad = [(~(t.isfinite() & (t >= 0))).any().to(torch.int64) for t in rows]
    found = totals(bad, [like[name] for name in new], largest=True).tolist()
    for name, is_bad in zip(new, found, strict=True):
        if is_bad:
            raise ValueError(
                f"{caller}: new[{name!r}] has values that are negative or not finite, wanted"
                " importances"
            )


def _freeze_after_loading(net: ImportanceNetwork, incompatible_keys: Any) -> None:
    net._freeze_norms()
