"""Scores against the textbook's formulas, written out in float64."""

from __future__ import annotations

import torch
from torch.distributions import MultivariateNormal

from maskcl.nn.inference.class_sums import ClassSums
from maskcl.nn.inference.gaussians import Discriminants, Gaussians, shrunk
from maskcl.nn.inference.statistics import TaskStatistics


def measured(classes=(0, 1, 2), n=90, features=5, by_class=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes).repeat(n // len(classes))
    x = torch.randn(len(labels), features, generator=generator) * (1 + labels[:, None])
    x = x + 3 * torch.randn(max(classes) + 1, features, generator=generator)[labels]
    sums = ClassSums(features, by_class, x.device)
    sums.add(x, labels)
    found = TaskStatistics.of(sums.moments(), torch.ones(features, dtype=torch.bool))
    return x, labels, found


def test_discriminants_of_several_tasks_are_those_of_their_samples_together():
    first, second = measured((0, 1)), measured((0, 1, 2), seed=1)
    x = torch.cat([first[0], second[0]]).double()
    labels = torch.cat([first[1], second[1] + 2])
    means = torch.stack([x[labels == c].mean(0) for c in range(5)])
    covariance = (x - means[labels]).T @ (x - means[labels]) / len(x)
    inverse = (covariance + 0.3 * covariance.diagonal().mean() * torch.eye(5)).inverse()
    wanted = x @ inverse @ means.T - 0.5 * torch.einsum("cf,fg,cg->c", means, inverse, means)
    statistics = [first[2], second[2]]
    scatter = statistics[0].scatters() + statistics[1].scatters()
    found = Discriminants.of(statistics, scatter, 0.3).scores(x.float())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def test_gaussians_are_log_densities_with_covariances_in_part_their_own():
    x, labels, statistics = measured(by_class=True)
    x = x.double()
    means = torch.stack([x[labels == c].mean(0) for c in range(3)])
    own = [(x[labels == c] - means[c]).T @ (x[labels == c] - means[c]) for c in range(3)]
    tied = sum(own) / len(x)
    found = Gaussians.of(statistics, 0.2).scores(x.float())
    for c in range(3):
        n = int((labels == c).sum())
        mixed = own[c] / (n + 5) + tied * 5 / (n + 5)
        covariance = mixed + 0.2 * mixed.diagonal().mean() * torch.eye(5)
        density = MultivariateNormal(means[c], covariance).log_prob(x)
        constant = -0.5 * 5 * torch.log(torch.tensor(2 * torch.pi))
        torch.testing.assert_close(found[:, c].double(), density - constant, rtol=1e-4, atol=1e-4)


def test_what_does_not_vary_has_ones():
    assert torch.equal(shrunk(torch.zeros(2, 3, 3), 0.1), torch.eye(3).expand(2, 3, 3))
