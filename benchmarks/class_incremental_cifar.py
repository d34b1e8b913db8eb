"""Class-incremental CIFAR-10 in five tasks, from JPEGs in folders: HAT, and Piggyback on a base.

``python -m benchmarks.class_incremental_cifar DIR`` reads ``DIR/train/CLASS/*.jpg`` and
``DIR/test`` and prints a table as Markdown. The images are lossy copies and the nets see a part of
them for few epochs: not to be set beside published figures. The base is a torchvision-shaped
ResNet-18 that has learned by how many quarter turns an image is turned, from the same training
images.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

import maskcl
import maskcl.methods
from maskcl import models, problems, scenarios
from maskcl.training.inference_scores import InferenceScores
from maskcl.training.inferring import InferredScores

SHAPE, PAIRS = (3, 32, 32), [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]


def read(folder: Path, most: int) -> tuple[Tensor, Tensor]:
    """Images between -1 and 1 and labels, at most so many a class."""
    found = ImageFolder(str(folder))
    by_class = itertools.groupby(range(len(found)), key=found.targets.__getitem__)
    rows = [row for _, own in by_class for row in list(own)[:most]]
    images = torch.stack([pil_to_tensor(found[row][0]) for row in rows])
    return images / 127.5 - 1, torch.tensor([found.targets[row] for row in rows])


def split(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> scenarios.Scenario:
    """Two classes a task."""

    def part(data: tuple[Tensor, Tensor], pair: tuple[int, int]) -> TensorDataset:
        own = torch.isin(data[1], torch.tensor(pair))
        return TensorDataset(data[0][own], data[1][own])

    pairs = [(part(train, pair), part(test, pair)) for pair in PAIRS]
    return scenarios.from_datasets(pairs, setting="class", name="cifar-10 (JPEG)")


def turned_base(images: Tensor, epochs: int) -> nn.Module:
    """A ResNet-18 that tells quarter turns apart, in evaluation."""
    base = models.resnet18(SHAPE, classes=4, stem="imagenet")
    optimizer = torch.optim.Adam(base.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            turns = torch.randint(4, (len(rows),))
            x = torch.stack(
                [torch.rot90(images[row], int(turn), (1, 2)) for row, turn in zip(rows, turns)]
            )
            optimizer.zero_grad()
            nn.functional.cross_entropy(base(x), turns).backward()
            optimizer.step()
    return base.eval()


def rows(run: maskcl.Trainer, title: str, spaces: list[str]) -> None:
    """A line for each space, of the network as it is after its last task."""

    def data(task: int) -> maskcl.methods.TaskData:
        return run.samples.task_data(task, run.scenario.train_set(task))

    for space in spaces:
        net, tasks = run.net, range(len(PAIRS))
        net.inference = maskcl.TaskInference(space)
        for task in tasks:
            net.measure_task(task, data(task))
        scores = InferredScores(
            net, run.problem, run.scenario, run.fabric, run.samples.labels, data, 512
        )
        found = InferenceScores.empty(len(PAIRS))
        score = sum(scores.score(len(PAIRS) - 1, task, found) for task in tasks) / len(PAIRS)
        columns = [score, *(m[-1].mean() for m in (found.identified, found.told, found.alone))]
        shown = " | ".join(f"{100 * value:.1f}" for value in columns)
        print(f"| {title}, {space} | {shown} |", flush=True)


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000, help="training images a class")
    parser.add_argument("--epochs", type=int, default=8, help="of HAT; Piggyback has half")
    parser.add_argument("--base-epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=100)
    asked = parser.parse_args()
    train, test = read(asked.folder / "train", asked.images), read(asked.folder / "test", 1000)
    cut = split(train, test)
    run = {"batch_size": 64, "seed": asked.seed, "inference": maskcl.TaskInference("masked")}
    print("| | score | identified | told | LDA of pixels |\n| --- | --- | --- | --- | --- |")
    torch.manual_seed(asked.seed)
    model = models.conv(SHAPE, classes=2, width=32, hidden=512)
    net = maskcl.nn.to_hat(model, 5, torch.zeros(2, *SHAPE), classes=cut.head_sizes)
    hat = maskcl.Trainer(
        net, maskcl.HAT(), problems.Vision(), cut, lambda p: torch.optim.Adam(p, lr=2e-3),
        epochs=asked.epochs, **run,
    )  # fmt: skip
    hat.fit()
    rows(hat, "HAT, conv net", ["shared", "masked"])
    torch.manual_seed(asked.seed)
    base = turned_base(train[0], asked.base_epochs)
    frozen = maskcl.nn.to_piggyback(base, 5, classes=cut.head_sizes, norms="frozen")
    run["inference"] = maskcl.TaskInference("base")
    piggyback = maskcl.Trainer(
        frozen, maskcl.Piggyback(), problems.Vision(), cut,
        lambda p: torch.optim.Adam(p, lr=1e-3), epochs=max(1, asked.epochs // 2), **run,
    )  # fmt: skip
    piggyback.fit()
    rows(piggyback, "Piggyback, ResNet-18", ["shared", "base", "masked"])


if __name__ == "__main__":
    main()
