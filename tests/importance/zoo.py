"""Small networks of every kind of layer, their batches, and importances one sample at a time."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 4


class Convs(nn.Module):
    """Strides, groups, padding modes, dilation, norms and activations in place."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, (3, 5), padding="same", groups=8, dilation=(2, 1), bias=False),
            nn.GroupNorm(2, 8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 6, 2, padding=(1, 0), groups=2, padding_mode="circular", bias=False),
            nn.InstanceNorm2d(6, affine=True),
            nn.Conv2d(6, 5, 1),
            nn.Dropout(0.5),
        )
        self.head = nn.LazyLinear(CLASSES)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


class Lines(nn.Module):
    """Convolutions of one dimension and of three."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv1d(2, 4, 4, padding="same", padding_mode="replicate")
        self.norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        self.three = nn.Conv3d(1, 3, (1, 2, 3), stride=(1, 2, 1), dilation=(2, 1, 1), padding=1)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):
        x = self.norm(self.one(x)).relu_().view(-1, 1, 2, 2, x.shape[-1])
        return self.head(self.three(x).square().mean((2, 3, 4)))


class Words(nn.Module):
    """Embeddings, one shared with the output layer; an LSTM or a transformer between them."""

    def __init__(self, middle, tied=False):
        super().__init__()
        self.words = nn.Embedding(7, 8, padding_idx=0)
        self.places = nn.Embedding(6, 8)  # looked up once for all samples
        self.middle = middle
        self.norm = nn.RMSNorm(8)
        self.head = nn.Linear(8, 7 if tied else CLASSES)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x):
        x = self.words(x) + self.places(torch.arange(x.shape[1]))
        x = self.middle(x)
        x = x[0] if isinstance(x, tuple) else x
        return self.head(self.norm(x)).mean(1)


class Shared(nn.Module):
    """A layer called twice, a weight in two layers, one read past its layer; own parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.other = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.other.weight = self.again.weight
        self.head = nn.Linear(6, CLASSES)
        self.past = nn.Linear(6, CLASSES, bias=False)
        self.unused = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        x = self.again(self.first(x).tanh()).tanh()
        x = self.other(self.again(x).tanh()) * self.scale
        return self.head(x) + F.linear(x.relu(), self.past.weight.flip(0)) + self.past(x)


class Laid(nn.Module):
    """Rows of time first, and rows that are a sample's positions one after the other."""

    def __init__(self):
        super().__init__()
        self.time, self.rows = nn.Linear(5, 6), nn.Linear(6, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, CLASSES)

    def forward(self, x):  # [N, T, 5]
        x = self.norm(self.time(x.transpose(0, 1)).tanh())
        x = self.rows(x.transpose(0, 1).reshape(-1, 6)).tanh()
        return self.head(x.view(-1, 4, 6).sum(1))


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(9, CLASSES)
    )


def encoder():
    return nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)


ZOO = {
    "mlp": (mlp, lambda n: torch.randn(n, 2, 3)),
    "convs": (Convs, lambda n: torch.randn(n, 3, 9, 8)),
    "lines": (Lines, lambda n: torch.randn(n, 2, 7)),
    "transformer": (lambda: Words(encoder()), lambda n: torch.randint(0, 7, (n, 6))),
    "lstm": (
        lambda: Words(nn.LSTM(8, 8, batch_first=True)),
        lambda n: torch.randint(0, 7, (n, 6)),
    ),
    "gru": (lambda: Words(nn.GRU(8, 8, batch_first=True)), lambda n: torch.randint(0, 7, (n, 6))),
    "tied": (lambda: Words(nn.Identity(), tied=True), lambda n: torch.randint(0, 7, (n, 6))),
    "shared": (Shared, lambda n: torch.randn(n, 5)),
    "laid": (Laid, lambda n: torch.randn(n, 4, 5)),
}


def make(name, dtype=torch.float64, samples=7):
    """A model in training mode, statistics not those it was born with, and samples (x, y)."""
    torch.manual_seed(1)
    build, draw = ZOO[name]
    model, x = build(), draw(samples)
    model(x)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    model = model.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    return model, x, torch.randint(0, CLASSES, (samples,))


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def one_by_one(model, x, y=None, *, norm="sum"):
    """The mean over samples of |gradient| of the squares, or with labels of log p, squared."""
    model = copy.deepcopy(model).eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(x)):
        model.zero_grad(set_to_none=True)
        out = model(x[n : n + 1])
        if y is None:
            value = out.square().sum() if norm == "sum" else out.square().mean()
        else:
            value = -F.cross_entropy(out, y[n : n + 1])
        value.backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += (p.grad.abs() if y is None else p.grad.square()) / len(x)
    return total


def assert_same(found, wanted, tolerance=1e-10):
    """Each parameter's importances within ``tolerance`` of its largest."""
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        error = (found[name].double() - value.double()).abs().max()
        assert error <= tolerance * value.double().abs().max(), f"{name}: {error}"


def exact_without_check(name):
    """Names of parameters that need no comparison to be right."""
    model, *_ = make(name)
    return {n for n, _ in model.named_parameters() if not n.startswith("past")}
