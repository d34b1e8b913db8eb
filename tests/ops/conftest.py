"""Kernels divide their work among threads: all of them are tested on more than one."""

import pytest


@pytest.fixture(autouse=True)
def _on_two_threads(two_threads: None) -> None:
    pass
