"""The settings of the table of training steps, in the order of what matters."""

from __future__ import annotations

from maskcl.bench import OPTIMIZERS, Setting

SMALL, MIDDLE = ("64-200-200-2", 16), ("784-400-400-10", 64)
LARGER = [MIDDLE, ("784-800-800-10", 64), ("784-2000-2000-10", 64)]
WIDTHS = [64, 128, 256, 512, 1024, 2048, 4096]
BATCHES = [1, 4, 16, 64, 256]


def pieces() -> dict[str, list[Setting]]:
    """Settings by the axis that they show."""
    both = (1, 2)
    widths = [(f"784-{width}-{width}-10", 64) for width in WIDTHS]
    return {
        "small": [Setting(*SMALL, o, t) for o in OPTIMIZERS for t in both],
        "mlps": [Setting(*mlp, o, t) for mlp in LARGER for o in OPTIMIZERS for t in both],
        "widths": [Setting(*mlp, "adamw", t) for t in both for mlp in widths],
        "batch": [Setting(MIDDLE[0], batch, "adamw") for batch in BATCHES],
        "schedule": [
            Setting(*mlp, o, schedule=True) for mlp in (SMALL, MIDDLE) for o in OPTIMIZERS
        ],
        "compiled": [
            Setting(*mlp, o, t, compiled=True)
            for mlp in (SMALL, *LARGER)
            for o in OPTIMIZERS
            for t in both
        ],
        "conv": [
            *(Setting("conv", 64, o, t) for o in ("sgd", "adamw") for t in both),
            *(Setting("resnet18", 8, "adamw", t) for t in both),
        ],
        "graph": [Setting("gcn", 60, o, t) for o in ("adam", "adamw") for t in both],
    }
