"""How long each kernel should take on an A100 and an H100, from its arguments: to be refuted.

``python -m benchmarks.model`` prints it for each op at a usual and at a large size, and for whole
training steps; ``--write`` puts both into docs/gpu-model.md, which says what each term is. The
bytes, operations and grids are those of passes.py, occupancy is the table's that the compiler made
(resources.py), rates are NVIDIA's (gpus.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks import launches, resources, training_steps
from benchmarks.gpus import COPY, GPU, GPUS, LATENCY, LAUNCH, PRODUCT, THREADS
from benchmarks.pages import replace_part
from benchmarks.passes import Pass
from benchmarks.passes_of_bits import OF

FAR = 1.1  # times the floor, from here on a term is named
BATCH = 64
Call = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Terms:
    """Seconds of one launch, each part by itself; ``time`` is what they come to.

    Attributes:
        launch: of a kernel that does nothing.
        copy: the bytes asked for, at a copy's rate.
        sectors: what comes along with them unasked.
        few: more than that, as too few loads are on their way: blocks, occupancy, narrow lanes.
        again: of ``copy``, what an earlier launch of the op had read already.
        cache: what is written and read again in L2.
        arithmetic: operations and products.
    """

    launch: float
    copy: float
    sectors: float
    few: float
    again: float
    cache: float
    arithmetic: float

    @property
    def time(self) -> float:
        memory = self.copy + self.sectors + self.few + self.cache
        return self.launch + max(memory, self.arithmetic)


def occupancy(kernel: str, gpu: GPU) -> float:
    """The least of the kernel's instances, as a share; a product's is cuBLAS's own affair."""
    rows = _by_arch(gpu.arch)
    found = [o for name, o in rows if kernel and name.startswith(kernel)]
    return min(found) / 100 if found else 1.0


_ROWS: dict[str, list[tuple[str, int]]] = {}


def _by_arch(arch: str) -> list[tuple[str, int]]:
    if arch not in _ROWS:
        table = resources.read("cuda")[1].values()
        _ROWS[arch] = [(row.kernel, row.occupancy) for row in table if row.arch == arch]
    return _ROWS[arch]


def terms(p: Pass, gpu: GPU) -> Terms:
    """What one launch takes."""
    copied = (p.read + p.written) / (gpu.bandwidth * COPY)
    sectors = p.read * (1 / p.used - 1) / (gpu.bandwidth * COPY)
    # Little's law: what arrives in a latency is what was on its way. Nothing waits for stores.
    room = gpu.multiprocessors * THREADS * occupancy(p.kernel, gpu)
    on_their_way = min(p.blocks * 256, room) * p.lane
    loads = p.read / p.used * LATENCY / on_their_way if p.kernel else 0.0
    few = max(0.0, loads - copied - sectors)
    again = p.again / (gpu.bandwidth * COPY)
    cache = p.cached / gpu.l2_bandwidth
    peak = (gpu.halves if p.halves else gpu.float32) * PRODUCT
    arithmetic = p.operations / gpu.float32 + p.product / peak
    return Terms(LAUNCH, copied, sectors, few, again, cache, arithmetic)


def predict(passes: Sequence[Pass], gpu: GPU) -> float:
    """Seconds of an op's launches, one after the other."""
    return sum(terms(p, gpu).time for p in passes)


def floor(passes: Sequence[Pass], gpu: GPU) -> float:
    """Seconds of one launch that moves and computes the same once."""
    least = sum(p.read - p.again + p.written for p in passes)
    copied = least / (gpu.bandwidth * COPY)
    work = sum(terms(p, gpu).arithmetic for p in passes)
    return LAUNCH + max(copied, work)


def why(passes: Sequence[Pass], gpu: GPU) -> str:
    """The terms that make an op slower than its floor, the largest first, in microseconds."""
    parts = [terms(p, gpu) for p in passes]
    sums = {n: sum(getattr(t, n) for t in parts) for n in ("sectors", "few", "again", "cache")}
    sums[f"{len(passes)} launches"] = LAUNCH * (len(passes) - 1)
    large = sorted(sums.items(), key=lambda item: -item[1])
    limit = (FAR - 1) / 2 * floor(passes, gpu)
    return ", ".join(f"{name} {1e6 * s:.1f}" for name, s in large if s > limit)


