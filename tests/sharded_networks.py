"""Networks that learn a few tasks under ``fully_shard``, and the same without it."""

from __future__ import annotations

from collections import Counter
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from maskcl.methods import EWC, HAT, MAS, Piggyback
from maskcl.methods.base import TaskData
from maskcl.models import mlp
from maskcl.nn import to_hat, to_importance, to_piggyback
from maskcl.shards import is_sharded, local, whole

TASKS, STEPS = 3, 2
HALF = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


class Case(NamedTuple):
    """One network, learned task by task.

    Attributes:
        method: of maskcl.
        how: what is sharded: "root" alone, "blocks" and the root, "units": all but the embeddings.
        when: "first"; "between" the first two tasks; "inside" the second, before its optimizer.
        make: of the parameters' groups, an optimizer.
        model: "mlp", whose 33 and 13 rows two processes cannot halve, or "conv", with groups.
        policy: of mixed precision.
        options: more of ``fully_shard``.
        tasks: how many the network has.
    """

    method: Any
    how: str = "blocks"
    when: str = "first"
    make: Any = partial(torch.optim.AdamW, lr=0.02)
    model: str = "mlp"
    policy: Any = None
    options: Any = MappingProxyType({})
    tasks: int = TASKS

    @property
    def is_exact(self) -> bool:
        """Whether finished tasks keep their bits."""
        return isinstance(self.method, (HAT, Piggyback))


_HAT = HAT(sparsity=0.05)
_NADAM = partial(torch.optim.NAdam, lr=0.02, weight_decay=0.1)
_MOMENTUM = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01)
CASES = {
    "root": Case(_HAT, "root"),
    "units": Case(_HAT, "units", make=_MOMENTUM),
    "between": Case(_HAT, when="between"),
    "inside": Case(_HAT, when="inside"),
    "clip": Case(HAT(sparsity=0.05, clip=0.3), make=_MOMENTUM),
    "guard_clip": Case(HAT(sparsity=0.05, clip=0.3), "units", make=_NADAM),
    "conv": Case(_HAT, "root", model="conv"),
    "conv_guard": Case(_HAT, make=_NADAM, model="conv"),
    "half": Case(_HAT, policy=HALF),
    "mas": Case(MAS(strength=3.0)),
    "ewc": Case(EWC(strength=30.0), "root", "inside", make=_MOMENTUM),
    "batch": Case(MAS(strength=3.0, reduction="batch")),
    "fisher": Case(EWC(strength=30.0, reduction="batch"), "root"),
    "piggyback": Case(Piggyback()),
    "topk": Case(Piggyback(levels="topk", density=0.6, spread="uniform"), "root"),
    "masks": Case(Piggyback(lr=9.0), "root", "between", make=_MOMENTUM),
    "half_masks": Case(Piggyback(), policy=HALF),
}


def model_of(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    if kind != "conv":
        width = 8 if kind == "even" else 7
        return mlp((width,), classes=2, hidden=(16, 16) if kind == "even" else (33, 13)), (width,)
    layers = nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 15, 3, groups=5), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(15, 2)), (
        3,
        7,
        7,
    )


