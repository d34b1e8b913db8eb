"""What a masked training step launches beyond the unmasked network's: kernels of ours, torch's ops.

``python -m benchmarks.launches`` prints the table, ``--write`` puts it into ``launches.csv`` and
docs/gpu-model.md; tests/cuda/emulated/test_launches.py compares. Counted with no GPU: the step runs
where the emulated GPU's kernels have the CPU's place (tests/cuda/emulator), under a dispatch mode
that also sees what our kernels' hosts ask of torch. Triton's launches are counted as its launchers
make them, with recorders in the kernels' places.

A row is a kernel of ours ("kernel"), an op of torch's that launches ("op", where one of a list may
be several launches), or one that copies from host to device ("copy"). Views and allocations are
none. What torch does on a GPU is what counts: ``open_linear`` and ``open_conv``, of a CPU alone,
are the product and the convolution that F.linear and F.conv2d are there.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import training_steps
from benchmarks.passes_of_bits import OF
from benchmarks.training_steps import METHODS, NETWORKS, Setting, Step
from maskcl import backends
from maskcl.schemas import STEM_OF
from maskcl.triton import _compat

TABLE = Path(__file__).with_name("launches.csv")
FIELDS = ("network", "method", "backend", "kind", "name", "unmasked", "masked")
BACKENDS = ("cuda", "triton")
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
# The same work under another name, or cut otherwise, in an ordinary network and in ours.
PRODUCTS = {
    "addmm": "product",
    "mm": "product",
    "bmm": "product",
    "linear": "product",
    "matmul": "product",
    "open_linear": "product",
    "convolution": "convolution",
    "convolution_backward": "convolution backward",
}
# Allocations; and what a launcher asks of a number of the host's (a threshold in the
# scores' dtype): that no step reads a number from the device, tests/test_capture.py sees to.
NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
NO_LAUNCH |= {"item", "_local_scalar_dense", "detach_"}
NO_LAUNCH |= {"_record_function_enter_new", "_record_function_exit"}  # torch's optimizers' names
Row = tuple[str, str, str, str, str, int, int]


def is_view(func: Any) -> bool:
    """Whether an op returns its argument's memory and writes nothing: no launch."""
    returns = [r.alias_info for r in func._schema.returns]
    views = bool(returns) and all(a is not None and not a.is_write for a in returns)
    return views or func._schema.name.split("::")[1] in {"_unsafe_view", "_reshape_alias", "lift"}


class Count(TorchDispatchMode):
    """Counts (kind, name) of all that is launched inside, on one of our backends."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend
        self.found: Counter[tuple[str, str]] = Counter()
        self.ours: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        namespace, name = func._schema.name.split("::")
        if namespace != "maskcl":
            self._torch(func, name)
            return func(*args, **kwargs)
        name = name.removeprefix("triton_")
        if name.startswith("open_conv"):
            kind = "convolution backward" if name.endswith("backward") else "convolution"
            self.found["op", kind] += 1
            return func(*args, **kwargs)
        if name.startswith("open_"):
            wanted = sum(1 for a in args if a is True) if name.endswith("backward") else 1
            self.found["op", "product"] += wanted
            return func(*args, **kwargs)
        if self.backend == "triton":
            with self:  # the launcher's own ops are seen too
                launcher = import_module(f"maskcl.triton.{STEM_OF[name]}")
                return getattr(launcher, name)(*args, **kwargs)
        with self, _kernels() as kernels:
            result = func.redispatch(CPU, *args, **kwargs)
        self.found.update(kernels)
        if name.startswith(("piggyback_linear", "masked_linears", "gated_linears")):
            self._products(name, args, kernels)
        return result

    def _products(self, name: str, args: Any, kernels: Counter[tuple[str, str]]) -> None:
        """Products that no mode sees; and copies that it does: a CPU's product copies the bias
        into its output before, cuBLAS's has it in the product where that output is whole.
        """
        made = [p for p in OF[name](*args) if not p.kernel]
        piggyback = name.startswith("piggyback_linear")
        self.found["op", "product"] += sum(kernels.values()) if piggyback else len(made)
        if name in ("masked_linears", "gated_linears"):
            self.found["op", "copy_"] -= sum(1 for bias in args[2] if bias.numel())
        if name == "piggyback_linear" and args[3] is not None and len(made) == 1:
            self.found["op", "copy_"] -= 1

    def _torch(self, func: Any, name: str) -> None:
        if not is_view(func) and name not in NO_LAUNCH:
            self.found["op", PRODUCTS.get(name, name)] += 1


@contextmanager
def _kernels() -> Iterator[Counter[tuple[str, str]]]:
    """What the emulated GPU launches inside; complete at the end."""
    from tests.cuda.emulator import device

    found: Counter[tuple[str, str]] = Counter()
    before = device.launches()
    yield found
    for instance, count in device.launches().items():
        if count > before[instance]:
            name = instance.split("<")[0].split("(")[0].rsplit("::", 1)[-1]
            found["kernel", name] += count - before[instance]


class Recorder:
    """Stands for a Triton kernel: counts its launches and launches nothing."""

    def __init__(self, name: str, found: Counter[tuple[str, str]]) -> None:
        self.name, self.found = name, found

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*_: Any, **__: Any) -> None:
            self.found["kernel", self.name] += 1

        return launch


@contextmanager
def recorded(found: Counter[tuple[str, str]]) -> Iterator[None]:
    """Inside, Triton's launchers take CPU tensors and launch recorders; copies are counted."""
    for stem in set(STEM_OF.values()):
        import_module(f"maskcl.triton.{stem}")
    modules = [m for n, m in sys.modules.items() if n.startswith("maskcl.triton.")]
    kept = [(m, n, v) for m in modules for n, v in vars(m).items() if n.endswith("_kernel")]
    kept += [(m, "on_device", m.on_device) for m in modules if hasattr(m, "on_device")]
    kept += [(_compat, "INTERPRETED", _compat.INTERPRETED)]

    def copied(entries: Any, device: torch.device) -> Tensor:
        found["copy", "table of a list"] += 1
        return torch.empty(1, dtype=torch.int64)

    for module, name, _ in kept:
        setattr(module, name, copied if name == "on_device" else Recorder(name.strip("_"), found))
    _compat.INTERPRETED = True
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


