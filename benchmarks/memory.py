"""Memory of conversions and training steps, in units of the model's weights.

    python -m benchmarks.memory [--real]

Bytes are those of the tensors that are alive, as torch hands them out, which is the same on any
device: models lie on the meta device, which computes nothing, unless ``--real`` is given: then the
smaller stack of blocks is trained on the CPU for a step of its second task, and another.

- converted: the most that was alive beside the given model while it was converted.
- held: the network's parameters and buffers, for two tasks.
- trained: what a task trains, and gradients of it.
- plain: what autograd keeps of the plain model's forward for backward, for one sample (or 16
  words), its weights apart; saved: what it keeps of the network's beyond that.
- step: AdamW's state and whatever protects finished tasks, after one step; resumed: after its state
  was loaded into a new optimizer, protected anew, and one more step; guard: the same of NAdam,
  whose own step is left to it and put right behind it.
"""

from __future__ import annotations

import argparse
import copy
import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from maskcl import models
from maskcl.nn import to_hat, to_importance, to_piggyback
from maskcl.optim import AdamW, protect


class Block(nn.Module):
    """Attention and a gated layer, each behind an RMSNorm and added to the stream."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width, 1e-5), nn.RMSNorm(width, 1e-5)
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        h = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(h)) * self.up(h))


def stack(width: int, inner: int, depth: int, words: int) -> nn.Module:
    """A language model's shape: a table, blocks, and a layer that gives scores of all words."""
    blocks = [Block(width, inner, width // 64) for _ in range(depth)]
    table, last = nn.Embedding(words, width), nn.Linear(width, words, bias=False)
    return nn.Sequential(table, *blocks, nn.RMSNorm(width, 1e-5), last)


def _images(make: Callable[..., nn.Module], **options: Any) -> tuple[nn.Module, Tensor]:
    return make((3, 224, 224), 1000, **options), torch.randn(1, 3, 224, 224)


def _words(dtype: torch.dtype, *sizes: int) -> tuple[nn.Module, Tensor]:
    return stack(*sizes).to(dtype), torch.zeros(1, 16, dtype=torch.int64)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet-152": lambda: _images(models.resnet152),
    "ViT-Small": lambda: _images(models.vit_small, patch=16),
    "stack of 1.1 B, bfloat16": lambda: _words(torch.bfloat16, 2048, 5632, 19, 32000),
}
REAL = {"stack of 200 M": lambda: _words(torch.float32, 1024, 2816, 14, 8000)}
HALF = "Piggyback, bfloat16 scores"
CONVERSIONS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "HAT": lambda model, x: to_hat(model, 2, x),
    "Piggyback": lambda model, x: to_piggyback(model, 2),
    HALF: lambda model, x: to_piggyback(model, 2),
    "MAS, EWC": lambda model, x: to_importance(model, 2),
}
COLUMNS = (
    "converted",
    "held",
    "trained",
    "plain",
    "saved",
    "step",
    "resumed",
    "guard",
    "guard resumed",
)


class Alive(TorchDispatchMode):
    """Counts the bytes of the storages that were made inside and are alive.

    Attributes:
        sizes: of those of this moment, by storage.
        most: that their sum was at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        given = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _key(tensor) not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.sizes:
            return
        self.sizes[key] = size
        self.now += size
        self.most = max(self.now, self.most)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.sizes.pop(key, None)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def storages_of(tensors: Any) -> dict[int, int]:
    """Bytes of the tensors' storages, by storage."""
    return {_key(t): t.untyped_storage().nbytes() for t in tensors}


def bytes_of(tensors: Any) -> int:
    """Of the storages of tensors, each counted once."""
    return sum(storages_of(tensors).values())


def saved_bytes(run: Callable[[], Tensor], known: list[Tensor]) -> tuple[int, Tensor]:
    """What a forward keeps for backward besides ``known``; and its output."""
    own = {_key(t) for t in known}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _key(tensor) not in own:
            kept[_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    return sum(kept.values()), output


def row(make: Callable[[], tuple[nn.Module, Tensor]], method: str, device: str) -> dict[str, float]:
    """One network's figures in bytes."""
    with torch.device(device):
        model, x = make()
    weights = bytes_of(model.parameters())
    plain, _ = saved_bytes(lambda: model(x), [*model.parameters(), x])
    with Alive() as alive:
        net = CONVERSIONS[method](model, x)
    found: dict[str, float] = {"weights": weights, "converted": alive.most}
    found["held"] = bytes_of([*net.parameters(), *net.buffers()])
    if not x.is_meta and method == "HAT":  # what protects finished tasks
        net.finish_task(0)
    task = 1 if method == "HAT" and not x.is_meta else 0
    net.begin_task(task, **({"score_dtype": torch.bfloat16} if method == HALF else {}))
    scale = {"scale": 10.0} if method == "HAT" else {}
    with net.task(task, **scale):
        kept, y = saved_bytes(lambda: net(x), [*net.parameters(), *net.buffers(), x])
        y.float().sum().backward()
        del y
    trained = net.task_parameters(task)
    found["trained"] = bytes_of([*trained, *(p.grad for p in trained if p.grad is not None)])
    found |= {"plain": plain, "saved": kept - plain}
    if not x.is_meta:
        drawn = functools.partial(AdamW, rounding="stochastic")
        kind = drawn if method == HALF else torch.optim.AdamW
        found |= dict(zip(("step", "resumed"), _steps(net, task, kind), strict=True))
    if not x.is_meta and method == "HAT":
        guarded = _steps(net, task, torch.optim.NAdam)
        found |= dict(zip(("guard", "guard resumed"), guarded, strict=True))
    return found


def _steps(net: Any, task: int, kind: Callable[..., torch.optim.Optimizer]) -> list[int]:
    """What an optimizer and its protection hold after a step, and after a resumed one."""
    found = []
    state: Any = None
    for _ in range(2):
        gc.collect()
        with Alive() as alive:
            optimizer = kind(net.task_parameters(task), lr=1e-4)
            if state is not None:
                optimizer.load_state_dict(state)
            held = protect(optimizer, net) if hasattr(net, "protection") else None
            optimizer.step()
            gc.collect()
            # What was loaded is older than this count.
            loaded = [t for t in tree_leaves(optimizer.state_dict()) if isinstance(t, Tensor)]
            found.append(sum((alive.sizes | storages_of(loaded)).values()))
        state = copy.deepcopy(optimizer.state_dict())
        if held is not None:
            held.remove()
        del optimizer, held
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.memory")
    parser.add_argument("--real", action="store_true", help="train the smaller stack on the CPU")
    options = parser.parse_args()
    device = "cpu" if options.real else "meta"
    print(f"| network | method | weights, GB | {' | '.join(COLUMNS)} |")
    print("| --- " * (3 + len(COLUMNS)) + "|")
    for name, make in (REAL if options.real else MODELS).items():
        for method in CONVERSIONS:
            found = row(make, method, device)
            weights = found["weights"]
            cells = [f"{found[c] / weights:.2f}" if c in found else "" for c in COLUMNS]
            print(f"| {name} | {method} | {weights / 1e9:.2f} | {' | '.join(cells)} |", flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
