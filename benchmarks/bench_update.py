"""AdamW's step under protection, beside torch's own with a separate clamp and restore."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import device
from maskcl import backends, models, ops

MLPS = {"MLP 64-200-200-2": (64, 200, 200, 2), "MLP 784-800-800-10": (784, 800, 800, 10)}
MLPS["MLP 784-2000-2000-10"] = (784, 2000, 2000, 10)
LISTS = [*MLPS, "ResNet-18", "transformer, 110 M"]
SHARES = [0, 30, 70, 100]
NAMES = ["maskcl", "fused", "fused, clamp, restore", "foreach", "foreach, clamp, restore"]
LR, DECAY = 1e-3, 0.01


def shapes_of(name: str) -> list[tuple[int, ...]]:
    if name == "ResNet-18":
        return [tuple(p.shape) for p in models.resnet18((3, 32, 32), 10).parameters()]
    if name.startswith("transformer"):
        return transformer()
    sizes = MLPS[name]
    pairs = zip(sizes[1:], sizes[:-1], strict=True)
    return [shape for out, ins in pairs for shape in ((out, ins), (out,))]


def transformer(width: int = 768, layers: int = 12, words: int = 30522) -> list[tuple[int, ...]]:
    """The shapes of BERT-base (Devlin et al. 2019): embeddings and blocks, without its pooler."""
    linear = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]
    block = [shape for out, ins in linear for shape in ((out, ins), (out,))] + [(width,)] * 4
    return [(words, width), (512, width), (2, width), (width,), (width,), *block * layers]


def sides_of(shapes: list[tuple[int, ...]], percent: int) -> tuple[list[Tensor], list[Tensor]]:
    """Units of one task, such that about so much of a weight between two layers is protected.

    They are units drawn at random: a row of the others is free, in a row of theirs so many columns.
    """
    used = (percent / 100) ** 0.5
    outs, ins = [], []
    for shape in shapes:
        units = (torch.rand(shape[0], device=device()) < used).long()[:, None]
        outs.append(outs[-1] if len(shape) == 1 and outs and len(outs[-1]) == shape[0] else units)
        columns = shape[1] if len(shape) > 1 and percent < 100 else 1
        side = (torch.rand(columns, device=device()) < used).long()[:, None]
        ins.append(side if columns > 1 else torch.full((1, 1), -1, device=device()))
    return outs, ins


class Steps:
    """The same step in each of the ways."""

    def __init__(self, shapes: list[tuple[int, ...]], percent: int) -> None:
        torch.manual_seed(0)
        self.params = [torch.nn.Parameter(0.02 * torch.randn(s, device=device())) for s in shapes]
        self.saved = [p.detach().clone() for p in self.params]
        self.outs, self.ins = sides_of(shapes, percent)
        count = len(shapes)
        self.sides = self.outs, self.ins, [1] * count
        for p in self.params:
            p.grad = torch.randn_like(p)
        self.grads = [p.grad for p in self.params]

    def protected(self) -> int:
        """Elements that are, by counting."""
        probes = [torch.ones_like(p) for p in self.saved]
        ops.clamp_grads_(probes, self.outs, self._ins())
        return int(sum((probe == 0).sum().item() for probe in probes))

    def _ins(self) -> list[Tensor | None]:
        return [side if side.shape[0] > 1 else None for side in self.ins]

    def maskcl(self):
        firsts, seconds = ([torch.zeros_like(p) for p in self.saved] for _ in range(2))
        steps = [torch.zeros((), device=device()) for _ in self.saved]
        count = len(self.saved)
        pace = [LR] * count, [DECAY] * count, [float("inf")] * count
        how = 0.9, 0.999, 1e-8, True, False, None, None, None, None, 0.0
        run = backends.select("adam_update_", self.saved[0])
        params = [p.detach() for p in self.params]
        lists = params, self.grads, firsts, seconds, steps
        return lambda: run(*lists, *self.sides, True, *pace, *how)

    def torchs(self, protected: bool, **kind: bool):
        optimizer = torch.optim.AdamW(self.params, lr=LR, weight_decay=DECAY, **kind)
        if not protected:
            return optimizer.step
        clamp = backends.select("clamp_grads_", self.saved[0])
        restore = backends.select("restore_protected_", self.saved[0])
        zeros = [0.0] * len(self.saved)
        params = [p.detach() for p in self.params]

        def step() -> None:
            clamp(self.grads, *self.sides, True, "hat", zeros, 0)
            optimizer.step()
            restore(params, self.saved, *self.sides, True)

        return step

    def named(self, name: str):
        if name == "maskcl":
            return self.maskcl()
        kind = {"fused": True} if name.startswith("fused") else {"foreach": True}
        return self.torchs("clamp" in name, **kind)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("percent", SHARES)
@pytest.mark.parametrize("network", LISTS)
def test_adamw(timed, network, percent, name):
    steps = Steps(shapes_of(network), percent)
    moved = sum(p.numel() for p in steps.params) - steps.protected()
    run = steps.named(name)
    timed(f"AdamW's step, {network}, {percent} % protected, float32", name, run, 7 * 4 * moved)
