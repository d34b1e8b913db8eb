"""An epoch of batches of 64, on the device: out of memory, and decoded with and without workers.

Times are of a whole epoch of `SAMPLES` samples, so of 32 batches. With workers the loop does
nothing but wait for them: in training they decode while the network learns.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from benchmarks.conftest import device
from maskcl.problems import Vision
from maskcl.scenarios import from_datasets
from maskcl.scenarios.images import ImageSet
from maskcl.training.accelerator import make_fabric
from maskcl.training.samples import Samples, loader_of

SAMPLES, BATCH, SHAPE = 2048, 64, (3, 32, 32)
GROUP = f"An epoch of {SAMPLES} samples in batches of {BATCH}"


class Decoded(Dataset):
    """JPEG files in memory: what is timed is the decoder, not the disk."""

    def __init__(self, images):
        image = pytest.importorskip("PIL.Image", reason="decoding is done by Pillow")
        self.targets = [index % 2 for index in range(len(images))]
        self.files = []
        for pixels in images.permute(0, 2, 3, 1).numpy():
            self.files.append(io.BytesIO())
            image.fromarray(pixels).save(self.files[-1], "jpeg")

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        from PIL import Image

        pixels = np.array(Image.open(io.BytesIO(self.files[index].getvalue())))
        return torch.from_numpy(pixels).permute(2, 0, 1) / 255, self.targets[index]


def run_of(data, workers=0):
    scenario = from_datasets([(data, data)])
    fabric = make_fabric("auto", "32")
    loader = loader_of(Vision(), scenario, fabric, workers)
    return Samples(Vision(), fabric, BATCH, 0, loader=loader), scenario.train_set(0)


def epoch(samples, dataset):
    return sum(len(y) for _, y in samples.epoch(0, 0, dataset))


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randint(0, 256, (SAMPLES, *SHAPE), dtype=torch.uint8)


def test_tensors(timed, images):
    labels = torch.arange(SAMPLES) % 2
    samples, dataset = run_of(TensorDataset(images / 255, labels))
    assert epoch(samples, dataset) == SAMPLES
    timed(GROUP, "TensorDataset, float32", lambda: epoch(samples, dataset))


@pytest.mark.parametrize("permuted", [False, True])
def test_bytes(timed, images, permuted):
    order = torch.randperm(SHAPE[1] * SHAPE[2]) if permuted else None
    rows, labels = torch.arange(SAMPLES), torch.arange(SAMPLES) % 2
    samples, _ = run_of(TensorDataset(torch.zeros(2, 1), torch.arange(2)))
    dataset = ImageSet(images, 255.0, rows, labels, order, mean=0.5, std=0.25)
    words = "pixels permuted, " if permuted else ""
    timed(GROUP, f"ImageSet, uint8, {words}normalised", lambda: epoch(samples, dataset))


@pytest.mark.parametrize("workers", [0, 2])
def test_decoded(timed, images, workers):
    samples, dataset = run_of(Decoded(images), workers)
    with samples.loader:
        assert epoch(samples, dataset) == SAMPLES  # the workers are there
        timed(GROUP, f"JPEG, {workers} workers ({device()})", lambda: epoch(samples, dataset))
