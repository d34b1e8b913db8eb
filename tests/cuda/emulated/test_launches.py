"""A launch that a training step did not have before is one that somebody meant to add."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip(
    "triton.language", reason="Triton is not installed: its launches are in the table"
)

from benchmarks import launches, pages
from tests.cuda.emulator import device


@pytest.mark.slow
def test_training_steps_launch_what_the_table_says():
    device.set_order("forward")
    torch.use_deterministic_algorithms(False)  # which fills fresh memory: launches of its own
    found, (version, known) = launches.rows(), launches.read()
    if version != launches.torch_version():  # its own ops may be others
        found, known = ([row for row in rows if row[3] != "op"] for rows in (found, known))
    differ = sorted({*found} ^ {*known})
    lines = [f"{'now' if row in found else 'was'}: {', '.join(map(str, row))}" for row in differ]
    again = "if it is meant: python -m benchmarks.launches --write"
    assert not differ, "\n".join([*lines, again])


def test_the_page_shows_the_table():
    assert pages.part("launches") == launches.page(launches.read()[1])
