"""Piggyback on a timm backbone: it learns letters, is frozen, and five tasks of digits mask it.

``MASKCL_DATA=FOLDER python examples/piggyback_backbone.py`` reads the folders ``notMNIST-10k/raw``
and ``USPS`` there; a number behind it is the epochs a task. With weights of timm's the letters are
not needed: ``timm.create_model(NAME, pretrained=True, in_chans=1)`` downloads them.
"""

import os
import sys

import timm
import torch
import torch.nn.functional as F

import maskcl
from maskcl import problems, scenarios


def pretrained(letters, epochs):
    """A backbone that knows ten letters."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(epochs):
        for rows in torch.randperm(len(letters)).split(64):
            x, y = letters.take(rows)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def main(epochs=2):
    folder = os.environ.get("MASKCL_DATA")
    if folder is None:
        sys.exit("MASKCL_DATA is not set, wanted the folder with notMNIST-10k/raw and USPS")
    letters = scenarios.load("split-notmnist", data=folder, tasks=1)
    usps = scenarios.load("split-usps", data=folder)

    backbone = pretrained(letters.train_set(0), epochs)
    net = maskcl.nn.to_piggyback(backbone, usps.num_tasks, classes=usps.classes_per_task)
    result = maskcl.Trainer(
        net,
        maskcl.Piggyback(lr=0.001, head_lr=0.01),
        problems.Vision(),
        usps,
        lambda groups: torch.optim.Adam(groups),
        epochs=epochs,
        batch_size=64,
        progress=False,
    ).fit()
    kilobytes = sum(layer.weight.numel() for layer in net.layers.values()) / 8 / 1024
    print("task  accuracy  at the end  mask")
    for task in range(usps.num_tasks):
        learned, last = result.matrix[task, task], result.matrix[-1, task]
        print(f"{task:>4}  {learned:>8.4f}  {last:>10.4f}  {kilobytes:.0f} KiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
