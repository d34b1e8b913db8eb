"""What all tests share: poisoned fresh memory, seeds, and the backends that this machine has."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import pytest
import torch
import torch._functorch.config

from maskcl import backends
from tests.cuda.emulator import device as emulated

if emulated.wanted():
    emulated.install()


def pytest_configure(config: pytest.Config) -> None:
    """One thread, in child processes too: models are tiny, and a second only waits, at full load.

    What may depend on their number says so: ``two_threads``, and all of tests/ops.
    """
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # What was compiled of an earlier state of the ops is on disk under the same names.
    torch._functorch.config.enable_autograd_cache = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of processes that share the files, none waits for the last."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _poisoned_memory_and_seed() -> Iterator[None]:
    """Fresh memory is NaN (integers: the largest), so an element left unwritten shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def _order_of_emulated_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads of an emulated GPU run in an order that is the test's own, and the same again."""
    if emulated.wanted():
        emulated.set_order("any", zlib.crc32(request.node.nodeid.encode()))
    yield
    if emulated.wanted():
        assert not emulated.unchecked(), f"no check follows the launch of {emulated.unchecked()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Whose kernels these were: an op that the emulated GPU lacks runs on another backend."""
    if emulated.wanted():
        counts = emulated.launches().values()
        launched = f"{sum(map(bool, counts))} of {len(counts)} kernels were launched"
        terminalreporter.write_line(f"emulated GPU: {launched}")


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Where the number of threads may matter."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# Every native backend with each device that it can run on; the reference is what they are tested
# against. Triton's and CUDA's kernels run on the CPU in processes of their own, which
# tests/triton/test_interpreter.py and tests/cuda/test_emulated.py start.
PAIRS = [
    ("cpp", "cpu"),
    ("triton", "cpu"),
    ("cuda", "cpu"),
    ("triton", "cuda"),
    ("cuda", "cuda"),
]


def _absent(name: str, device: str) -> str | None:
    if device == "cuda" and not torch.cuda.is_available():
        return "torch.cuda.is_available() is false"
    reasons = backends.not_supported_reasons(name, "hat_gate", device, torch.float32)
    return "; ".join(reasons) or None


AVAILABLE = [pair for pair in PAIRS if _absent(*pair) is None]


def pytest_report_header() -> list[str]:
    """Which backends the op tests run on, and why not on the others."""
    lines = [f"maskcl backends under test: {', '.join('-'.join(pair) for pair in AVAILABLE)}"]
    missing = [(pair, _absent(*pair)) for pair in PAIRS if pair not in AVAILABLE]
    return lines + [f"  not here: {'-'.join(pair)}: {reason}" for pair, reason in missing]


@pytest.fixture(params=AVAILABLE, ids="-".join)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each native backend in turn, forced; the device is the fixture ``device``."""
    with backends.use_backend(request.param[0]):
        yield request.param[0]


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """The device of the backend in turn."""
    return request.node.callspec.params["backend"][1]