class _Messages(TorchDispatchMode):
    """Counts messages, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func._schema.name.partition("::")
        if space in ("c10d", "_c10d_functional") and name != "wait_tensor":
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Run:
    """A case, in this many processes, of which this is one; None: nothing is sharded."""

    def __init__(self, case: Case, processes: int | None, rank: int = 0) -> None:
        torch.manual_seed(0)
        self.case, self.count = case, processes or 1
        model, shape = model_of(case.model)
        classes = [2] * case.tasks
        if isinstance(case.method, HAT):
            net: Any = to_hat(model, case.tasks, torch.zeros(2, *shape), classes=classes)
        elif isinstance(case.method, Piggyback):
            net = to_piggyback(model, case.tasks, classes=classes, levels=case.method.levels)
        else:
            net = to_importance(model, case.tasks, classes=classes)
        self.net: Any = net if case.policy else net.double()
        dtype = torch.float32 if case.policy else torch.float64
        x = torch.randn(TASKS, 16, *shape, dtype=dtype)
        y = torch.randint(2, (TASKS, 16))
        self.all = x
        self.x, self.y = x[:, rank :: self.count], y[:, rank :: self.count]
        self.when = None if processes is None else case.when
        if self.when == "first":
            self.shard()

    def shard(self) -> None:
        """What is sharded, over processes in a line, or two by two."""
        mesh = torch.distributed.init_device_mesh("cpu", (self.count,))
        options: dict[str, Any] = {"mesh": mesh, **self.case.options}
        if self.case.policy:
            options["mp_policy"] = self.case.policy
        if self.case.how == "blocks":
            for layer in self.net.model:
                if any(True for _ in layer.parameters()):
                    fully_shard(layer, **options)
        if self.case.how == "units":
            options["ignored_params"] = set(self.net.embeddings.parameters())
        fully_shard(self.net, **options)

    def learn(
        self,
        task: int,
        protected: bool = True,
        call: Any = None,
        between: Any = None,
        scaler: Any = None,
    ) -> None:
        """Learn a task.

        Args:
            task: index.
            protected: with what the method does to gradients and steps.
            call: the forward, in the network's place.
            between: called after every backward.
            scaler: of the loss.
        """
        net, method, x, y = self.net, self.case.method, self.x[task], self.y[task]
        state = method.begin_task(net, task)
        if self.when == "inside" and task == 1:
            self.shard()
        optimizer = self.case.make(method.parameter_groups(net, task))
        guard = method.protect(optimizer, net, state) if protected else None
        for step in range(STEPS):
            method.before_step(net, state, step / (STEPS - 1))
            optimizer.zero_grad()
            with net.task(task, state.scale):
                y_hat = (call or net)(x)
                loss = nn.functional.cross_entropy(y_hat, y) + method.loss_term(net, state)
                (scaler.scale(loss) if scaler else loss).backward()
            if between is not None:
                between()
            self.average(optimizer)
            if protected:
                method.after_backward(net, state, scaler=scaler)
            scaler.step(optimizer) if scaler else optimizer.step()
            if scaler:
                scaler.update()
            method.after_step(net, state)
        if guard is not None:
            guard.remove()
        if protected:
            method.end_task(net, state, TaskData(lambda: iter([(x, y)])))
            method.measure(net, task)

    def average(self, optimizer: torch.optim.Optimizer) -> None:
        """Of what is not sharded, as DistributedDataParallel would."""
        if self.count > 1:
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if p.grad is not None and not is_sharded(p):
                        torch.distributed.all_reduce(p.grad)
                        p.grad /= self.count

    def outputs(self, task: int) -> Tensor:
        """The same samples' everywhere."""
        self.net.eval()
        with torch.no_grad(), self.net.task(task):
            found = self.net(self.all[task])
        self.net.train()
        return found.clone()

    def counted(self, task: int) -> dict[str, dict[str, int]]:
        """Messages while a task begins, in a step of it, and while it ends."""
        net, method, x, y = self.net, self.case.method, self.x[task], self.y[task]
        found = {}
        with _Messages() as found["begin"]:
            state = method.begin_task(net, task)
        optimizer = self.case.make(method.parameter_groups(net, task))
        method.protect(optimizer, net, state)
        with _Messages() as found["step"]:
            method.before_step(net, state, 0.5)
            with net.task(task, state.scale):
                loss = nn.functional.cross_entropy(net(x), y) + method.loss_term(net, state)
                loss.backward()
            method.after_backward(net, state)
            optimizer.step()
            method.after_step(net, state)
        with _Messages() as found["end"]:
            method.end_task(net, state, TaskData(lambda: iter([(x, y)])))
        return {part: dict(mode.found) for part, mode in found.items()}

    def kept(self, **options: Any) -> bool:
        """Whether the first task's outputs are what they were after a second."""
        self.learn(0)
        before = self.outputs(0)
        self.learn(1, **options)
        self.net.check_kept()
        return torch.equal(before, self.outputs(0))

    def whole_state(self) -> dict[str, Tensor]:
        return {n: whole(t) for n, t in self.net.state_dict().items() if isinstance(t, Tensor)}

    def result(self) -> dict[str, Any]:
        seen: dict[int, list[Tensor]] = {0: [], 1: []}
        for task in range(TASKS):
            self.learn(task)
            if self.when == "between" and task == 0:
                self.shard()
            for k in range(min(task + 1, 2)):
                seen[k].append(self.outputs(k))
        self.net.check_kept()
        return {"outputs": seen, "state": self.whole_state(), "parts": self.parts()}

    def parts(self) -> dict[str, float]:
        """Of what grows with the weights, the share that this process has."""
        names = ("anchor.", "importance.", ".words", ".weight")
        state = self.net.state_dict().items()
        found = {n: t for n, t in state if any(name in n for name in names) and t.dim() > 1}
        return {n: local(t).numel() / t.numel() for n, t in found.items()}
