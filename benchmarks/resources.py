"""Registers, spills, shared memory and occupancy of every compiled kernel, for sm_80 and sm_90.

``python -m benchmarks.resources`` prints what is worth a look, ``--write`` checks two tables in:
``resources_cuda.csv`` of maskcl/libmaskcl_cuda.so as cuobjdump reads it, ``resources_triton.csv``
of what tests/triton compiles, and the summary in docs/gpu-model.md. tests/cuda/test_resources.py
and tests/triton compare: a spill, or a kernel that the table lacks, is an error whatever compiled.

Occupancy is the share of a multiprocessor's warps that can be resident, by the limits of NVIDIA's
CUDA C++ Programming Guide 13.0, table "Technical Specifications per Compute Capability".
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.pages import replace_part

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "maskcl" / "libmaskcl_cuda.so"
FOLDER = Path(__file__).parent
FIELDS = ("kernel", "arch", "registers", "stack", "shared", "occupancy")
BUILT = ("80", "90")
THREADS = 256  # of a block of csrc/cuda
COLLECT = "MASKCL_COLLECT_RESOURCES"  # the file that tests/triton add their rows to

# Of one multiprocessor, for 8.0 and 9.0 alike: registers, warps, blocks; registers are given to
# warps by 256, and shared memory to blocks by 128 bytes and 1 KB that CUDA itself keeps of each.
REGISTERS, WARPS, BLOCKS = 65536, 64, 32
REGISTER_UNIT, SHARED_UNIT, SHARED_OF_CUDA = 256, 128, 1024
SHARED = {"80": 164 << 10, "90": 228 << 10}


@dataclass(frozen=True, order=True)
class Usage:
    """One kernel for one architecture; memory in bytes, occupancy in per cent."""

    kernel: str
    arch: str
    registers: int  # of a thread
    stack: int  # of a thread, spills among it
    shared: int  # of a block
    occupancy: int

    @property
    def key(self) -> tuple[str, str]:
        return self.kernel, self.arch


def occupancy(registers: int, shared: int, arch: str, threads: int = THREADS) -> int:
    """Per cent of a multiprocessor's warps that blocks of so many threads can fill."""
    warps = -(-threads // 32)
    of_warp = -(-max(registers, 16) * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // of_warp // warps
    taken = -(-(shared + SHARED_OF_CUDA) // SHARED_UNIT) * SHARED_UNIT
    blocks = min(by_registers, SHARED[arch] // taken, WARPS // warps, BLOCKS)
    return 100 * blocks * warps // WARPS


def cuobjdump() -> Path | None:
    """Triton brings one; None where it is not installed."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"


def dumped(path: Path) -> str:
    """What cuobjdump says that a library or a cubin uses."""
    command = [str(cuobjdump()), "--dump-resource-usage", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def short(name: str) -> str:
    """A demangled kernel without its namespaces and parameters: ``select_kernel<float, 4>``."""
    for word in ("void ", "maskcl::gpu::", "maskcl::", "(anonymous namespace)::", "c10::"):
        name = name.replace(word, "")
    depth = 0
    for at, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:at]
    return name


def usage(kernel: str, arch: str, numbers: dict[str, int], threads: int = THREADS) -> Usage:
    """Of what cuobjdump prints; for sm_90 it adds CUDA's own part to a block's shared memory."""
    shared = numbers["SHARED"]
    if arch == "90" and shared >= SHARED_OF_CUDA:
        shared -= SHARED_OF_CUDA
    filled = occupancy(numbers["REG"], shared, arch, threads)
    return Usage(kernel, arch, numbers["REG"], numbers["STACK"] + numbers["LOCAL"], shared, filled)


def cuda() -> list[Usage]:
    """Of every kernel in the library, by file, name and template arguments."""
    found, arch = [], ""
    for m in re.finditer(r"^arch = sm_(\d+)|^ Function (\S+):\n(.+)", dumped(LIBRARY), re.M):
        arch = m[1] or arch
        if m[2]:
            numbers = {name: int(n) for name, n in re.findall(r"([A-Z]+):(\d+)", m[3])}
            found.append((m[2], arch, numbers))
    mangled = "\n".join(name for name, *_ in found)
    names = subprocess.run(["c++filt"], input=mangled, capture_output=True, text=True, check=True)
    made = []
    for (name, arch, numbers), clear in zip(found, names.stdout.splitlines(), strict=True):
        file = re.search(r"_GLOBAL__N__[0-9a-f]+_\d+_(\w+?)_cu_", name)
        made.append(usage(f"{file[1] if file else ''}: {short(clear)}", arch, numbers))
    return sorted(made)


def nvcc() -> str:
    """Of the library's build, as setup.py recorded it; "" where it did not."""
    from maskcl._extension import build_record

    return str(build_record().get("cuda", ""))


def table(name: str) -> Path:
    return FOLDER / f"resources_{name}.csv"


def read(name: str) -> tuple[str, dict[tuple[str, str], Usage]]:
    """The compiler's version, and the table ("cuda" or "triton") by kernel and architecture."""
    with table(name).open() as file:
        (_, version), _, *lines = csv.reader(file)
    rows = [Usage(k, a, int(r), int(st), int(sh), int(o)) for k, a, r, st, sh, o in lines]
    return version, {row.key: row for row in rows}


def differences(name: str, version: str, found: list[Usage], whole: bool = True) -> list[str]:
    """How kernels differ from the table; registers count where the compiler is the table's.

    Args:
        name: "cuda" or "triton".
        version: of the compiler.
        found: what was compiled.
        whole: whether that is all of the table.
    """
    wanted, known = read(name)
    lines = []
    for row in found:
        before = known.get(row.key)
        if row.stack > (before.stack if before else 0):
            lines.append(f"{row.kernel}, sm_{row.arch}: spills {row.stack} bytes")
        elif before is None:
            lines.append(f"{row.kernel}, sm_{row.arch} is not in {table(name).name}")
        elif version == wanted and row != before:
            lines.append(f"{row} was {before}")
    if whole:
        gone = known.keys() - {row.key for row in found}
        lines += [f"{kernel}, sm_{arch} is no more" for kernel, arch in sorted(gone)]
    return lines


def write(name: str, version: str, rows: list[Usage]) -> None:
    with table(name).open("w", newline="") as file:
        lines = [(r.kernel, r.arch, r.registers, r.stack, r.shared, r.occupancy) for r in rows]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("compiler", version), FIELDS, *lines])


def triton() -> list[Usage]:
    """What tests/triton compile, which takes a minute or two."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "tests/triton"]
        command += ["-p", "no:cacheprovider", "-k", "compile"]
        subprocess.run(command, cwd=ROOT, env={**os.environ, COLLECT: str(file)}, check=True)
        lines = {tuple(line) for line in csv.reader(file.open())}
    return sorted(Usage(k, a, *map(int, rest)) for k, a, *rest in lines)


def page() -> str:
    """Of each kernel, over its instances: the most registers, and the least occupancy, by arch."""
    lines = ["| kernel | instances | registers 80 | 90 | stack | shared | occupancy 80 | 90 |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in ("cuda", "triton"):
        groups: dict[str, list[Usage]] = {}
        for row in read(name)[1].values():
            groups.setdefault(f"{name} {re.split('[<(]', row.kernel)[0]}", []).append(row)
        for kernel, rows in sorted(groups.items()):
            by = {a: [r for r in rows if r.arch == a] for a in BUILT}
            cells = [len({r.kernel for r in rows})]
            cells += [_span(r.registers for r in by[a]) for a in BUILT]
            cells += [max(r.stack for r in rows), max(r.shared for r in rows)]
            cells += [_span(r.occupancy for r in by[a]) for a in BUILT]
            lines.append(f"| {kernel} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _span(numbers: Iterable[int]) -> str:
    values = sorted(numbers)
    if not values:
        return ""
    return f"{values[0]}" if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def main(arguments: list[str]) -> int:
    """Print the summary; with --write, of all compiled anew."""
    if "--write" in arguments:
        import triton as installed

        write("cuda", nvcc(), cuda())
        write("triton", installed.__version__, triton())
        replace_part("resources", page())
    print(page())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