# --- what is predicted ---------------------------------------------------------------------------


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def calls() -> list[tuple[str, Call]]:
    """Each op at the sizes of layers, with a word for the size."""
    half, m, n = torch.bfloat16, empty(4096), 1 << 22
    x, w, images = empty(256, 4096), empty(4096, 4096), empty(64, 64, 56, 56)
    words, tall = empty(4096 * 128, dtype=torch.int32), empty(16384, 4096)
    convs, tasks = [empty(512, 512, 3, 3)] * 8, [empty(512, 1, dtype=torch.int64)] * 8
    select, act = (None, "binary", 5e-3, False, 1.0), ("relu", 0.0, 1)
    sums, sides = (*act, True, True, False), (tasks, tasks, [1] * 8, True)
    line, layer, image = "256 x 4096", "4096 x 4096", "64 x 64 x 56 x 56"
    both, eight = "256 x 4096 x 4096", "8 x 512 x 512 x 3 x 3"
    steps, pace, scalars = [empty()] * 8, [[1e-3] * 8] * 3, (None, None, None, None, 0.0)
    sgd, adam = (0.9, 0.0, False, False, False), (0.9, 0.999, 1e-8, True, False)
    gates = [empty(512)] * 8
    made: list[tuple[str, str, tuple[Any, ...]]] = [
        ("4 M units", "hat_gate", (empty(n), empty(), 0.0)),
        ("4 M units", "hat_gate_backward", (*[empty(n)] * 3, empty(), 400.0, 50.0, False)),
        ("4096 units", "hat_gates", (m, empty(), m, 1e-9, 0.75)),
        (
            "4096 units",
            "hat_gates_backward",
            (gates, empty(), m, empty(), m, [512] * 8, 0.75, 400.0, 50.0, False),
        ),
        (line, "masked_activation", (x, m, m, *act)),
        (image, "masked_activation", (images, empty(64), None, *act)),
        (line, "masked_activation_backward", (x, x, m, None, *sums)),
        (image, "masked_activation_backward", (images, images, empty(64), None, *sums)),
        ("16384 x 4096", "masked_activation_backward", (tall, tall, m, None, *sums)),
        (eight, "clamp_grads_", (convs, *sides, "hat", [], 0)),
        (eight, "restore_protected_", (convs, convs, *sides)),
        (eight, "sgd_update_", (convs, convs, convs, *sides, *pace, *sgd, *scalars)),
        (eight, "adam_update_", (*[convs] * 4, steps, *sides, *pace, *adam, *scalars)),
        (eight, "unprotected_norm", (convs, *sides, None)),
        (layer, "weight_mask", (w, *select)),
        (layer, "masked_weight", (w, w, *select)),
        (layer, "masked_weight_backward", (w, w, w, *select, False, True)),
        (layer, "kth_largest", (w, 1000, True)),
        (both, "piggyback_linear", (x, w, w, None, *select)),
        (both, "piggyback_linear_backward", (x, x, w, w, *select, True, False, True)),
        (layer, "pack_scores", (w, None, "binary", 5e-3, False)),
        (layer, "unpack_mask", (words, [4096, 4096], torch.float32)),
        (layer, "packed_weight", (w, words)),
        (eight, "mas_accumulate_", (convs, convs, 1.0, 1.0, False)),
        (eight, "mas_penalty_grads_", (*[convs] * 4, None, 1.0, True)),
        (both, "linear_importance_", (w, x, x, 1.0, False)),
    ]
    weight = empty(4096, 4096, dtype=half)
    for rows in (1, 16):
        size = f"{rows} x 4096 x 4096, bfloat16"
        made.append((size, "packed_linear", (empty(rows, 4096, dtype=half), weight, words, None)))
    return [(size, (name, args)) for size, name, args in made]


class Passes(TorchDispatchMode):
    """All launches inside, ours and torch's, as the model takes them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Pass] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        namespace, name = func._schema.name.split("::")
        if namespace == "maskcl":
            self.found += OF[name](*args)
        out = func(*args, **kwargs)
        if namespace != "maskcl" and not launches.is_view(func) and name not in launches.NO_LAUNCH:
            self.found.append(_of_torch(func, args, kwargs, out))
        return out


def _of_torch(func: Any, args: Any, kwargs: Any, out: Any) -> Pass:
    """One of torch's ops: what goes in is read, what comes out or is written to is written."""
    places = zip(func._schema.arguments, [*args, *kwargs.values()], strict=False)
    changed = [value for place, value in places if place.alias_info and place.alias_info.is_write]
    count = flop_registry.get(func.overloadpacket)
    work = count(*args, **kwargs, out_val=out) if count else 0
    return Pass("", _bytes((args, kwargs)), _bytes(changed or out), 1, product=float(work))


def _bytes(tree: Any) -> int:
    leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return sum(t.numel() * t.element_size() for t in leaves)


def step_passes(method: str, network: str) -> list[Pass]:
    """Of a warm step of BATCH samples; method "" is the network without masks."""
    setting = training_steps.Setting(network, batch=BATCH)
    build = training_steps.masked if method else (lambda _, s: training_steps.unmasked(s))
    step, (x, y) = build(method, setting), setting.data()
    for _ in range(2):
        step(x, y)
    with Passes() as mode:
        step(x, y)
    return mode.found


def steps_page() -> str:
    """A line a network and method: predicted, beside the network's own step."""
    lines = ["| network | method | launches | A100 us | x unmasked | H100 us | x unmasked |"]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for network in training_steps.NETWORKS:
        base = step_passes("", network)
        for method in ("", *training_steps.METHODS):
            passes = step_passes(method, network) if method else base
            cells = []
            for gpu in GPUS:
                time = predict(passes, gpu)
                cells += [f"{1e6 * time:.0f}", f"{time / predict(base, gpu):.2f}"]
            row = [network, method or "unmasked", str(len(passes)), *cells]
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def kernels_page() -> str:
    """A line an op: predicted by GPU, over its floor, and why."""
    lines = [
        "| op | size | A100 us | x floor | H100 us | x floor | what is over the floor on H100 |"
    ]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for size, (name, args) in calls():
        passes = OF[name](*args)
        cells = []
        for gpu in GPUS:
            time, least = predict(passes, gpu), floor(passes, gpu)
            cells += [f"{1e6 * time:.1f}", f"{time / least:.2f}"]
        lines.append(f"| {name} | {size} | {' | '.join(cells)} | {why(passes, GPUS[-1])} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print both tables; --write: put them into the page."""
    for name, make in (("kernels", kernels_page), ("steps", steps_page)):
        text = make()
        print(text, end="\n\n", flush=True)
        if "--write" in arguments:
            replace_part(name, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
