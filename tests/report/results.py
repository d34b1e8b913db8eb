"""Made-up results of the form that the command line writes, and what reads a page of them."""

import html.parser
import io

import matplotlib as mpl
import matplotlib.image as mpl_image
import numpy as np

from maskcl import metrics, report
from maskcl.report import drawing

LAYERS = {"1": 64, "3": 1000, "heads.0": 6}
HELD = {"1.weight": 400, "1.bias": 100, "3.weight": 500}


def hat_result(tasks=3, seed=0, acc=0.97, epochs=2):
    """A HAT run: T tasks, every accuracy ``acc``, layers "1" and "3" of 5 and 7 units."""
    matrix = np.full((tasks, tasks), np.nan)
    for task in range(tasks):
        matrix[task:, task] = acc
    masks = np.zeros((tasks, 12), dtype=bool)
    for task in range(tasks):
        masks[task, task : task + 4] = True
    spans = {"1": (0, 5), "3": (5, 12)}
    used = [
        {name: float(masks[: t + 1, a:b].any(axis=0).mean()) for name, (a, b) in spans.items()}
        for t in range(tasks)
    ]
    return {
        "format": "maskcl-result",
        "method": "hat",
        "scenario": {
            "name": "split-<digits>", "setting": "task", "seed": seed, "source": "made up",
            "num_tasks": tasks, "classes": [[2 * t, 2 * t + 1] for t in range(tasks)],
            "outputs": [2] * tasks, "train_sizes": [30] * tasks, "test_sizes": [10] * tasks,
            "input_shape": [1, 8, 8],
        },
        "configuration": {
            "model": "mlp", "epochs": epochs, "optimizer": "adam", "seed": seed, "out": f"r{seed}",
        },
        "parameters": 1234,
        "accuracy": [[None if np.isnan(v) else float(v) for v in row] for row in matrix],
        "metrics": {k: m.to_json() for k, m in metrics.all_metrics(matrix).items()},
        "capacity": used,
        "protected": [{"1.weight": 0.1 * t, "1.bias": 0.5, "3.weight": 0.2} for t in range(tasks)],
        "protected_share": 0.25,
        "seconds": [1.0] * tasks,
        "mask_bytes": 2,
        "masks": report.encode_masks(masks, spans),
        "environment": {"torch": "9.9"},
    }  # fmt: skip


def piggyback_result(tasks=3, seed=0, acc=0.95, sizes=LAYERS, base=None, planes=1):
    """A Piggyback run: layer i of n has (1 + i) / (2 n) of its weights off, plus 1 % a task."""
    matrix = np.full((tasks, tasks), np.nan)
    for task in range(tasks):
        matrix[task:, task] = acc
    words = planes * sum(4 * -(-size // 32) for size in sizes.values())
    return {
        "format": "maskcl-result",
        "method": "piggyback",
        "scenario": hat_result(tasks, seed)["scenario"],
        "summary": "made up",
        "configuration": {
            "model": "mlp", "epochs": 2, "optimizer": "adam", "seed": seed, "out": f"p{seed}",
            "base": f"/somewhere/{seed}",
        },
        "parameters": 1100,
        "accuracy": [[None if np.isnan(v) else float(v) for v in row] for row in matrix],
        "metrics": {k: m.to_json() for k, m in metrics.all_metrics(matrix).items()},
        "base": base or pretrained(seed),
        "masked_weights": dict(sizes),
        "off": [
            {name: (1 + i) / (2 * len(sizes)) + 0.01 * task for i, name in enumerate(sizes)}
            for task in range(tasks)
        ],
        "differing": [[0.01 * abs(i - j) * (i + j) for j in range(tasks)] for i in range(tasks)],
        "mask_files": [
            {"task": task, "file": f"masks/task-{task + 1}.safetensors",
             "bytes": words + 600 + 80 + task, "words_bytes": words, "own_bytes": 80}
            for task in range(tasks)
        ],
        "seconds": [1.0] * tasks,
        "environment": {"torch": "9.9"},
    }  # fmt: skip


def pretrained(seed, sha256="ab" * 32, **other):
    """What a result says about a base that was trained before."""
    base = {"source": "rotated", "trained_on": "turned <digits>", "accuracy": 0.9712, "epochs": 5}
    return {**base, "seed": seed, "sha256": sha256, **other}


def mas_result(tasks=3, seed=0, method="mas", sizes=HELD, forgets=0.01, strength=2.0):
    """A MAS or EWC run: parameter i has importance 10^-i times the tasks; the last task moves it i.

    Every task's accuracy falls by ``forgets`` with each later task; the first has no drift.
    """
    matrix = np.full((tasks, tasks), np.nan)
    for task in range(tasks):
        matrix[task:, task] = 0.98 - forgets * np.arange(tasks - task)
    own = {"labels": "data"} if method == "ewc" else {"norm": "sum"}
    return {
        "format": "maskcl-result",
        "method": method,
        "scenario": hat_result(tasks, seed)["scenario"],
        "summary": "made up",
        "configuration": {
            "model": "mlp", "epochs": 2, "optimizer": "adam", "seed": seed, "out": f"m{seed}",
            "strength": strength, "reduction": "sample", **own,
        },
        "parameters": 1600,
        "accuracy": [[None if np.isnan(v) else float(v) for v in row] for row in matrix],
        "metrics": {k: m.to_json() for k, m in metrics.all_metrics(matrix).items()},
        "regularised": dict(sizes),
        "importance": [
            {name: (task + 1) * 10.0**-i for i, name in enumerate(sizes)} for task in range(tasks)
        ],
        "drift": [
            {name: 0.001 * i for i, name in enumerate(sizes)} if task else {}
            for task in range(tasks)
        ],
        "seconds": [1.0] * tasks,
        "environment": {"torch": "9.9"},
    }  # fmt: skip


def in_training(tasks=5, done=2, epochs=4):
    """A HAT run on its way: ``done`` tasks are finished, the next one has two epochs."""
    whole = hat_result(tasks)
    result = {
        key: value for key, value in whole.items()
        if key not in ("masks", "mask_bytes", "protected_share", "environment", "parameters")
    }  # fmt: skip
    counts = [epochs] * done + [2] + [0] * (tasks - done - 1)
    result["accuracy"][done:] = [[None] * tasks for _ in range(tasks - done)]
    result["capacity"] = result["capacity"][:done]
    result["protected"] = result["protected"][:done]
    return result | by_epoch(counts)


def by_epoch(counts):
    """The lists by task and epoch of a run with so many epochs of each task."""
    return {
        "losses": [[1.0 / (e + 1) for e in range(n)] for n in counts],
        "training_accuracies": [[1 - 0.4 / (e + 1) for e in range(n)] for n in counts],
        "validation_scores": [[1 - 0.5 / (e + 1) for e in range(n)] for n in counts],
        "free_by_epoch": [[1 / (t + 1) - 0.01 * e for e in range(n)] for t, n in enumerate(counts)],
        "best_epochs": [n - 1 if n else None for n in counts],
    }


def border_is_empty(picture, result):
    """Whether nothing of a picture is cut off: what is ends in ink at the border."""
    buffer = io.BytesIO()
    with mpl.rc_context(drawing.style()):
        picture.draw(result).savefig(
            buffer, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.04
        )
    buffer.seek(0)
    pixels = mpl_image.imread(buffer, "png")[..., :3]
    return all((edge == 1.0).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))


class Links(html.parser.HTMLParser):
    """Collects every address a page refers to, and its text."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.words.append(data)
