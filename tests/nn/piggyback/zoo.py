"""Models to mask, with their inputs, and a loop that trains a task's masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskcl.nn import PiggybackNetwork, to_piggyback
from tests.nn.zoo import MODELS, images
from tests.tiny import logits as logits

CLASSES = [2, 3, 4]


class Tokens(nn.Module):
    """Embedding with padding, positions as a bare parameter, torch's own transformer layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8, padding_idx=0)
        self.position = nn.Parameter(torch.randn(6, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.block(self.embed(tokens) + self.position)
        return self.head(self.norm(x).mean(1))


def tokens(count: int, seed: int = 0) -> Tensor:
    """Sentences with padding, [count, 6]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 20, (count, 6), generator=generator) * (torch.arange(6) < 5)


FROZEN: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor]]] = {
    **{name: (make, images) for name, make in MODELS.items()},
    "tokens": (Tokens, tokens),
}
# By name, what begin_task needs of levels that have no threshold.
SELECT: dict[str, dict[str, Any]] = {
    "binary": {},
    "ternary": {},
    "ternary_symmetric": {},
    "topk": {"density": 0.4},
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=5e-3, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.02),
    "adam-l2": lambda p: torch.optim.Adam(p, lr=5e-3, weight_decay=0.02),
}


def frozen(name: str = "mlp", levels: str = "binary", norms: str = "frozen") -> PiggybackNetwork:
    """A network of three tasks from seed 0, with warm statistics in the base, in training mode."""
    torch.manual_seed(0)
    make, inputs = FROZEN[name]
    model = make().train()
    with torch.no_grad():
        for seed in range(3):
            model(inputs(16, seed=seed))
    return to_piggyback(model, len(CLASSES), classes=CLASSES, levels=levels, norms=norms).train()


def begin(net: PiggybackNetwork, task: int, **options: Any) -> None:
    """Scores drawn on both sides of the threshold, so that masks differ at once."""
    generator = torch.Generator().manual_seed(task)
    options = {"spread": "uniform", **SELECT[net.levels], **options}
    net.begin_task(task, generator=generator, **options)


def train(
    net: PiggybackNetwork,
    task: int,
    inputs: Callable[..., Tensor] = images,
    *,
    optimizer: str = "adamw",
    steps: int = 3,
    everything: bool = False,
    set_to_none: bool = True,
    finish: bool = True,
) -> torch.optim.Optimizer:
    """Begin a task and train it; ``everything``: the optimizer gets all of net.parameters()."""
    begin(net, task)
    parameters = net.parameters() if everything else net.task_parameters(task)
    step = OPTIMIZERS[optimizer](parameters)
    for i in range(steps):
        step.zero_grad(set_to_none=set_to_none)
        x = inputs(8, seed=100 * task + i)
        with net.task(task):
            nn.functional.cross_entropy(net(x), torch.arange(8) % CLASSES[task]).backward()
        step.step()
    if finish:
        net.finish_task(task)
    return step
