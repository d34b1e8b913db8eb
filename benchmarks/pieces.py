"""Benchmarks in pieces of a few minutes, for machines that are quiet for no longer."""

from __future__ import annotations

import time

import pytest


class Piece:
    """A plugin for pytest: a part of the benchmarks, cut at whole groups."""

    def __init__(self, done: set[str], seconds: float) -> None:
        self.done, self.seconds = done, seconds
        self.start = time.monotonic()
        self.group, self.is_over = "", False

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid not in self.done]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.is_over:
            pytest.skip("for another piece")

    def begin(self, group: str) -> None:
        """A row of this group is about to be timed; the first group always is."""
        if self.group not in ("", group) and time.monotonic() - self.start > self.seconds:
            self.is_over = True
            pytest.skip("for another piece")
        self.group = group
