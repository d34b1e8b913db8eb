"""The settings of the table of training steps, in the order of what matters."""

from __future__ import annotations

from maskcl.bench import OPTIMIZERS, Setting

SMALL, MIDDLE = ("64-200-200-2", 16), ("784-400-400-10", 64)
MLPS = [SMALL, MIDDLE, ("784-800-800-10", 64), ("784-2000-2000-10", 64)]
WIDTHS = [64, 128, 256, 512, 1024, 2048, 4096]
CONV = [("conv", 64), ("resnet18", 16)]


def pieces() -> dict[str, list[Setting]]:
    """Settings by the axis that they show."""
    both = (1, 2)
    return {
        "small": [Setting(*SMALL, o, t) for o in OPTIMIZERS for t in both],
        "mlps": [Setting(*mlp, o, t) for mlp in MLPS[1:] for o in OPTIMIZERS for t in both],
        "widths": [Setting(f"784-{w}-{w}-10", 64, "adamw", t) for w in WIDTHS for t in both],
        "batch": [Setting(MIDDLE[0], n, "adamw") for n in (1, 4, 16, 64, 256)],
        "compiled": [Setting(*mlp, "adamw", compiled=True) for mlp in MLPS],
        "conv": [Setting(*net, o, t) for net in CONV for o in ("sgd", "adamw") for t in both],
        "graph": [Setting("gcn", 60, o, t) for o in ("adam", "adamw") for t in both],
    }
