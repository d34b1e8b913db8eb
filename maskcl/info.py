"""What is installed, what each backend can run here, and why not: ``python -m maskcl.info``.

:func:`collect` returns plain data (JSON-ready) for ``maskcl info``; :func:`text` lays it out.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch

from maskcl import __version__, _extension, backends, schemas

__all__ = ["collect", "main", "text"]

# Distributions that a bug report needs; one that is not installed is said to be so.
_DISTRIBUTIONS = (
    "numpy",
    "triton",
    "lightning-fabric",
    "torchmetrics",
    "safetensors",
    "torchvision",
)


def collect() -> dict[str, Any]:
    """Versions, devices, the native build, and the reasons by op and backend.

    Returns:
        ``versions``: name -> version or None; ``devices``: names; ``native``: as
        :func:`maskcl._extension.status`; ``ops``: op -> backend -> list of reasons, empty where the
        backend runs the op on one of this machine's devices.
    """
    return {
        "versions": _versions(),
        "devices": _devices(),
        "native": _extension.status(),
        "ops": {
            op: {name: _reasons(name, op) for name in backends.BACKENDS} for op in schemas.STEM_OF
        },
    }


def text(facts: Mapping[str, Any]) -> str:
    """What :func:`collect` returns, as lines of at most about 100 characters."""
    lines = ["versions"]
    lines += [
        f"  {name:<18} {value or 'not installed'}" for name, value in facts["versions"].items()
    ]
    lines += ["devices", *(f"  {device}" for device in facts["devices"]), "native libraries"]
    for name in ("cpp", "cuda"):
        lines.append(f"  {name:<18} {facts['native'][name] or 'loaded'}")
    lines += [f"  {key:<18} {value}" for key, value in facts["native"]["build"].items()]
    lines += _op_table(facts["ops"])
    return "\n".join(lines)


def main() -> None:
    """Print the facts of this environment."""
    print(text(collect()))


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "maskcl": __version__,
        "python": f"{platform.python_version()} ({sys.platform} {platform.machine()})",
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda,
    }
    for name in _DISTRIBUTIONS:
        versions[name] = importlib.metadata.version(name) if _installed(name) else None
    return versions


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _devices() -> list[str]:
    devices = [f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        gib = facts.total_memory / 2**30
        devices.append(f"cuda:{index}: {facts.name}, sm_{facts.major}{facts.minor}, {gib:.0f} GiB")
    return devices


def _reasons(backend: str, op: str) -> list[str]:
    """Why the backend runs the op in float32 on no device here; empty where it does on one."""
    here = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    by_device = [backends.not_supported_reasons(backend, op, d, torch.float32) for d in here]
    return min(by_device, key=len)


def _op_table(ops: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    names = list(next(iter(ops.values())))
    width = max(map(len, ops)) + 2
    lines = ["ops by backend", " " * (width + 2) + "".join(f"{name:<11}" for name in names)]
    for op, row in ops.items():
        cells = "".join(f"{'no' if row[name] else 'yes':<11}" for name in names)
        lines.append(f"  {op:<{width}}{cells}".rstrip())
    for name in names:
        reasons = {reason for row in ops.values() for reason in row[name]}
        lines += [f"  {name}: {reason}" for reason in sorted(reasons)]
    return lines


if __name__ == "__main__":
    main()
