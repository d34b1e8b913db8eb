"""Takes each ``__syncthreads()`` of csrc/cuda out in turn; the tests must notice every one.

``python -m tests.cuda.emulator.barriers`` (part of ``make sanitize``). A barrier that no test
misses is either not needed or not tested. Those that say so are left: they order what a block does
for blocks that run beside it, and the emulator's run one after the other.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.cuda.emulator import build, device

BARRIER = re.compile(r"__syncthreads\(\);(?!  // for blocks beside this one)")


def noticed(edited: dict[str, str]) -> bool:
    """Whether the tests fail with these files of csrc/cuda in the place of the real ones."""
    environment = {**os.environ, device.SWITCH: str(build.kernels(edited=edited))}
    tests = ["tests/cuda/emulated/test_cases.py", "-x", "-o", "addopts=", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *tests]
    ran = subprocess.run(command, env=environment, cwd=build.ROOT, capture_output=True, text=True)
    if ran.returncode > 1:
        raise RuntimeError(ran.stdout + ran.stderr)
    return ran.returncode == 1


def main() -> int:
    """Say what was noticed; 1 where something was not, or no barrier was found."""
    count = missed = 0
    for path in sorted((build.ROOT / "csrc/cuda").iterdir()):
        text = path.read_text()
        for found in BARRIER.finditer(text):
            without = text[: found.start()] + text[found.end() :]
            seen = noticed({path.name: without})
            count, missed = count + 1, missed + (not seen)
            line = text.count("\n", 0, found.start()) + 1
            print(f"{path.name}:{line} {'noticed' if seen else 'NOT NOTICED'}", flush=True)
    print(f"{count} barriers taken out, {missed} not noticed")
    return int(missed > 0 or count == 0)


if __name__ == "__main__":
    sys.exit(main())
