"""What an epoch adds up to does not depend on how many batches wait to be taken together."""

import math

import pytest
import torch

from maskcl.problems import MultiLabel, Regression, Vision
from maskcl.training import epoch_sums
from maskcl.training.epoch_sums import EpochSums

# Many steps, batches of several sizes and widths, one too large to wait, a step of no samples.
SHAPES = [(16, 2)] * 150 + [(3, 2), (40, 5), (40, 5), (70_000, 2), (1, 2), (0, 2)]


def batches(kind: str) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Losses, outputs and targets."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in SHAPES:
        outputs = torch.randn(shape, generator=generator)
        target = torch.randint(0, 2, shape, generator=generator).float()
        loss = torch.rand((), generator=generator)
        made.append((loss, outputs, target[:, 0].long() if kind == "vision" else target))
    return made


@pytest.mark.parametrize("kind", ["vision", "labels"])
def test_sums_are_those_of_each_batch_alone(kind):
    problem = Vision() if kind == "vision" else MultiLabel()
    sums = EpochSums(problem, torch.device("cpu"))
    for loss, outputs, target in batches(kind):
        sums.add_loss(loss, len(target))
        sums.add_outputs(outputs, target)
    losses, right, count = sums.totals().tolist()
    alone = batches(kind)
    assert count == sum(len(target) for _, _, target in alone)
    assert losses == pytest.approx(sum(x.item() * len(target) for x, _, target in alone), rel=1e-6)
    wanted = sum(problem.correct(outputs, target).item() for _, outputs, target in alone)
    assert right == pytest.approx(wanted, rel=0 if kind == "vision" else 1e-6)


def test_nothing_is_right_or_wrong_where_values_are_predicted():
    sums = EpochSums(Regression(), torch.device("cpu"))
    for loss, outputs, target in batches("values"):
        sums.add_loss(loss, len(target))
        sums.add_outputs(outputs, target)
    assert math.isnan(sums.totals()[1])


def test_an_epoch_without_samples_adds_nothing_up():
    assert EpochSums(Vision(), torch.device("cpu")).totals().tolist() == [0, 0, 0]


def test_what_waits_is_bounded():
    sums, seen = EpochSums(Vision(), torch.device("cpu")), []
    for _ in range(3 * epoch_sums.MOST_STEPS):
        sums.add_loss(torch.zeros(()), 8)
        sums.add_outputs(torch.zeros(8, 1000), torch.zeros(8, dtype=torch.int64))
        seen.append((len(sums._losses), sum(x.numel() for x, _ in sums._outputs)))
    assert max(count for count, _ in seen) == epoch_sums.MOST_STEPS
    assert max(size for _, size in seen) <= epoch_sums.MOST_ELEMENTS
