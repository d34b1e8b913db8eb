"""What else is done around sharded networks: each returns whether it is as it should be."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from maskcl import TaskInference
from maskcl.importance import estimate
from tests.sharded_networks import CASES, TASKS, Run

Make = Callable[..., Run]


def _evaluated(make: Make, case: str) -> bool:
    """Another task's forward between backward and step changes nothing."""
    run, wanted = make(case, how="root", when="first"), make(case, how="root", when="first")
    run.learn(0), wanted.learn(0)
    run.learn(1, between=partial(run.outputs, 0)), wanted.learn(1)
    pairs = zip(run.whole_state().values(), wanted.whole_state().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _clipped(make: Make) -> bool:
    run = make("root")
    norms = []

    def clip() -> None:
        norms.append(clip_grad_norm_(run.net.task_parameters(1), 0.01))
        parts = [p.grad.full_tensor() for p in run.net.task_parameters(1) if p.grad is not None]
        assert torch.nn.utils.get_total_norm(parts) < 0.0101

    return run.kept(between=clip) and len(norms) > 1


def _scaled(make: Make, case: str) -> bool:
    run, wanted = make(case, how="root", when="first"), make(case, how="root", when="first")
    run.learn(0), wanted.learn(0)
    run.learn(1, scaler=torch.amp.GradScaler("cpu", init_scale=8.0)), wanted.learn(1)
    pairs = zip(run.whole_state().values(), wanted.whole_state().values(), strict=True)
    return all(torch.allclose(a, b) for a, b in pairs)


def _recomputed(make: Make, case: str) -> bool:
    run = make(case, when="first")
    return run.kept(call=partial(checkpoint, run.net, use_reentrant=False))


def compiled(make: Make) -> bool:
    """Block by block, which is done before they are sharded."""
    run = make("root", how="blocks", when="never")
    for layer in run.net.model:
        layer.compile(backend="eager")
    run.shard()
    return run.kept()


def _prefetched(make: Make, stays: bool) -> bool:
    run = make("root", how="blocks", options={"reshard_after_forward": not stays})
    blocks = [layer for layer in run.net.model if hasattr(layer, "set_modules_to_forward_prefetch")]
    blocks[0].set_modules_to_forward_prefetch(blocks[1:])
    return run.kept()


def _forgotten(make: Make, case: str) -> bool:
    run = make(case, when="first")
    known = run.kept()
    before = run.outputs(0)
    run.net.forget_task(1)
    run.learn(1)
    return known and torch.equal(before, run.outputs(0))


def _inferred(make: Make, case: str) -> bool:
    run = make(case, when="first")
    run.net.inference = TaskInference()
    run.learn(0), run.learn(1)
    run.net.eval()
    return len(run.net.infer(run.x[0]).label) == len(run.x[0])


def _loaded(make: Make, case: str) -> bool:
    """The whole state of an unsharded network, with a task in training, goes into a sharded one."""
    plain, run = make(case, when="never"), make(case, when="first")
    plain.count = 1
    for parameter in plain.net.parameters():
        torch.nn.init.normal_(parameter)
    plain.case.method.begin_task(plain.net, 0)
    run.net.load_state_dict(plain.net.state_dict())
    pairs = zip(plain.whole_state().values(), run.whole_state().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _loaded_fewer(make: Make, case: str) -> bool:
    """A state of fewer tasks, whole or of a sharded network, goes into a sharded one of more."""
    plain, small = (make(case, when=when, tasks=TASKS - 1) for when in ("never", "first"))
    for parameter in plain.net.parameters():
        torch.nn.init.normal_(parameter)
    wanted = plain.whole_state()
    small.net.load_state_dict(plain.net.state_dict())
    equal = []
    for state in (plain.net.state_dict(), small.net.state_dict()):
        run = make(case, how="root", when="first")
        run.net.load_state_dict(state)
        found = run.whole_state()
        equal += [torch.equal(found[name][: len(t)], t) for name, t in wanted.items() if t.dim()]
        run.learn(TASKS - 1)
    return len(equal) > 8 and all(equal)


def _measured(make: Make) -> bool:
    """Importances are sharded, and by hand go where the method's do."""
    run = make("mas")
    run.learn(0)
    batch = run.x[1], run.y[1]
    names = [f"model.{name}" for name in run.net.names()]
    with run.net.task(0):
        found = estimate(run.net, [batch], parameters=names, reduction="batch")
    own = {name.removeprefix("model."): omega for name, omega in found.items()}
    before = {name: omega.full_tensor().clone() for name, omega in run.net.importances.items()}
    run.net.begin_task(1)
    run.net.consolidate(1, own)
    after = run.net.importances
    return all(
        torch.allclose(after[n].full_tensor(), before[n] + own[n].full_tensor()) for n in own
    )


OFFLOAD = {"offload_policy": CPUOffloadPolicy(pin_memory=False)}
KINDS = "root", "mas", "piggyback"
WAYS: dict[str, Callable[[Make], bool]] = {
    "clip_grad_norm_": _clipped,
    "measured by hand": _measured,
    "gathered until backward": partial(_prefetched, stays=True),
    "gathered twice": partial(_prefetched, stays=False),
    "offloaded": lambda make: make("root", options=OFFLOAD).kept(),
    "offloaded masks": lambda make: make("piggyback", options=OFFLOAD).kept(),
    "forgotten": partial(_forgotten, case="root"),
    "forgotten masks": partial(_forgotten, case="piggyback"),
    **{f"evaluated {case}": partial(_evaluated, case=case) for case in KINDS},
    **{f"scaled {case}": partial(_scaled, case=case) for case in KINDS},
    **{f"recomputed {case}": partial(_recomputed, case=case) for case in KINDS[::2]},
    **{f"inferred {case}": partial(_inferred, case=case) for case in KINDS},
    **{f"loaded {case}": partial(_loaded, case=case) for case in KINDS},
    **{f"fewer tasks {case}": partial(_loaded_fewer, case=case) for case in KINDS},
}


def make(processes: int, rank: int, case: str, **changes: Any) -> Run:
    return Run(CASES[case]._replace(**changes), processes, rank)
