"""These tests run in the emulated GPU's process only; what they and tests/ops launch is counted."""

import pytest

from tests.cuda.emulator import device

if device.wanted() is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of tests/ops only what runs on the backend under test; the count of launches at the end."""
    if device.wanted() is None:
        return
    ours = [i for i in items if "emulated" in i.path.parts or "backend" in i.fixturenames]  # type: ignore[attr-defined]
    items[:] = sorted(ours, key=lambda item: item.path.name == "test_coverage.py")
