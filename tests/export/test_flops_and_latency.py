"""report: parameters, floating-point operations and time, full against compact."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskcl.export import Report, report
from maskcl.nn import to_hat

WIDTH, OPEN = 40, 10


@pytest.fixture(scope="module")
def found() -> Report:
    model = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))
    net = to_hat(model, 1, torch.zeros(2, 8))
    with torch.no_grad():
        net.embeddings[0].copy_((torch.arange(WIDTH) < OPEN) * 2.0 - 1)
    net.finish_task(0)
    return report(net.eval(), 0, torch.randn(6, 8), repeats=3)


def test_counts_are_those_of_the_layers(found: Report) -> None:
    assert found.full.parameters == 9 * WIDTH + 2 * WIDTH + 2
    assert found.compact.parameters == 9 * OPEN + 2 * OPEN + 2
    assert found.full.flops == 2 * 6 * (8 * WIDTH + WIDTH * 2)
    assert found.compact.flops == 2 * 6 * (8 * OPEN + OPEN * 2)
    assert found.difference < 1e-6


def test_times_are_of_single_calls(found: Report) -> None:
    assert 0 < found.compact.seconds < 1
    assert found.speedup == found.full.seconds / found.compact.seconds


def test_the_table_says_what_on_what(found: Report) -> None:
    lines = str(found).splitlines()
    assert lines[0].split() == ["full", "compact", "full", "/", "compact"]
    assert lines[1].split() == ["parameters", "442", "112", "3.95"]
    assert lines[2].split() == ["FLOPs", "4,800", "1,200", "4.00"]
    assert lines[3].startswith("ms ")
    assert lines[4].startswith("task 0, inputs 6x8, cpu, threads ")


def test_no_calls_no_median() -> None:
    net = to_hat(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), 1, torch.zeros(2, 3))
    net.finish_task(0)
    with pytest.raises(ValueError, match="repeats is 0, wanted at least 1"):
        report(net, 0, repeats=0)