def counts(step: Step, setting: Setting, names: Iterable[str]) -> list[Counter[tuple[str, str]]]:
    """What a step launches on each of these backends, once what is made once is there."""
    x, y = setting.data()
    for _ in range(2):
        step(x, y)
    made = []
    for name in names:
        mode = Count(name)
        with recorded(mode.found) if name == "triton" else backends.use_backend("cuda"), mode:
            step(x, y)
        made.append(mode.found)
    return made


def rows() -> list[Row]:
    """The table, in a process whose GPU is emulated."""
    torch.set_num_threads(1)
    made: list[Row] = []
    for network in NETWORKS:
        setting = Setting(network)
        (base,) = counts(training_steps.unmasked(setting), setting, ["cuda"])
        for method in METHODS:
            found = counts(training_steps.masked(method, setting), setting, BACKENDS)
            for backend, ours in zip(BACKENDS, found, strict=True):
                keys = sorted(key for key in ours.keys() | base.keys() if ours[key] != base[key])
                made += [(network, method, backend, *key, base[key], ours[key]) for key in keys]
    return made


def torch_version() -> str:
    """Major and minor: other torch, other ops of its own."""
    return ".".join(torch.__version__.split(".")[:2])


def read() -> tuple[str, list[Row]]:
    """The version of torch that the checked-in table is of, and the table."""
    with TABLE.open() as file:
        (_, version), _, *lines = csv.reader(file)
    return version, [(*line[:5], int(line[5]), int(line[6])) for line in lines]  # type: ignore[misc]


def summary(table: list[Row]) -> dict[tuple[str, str, str], tuple[int, int, int]]:
    """(network, method, backend) -> kernels of ours, torch's ops and copies beyond the unmasked."""
    made: dict[tuple[str, str, str], list[int]] = {}
    for network, method, backend, kind, _, before, after in table:
        sums = made.setdefault((network, method, backend), [0, 0, 0])
        sums[("kernel", "op", "copy").index(kind)] += after - before
    return {key: (a, b, c) for key, (a, b, c) in made.items()}


def page(table: list[Row]) -> str:
    """The summary as the docs have it."""
    lines = ["| network | method | backend | our kernels | torch's ops | copies | sum | which |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: | --- |")
    for key, (kernels, ops, copies) in summary(table).items():
        more = [(r[4], r[6] - r[5]) for r in table if r[:3] == key]
        which = ", ".join(f"{n} {d:+d}" for n, d in sorted(more, key=lambda m: -m[1]))
        sums = f"{kernels} | {ops:+d} | {copies} | {kernels + ops + copies}"
        lines.append(f"| {' | '.join(key)} | {sums} | {which} |")
    return "\n".join(lines)


def write(table: list[Row]) -> None:
    """Check the table in: the file, and its summary in the docs."""
    from benchmarks.pages import replace_part

    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [("torch", torch_version()), FIELDS, *table]
        )
    replace_part("launches", page(table))


def main(arguments: list[str]) -> int:
    """Print or write; starts the process with the emulated GPU itself."""
    from tests.cuda.emulator import build, device

    if device.wanted() is None:
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            device.SWITCH: str(build.kernels()),
        }
        command = [sys.executable, "-m", "benchmarks.launches", *arguments]
        return subprocess.run(command, env=environment).returncode
    device.install()
    device.set_order("forward")
    table = rows()
    if "--write" in arguments:
        write(table)
    print(page(table))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
