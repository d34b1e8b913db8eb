"""Kernels divide their work among threads: all of them are tested on more than one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from maskcl import backends
from tests.conftest import AVAILABLE


@pytest.fixture(autouse=True)
def _on_two_threads(two_threads: None) -> None:
    pass


def with_reference() -> Any:
    """A fixture ``backend`` that takes its turn on the reference as well, the specification."""

    @pytest.fixture(params=[*AVAILABLE, ("reference", "cpu")], ids="-".join, name="backend")
    def fixture(request: pytest.FixtureRequest) -> Iterator[str]:
        with backends.use_backend(request.param[0]):
            yield request.param[0]

    return fixture
