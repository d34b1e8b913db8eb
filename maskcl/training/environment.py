"""Where a run took place, for result.json."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from maskcl import backends, schemas
from maskcl._version import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions, the commit if this is a checkout, and the backend of each op."""
    facts: dict[str, Any] = {
        "machine": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "maskcl": __version__,
        "commit": _commit(),
        "backends": backends_by_op(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def backends_by_op(device: torch.device) -> dict[str, str]:
    """For each op the backend that runs it in float32 on the device."""
    return {op: backends.choose(op, device.type, torch.float32) for op in schemas.STEM_OF}


def _cpu() -> str:
    """The processor's name; empty where the system does not say."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


@functools.cache
def _commit() -> str | None:
    """The commit of the checkout that this package lies in, with + where files differ."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changed else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
