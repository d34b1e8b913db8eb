"""A training step of each method beside the same network's unmasked step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.bench.eager_steps import EagerHAT, EagerMAS, EagerPiggyback, Unmasked, flushing
from maskcl.bench.networks import Network, network
from maskcl.bench.timing import Spread, Timed, in_turn
from maskcl.methods import HAT, MAS, Method, Piggyback
from maskcl.nn import to_hat, to_importance, to_piggyback

__all__ = ["METHODS", "OPTIMIZERS", "Setting", "Step", "StepTimes", "steps_of", "time_steps"]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p, **kind: torch.optim.SGD(p, lr=0.01, momentum=0.9, **kind),
    "adam": lambda p, **kind: torch.optim.Adam(p, lr=1e-3, **kind),
    "adamw": lambda p, **kind: torch.optim.AdamW(p, lr=1e-3, **kind),
}
EAGER = {"HAT": EagerHAT, "Piggyback": EagerPiggyback, "MAS": EagerMAS}
METHODS = tuple(EAGER)
OURS, CAREFUL = "maskcl", "careful eager"
UNMASKED = {"unmasked, fused": {"fused": True}, "unmasked, foreach": {"foreach": True}}
_SPARSITY = 0.75
_TURN = 0.01  # seconds, a dozen small steps: a loop's step comes behind others of its own
Step = Callable[[], None]


@dataclass(frozen=True)
class Setting:
    """What is stepped.

    Attributes:
        network: one of `maskcl.bench.networks.NETWORKS`.
        batch: samples a step.
        optimizer: one of ``OPTIMIZERS``; SGD has momentum.
        threads: of torch.
        compiled: whether forward and loss are compiled, the unmasked network's too.
        schedule: whether the learning rate changes at every step, as in a warm-up.
    """

    network: str
    batch: int
    optimizer: str = "adamw"
    threads: int = 1
    compiled: bool = False
    schedule: bool = False

    def optimizer_of(self, parameters: Any, **kind: bool) -> torch.optim.Optimizer:
        """The optimizer, with ``foreach`` or ``fused``; a schedule is a hook behind its step."""
        optimizer = OPTIMIZERS[self.optimizer](parameters, **kind)
        if self.schedule:
            optimizer.register_step_post_hook(_lower_rate)
        return optimizer


@dataclass(frozen=True)
class StepTimes:
    """What the steps of one setting take.

    Attributes:
        setting: what was stepped.
        times: by method ("" for the unmasked network) and whose step.
        absent: rows without a figure, and why.
    """

    setting: Setting
    times: dict[tuple[str, str], Spread]
    absent: dict[tuple[str, str], str] = field(default_factory=dict)

    def base(self) -> float:
        """Microseconds of the unmasked step, torch's fastest of fused and foreach."""
        return min(spread.median for (method, _), spread in self.times.items() if not method)

    def ratio(self, method: str, whose: str) -> float:
        """Of a step to the unmasked one."""
        return self.times[method, whose].median / self.base()

    def losses(self) -> list[str]:
        """A sentence for each step of ours that another's is faster than."""
        found = []
        for (method, whose), spread in self.times.items():
            ours = self.times.get((method, OURS))
            if whose != OURS and ours is not None and spread.median < ours.median:
                ratio = ours.median / spread.median
                found.append(f"{method}: maskcl takes {ratio:.2f} of {whose}")
        return found


def time_steps(
    setting: Setting,
    methods: tuple[str, ...] = METHODS,
    seconds: float = 4.0,
    others: dict[tuple[str, str], Step] | None = None,
    fewest: int = 5,
) -> StepTimes:
    """Time the second task's steps, a hundredth of a second of each in turn, in one process.

    Args:
        setting: what to step.
        methods: of ``METHODS``.
        seconds: that all rounds should take together.
        others: steps of others on the same network, by method and whose.
        fewest: rounds, however long they take.

    Raises:
        ValueError: an unknown network.
        ImportError: ``gcn`` without torch_geometric.
    """
    torch.set_num_threads(setting.threads)
    steps = {**steps_of(setting, methods), **(others or {})}
    named = {
        f"{method}/{whose}": Timed(step, flushing if whose == CAREFUL else nullcontext)
        for (method, whose), step in steps.items()
    }
    found = in_turn(named, seconds, fewest, _TURN)
    return StepTimes(setting, dict(zip(steps, found.values(), strict=True)))


def steps_of(setting: Setting, methods: tuple[str, ...]) -> dict[tuple[str, str], Step]:
    """All steps of a setting, each with a network of its own."""
    torch.manual_seed(0)
    if setting.compiled:
        torch.compiler.reset()
    found = network(setting.network, setting.batch)
    batch = found.inputs, found.targets
    steps: dict[tuple[str, str], Step] = {}
    for whose, kind in UNMASKED.items():
        plain = Unmasked(
            found.make(), functools.partial(setting.optimizer_of, **kind), setting.compiled
        )
        steps["", whose] = functools.partial(plain.step, *batch)
    fused = functools.partial(setting.optimizer_of, fused=True)
    for method in methods:
        steps[method, OURS] = _ours(method, found, setting)
        eager = EAGER[method](found.make(), fused, setting.compiled)
        steps[method, CAREFUL] = functools.partial(eager.step, *batch)
    return steps


def _ours(name: str, found: Network, setting: Setting) -> Step:
    """A step of the loop in docs/quick-start.md, in the second task, the optimizer protected."""
    net, method = _begun(name, found)
    state = method.begin_task(net, 1)
    optimizer = setting.optimizer_of(method.parameter_groups(net, 1), fused=True)
    method.protect(optimizer, net, state)

    def loss(inputs: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        return F.cross_entropy(net(*inputs), targets) + method.loss_term(net, state)

    run = torch.compile(loss) if setting.compiled else loss

    def step() -> None:
        method.before_step(net, state, 0.5)
        optimizer.zero_grad()
        with net.task(1, state.scale):
            run(found.inputs, found.targets).backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)

    return step


def _lower_rate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] *= 0.9999


def _begun(name: str, found: Network) -> tuple[Any, Method]:
    """A network whose first task is finished: it has 30 % of the units of HAT's."""
    model: nn.Module = found.make()
    heads = [found.classes] * 2
    if name == "HAT":
        hat_net = to_hat(model, 2, found.inputs, classes=heads).train()
        with torch.no_grad():
            share = torch.rand_like(hat_net.embeddings[0]) < 0.3
            hat_net.embeddings[0].copy_(torch.where(share, 6.0, -6.0))
        hat_net.finish_task(0)
        return hat_net, HAT(sparsity=_SPARSITY)
    if name == "Piggyback":
        bits = to_piggyback(model, 2, classes=heads).train()
        piggyback = Piggyback()
        piggyback.begin_task(bits, 0)
        bits.finish_task(0)
        return bits, piggyback
    held = to_importance(model, 2, classes=heads).train()
    held.consolidate(0, {name: torch.ones_like(t) for name, t in held.importances.items()})
    held.finish_task(0)
    return held, MAS()
