"""What a network takes and sends at 1,000 tasks, 70 B weights and 1,024 processes: arithmetic.

    python -m benchmarks.scaling

The tables of docs/scaling-arithmetic.md. Nothing is measured: tests hold the formulas to real
tensors and real messages of small networks.
"""

from __future__ import annotations

from dataclasses import dataclass

TASKS, RANKS = 1000, 1024
BANDWIDTH = 50e9
"""Bytes a second that a process sends, and gets, in a collective: an assumption."""
DEVICE = 80e9
"""Bytes of a GPU's memory."""


@dataclass(frozen=True)
class Decoder:
    """A decoder of the shape of Llama 2's, without biases.

    Attributes:
        layers, width, hidden, heads, kv_heads, vocabulary: as published for 70 B.
    """

    layers: int = 80
    width: int = 8192
    hidden: int = 28672
    heads: int = 64
    kv_heads: int = 8
    vocabulary: int = 32000

    @property
    def values(self) -> int:
        """Outputs of the layer of keys, and of that of values."""
        return self.width // self.heads * self.kv_heads

    @property
    def block(self) -> int:
        """Weights of a block: queries and output, keys and values, three of the gated layers."""
        return self.width * (2 * self.width + 2 * self.values + 3 * self.hidden)

    @property
    def weights(self) -> int:
        """Of all blocks, the table and the output layer: what masks of weights reach."""
        return self.layers * self.block + 2 * self.vocabulary * self.width

    @property
    def norms(self) -> int:
        """Two a block and one behind."""
        return (2 * self.layers + 1) * self.width

    @property
    def units(self) -> int:
        """HAT's: channels of the table, and the outputs of a block's seven layers."""
        return self.width + self.layers * (2 * self.values + 3 * self.width + 2 * self.hidden)


def words(tasks: int) -> int:
    """int64 words of a unit's bits."""
    return -(-tasks // 64)


def unit_bits(units: int, tasks: int) -> int:
    """Bytes of HAT's record of which task uses which unit."""
    return 8 * words(tasks) * units


def mask_bits(weights: int, tasks: int) -> int:
    """Bytes of Piggyback's masks, of one layer: a bit a weight, in words of 32."""
    return 4 * tasks * -(-weights // 32)


def sent(size: float, ranks: int = RANKS) -> float:
    """Bytes that each process sends, and gets, in a ring's all-gather or reduce-scatter of all."""
    return size * (ranks - 1) / ranks


def held(model: Decoder, tasks: int = TASKS, ranks: int = RANKS) -> list[tuple[str, str, float]]:
    """(method, what, bytes a process)."""
    weights, units = model.weights, model.units
    return [
        ("all", "weights in float32", 4 * weights / ranks),
        ("all", "gradients and AdamW's two moments of what trains", 12 * weights / ranks),
        ("all", "a block gathered in bfloat16, and the next one", 2 * 2 * model.block),
        ("all", "norms of all tasks", 4 * tasks * model.norms / ranks),
        ("HAT", "bits of units, in every process", unit_bits(units, tasks)),
        ("HAT", "embeddings of all tasks", 4 * tasks * units / ranks),
        ("HAT", "embeddings of all tasks, gathered in bfloat16", 2 * tasks * units),
        ("HAT", "a guard's copy, of optimizers without a protected step", 4 * weights / ranks),
        ("Piggyback", "masks", mask_bits(weights, tasks) / ranks),
        ("Piggyback", "a task's mask of one block, gathered", mask_bits(model.block, 1)),
        ("Piggyback", "scores of a block, gathered", 4 * model.block),
        ("Piggyback", "scores of all blocks, where backward keeps them", 4 * weights),
        ("MAS, EWC", "importances", 4 * weights / ranks),
        ("MAS, EWC", "anchors", 4 * weights / ranks),
        ("MAS, EWC", 'measured with reduction="sample": weights and sums', (2 + 4) * weights),
        ("MAS, EWC", 'measured with reduction="batch": sums', 4 * weights / ranks),
    ]


def step(model: Decoder) -> list[tuple[str, str, float]]:
    """(method, what, bytes that a process sends in a step)."""
    weights = model.weights
    return [
        ("all, FSDP2", "weights for forward, and again for backward, bfloat16", sent(4 * weights)),
        ("HAT, MAS, EWC: FSDP2", "gradients in float32", sent(4 * weights)),
        ("HAT: FSDP2", "embeddings of all tasks, in bfloat16", sent(2 * TASKS * model.units)),
        ("all, FSDP2", "norms of all tasks, twice", sent(2 * 2 * TASKS * model.norms)),
        ("HAT(clip=)", "one number a way of sharding", 4),
        ("MAS, EWC", "the penalty's value", 4),
        ("Piggyback: FSDP2", "scores gathered in float32, their gradients", sent(8 * weights)),
        ("all, DDP", "gradients in float32, reduced and spread", 2 * sent(4 * weights)),
    ]


def task(model: Decoder, tasks: int = TASKS) -> list[tuple[str, str, float]]:
    """(method, what, bytes that a process sends once a task)."""
    weights, layers = model.weights, 7 * model.layers + 2
    own = tasks * (2 * model.layers + 2)  # norms, and embedding or head
    hat, piggyback = (6 * sent(8 * (count + own)) for count in (layers, layers * tasks))
    return [
        ("HAT", "fingerprints: as it begins, ends, and has ended", hat),
        ("HAT", "its embedding, as it ends", sent(4 * model.units)),
        ("Piggyback", "fingerprints: as it begins, ends, and has ended", piggyback),
        (
            "Piggyback",
            "scores, to be bits: as it begins, twice as it ends",
            3 * sent(4 * weights),
        ),
        ("MAS, EWC", 'reduction="sample": weights gathered, sums reduced', sent(6 * weights)),
        ("MAS, EWC", 'reduction="batch": each batch, as a step', sent(8 * weights)),
    ]


Counts = dict[str, dict[str, int]]


def messages(layers: int, parameters: int, batches: int) -> dict[str, Counts]:
    """Of maskcl beside FSDP2's own, by method, for a task that others were finished before.

    Args:
        layers: with masks of weights.
        parameters: that tasks share.
        batches: a process measures importances on.
    """
    return {
        "HAT": {"begin": {"all-reduce": 3}, "step": {}, "end": {"all-reduce": 5, "all-gather": 2}},
        "Piggyback": {
            "begin": {"all-reduce": 1 + layers, "all-gather": layers},
            "step": {"all-gather": layers, "reduce-scatter": layers},
            "end": {"all-reduce": 3 + 2 * layers, "all-gather": 1 + 2 * layers},
        },
        'MAS, EWC, reduction="sample"': {
            "begin": {},
            "step": {"all-reduce": 1},
            "end": {"all-reduce": 5, "all-gather": 1, "reduce-scatter": parameters},
        },
        'MAS, EWC, reduction="batch"': {
            "begin": {},
            "step": {"all-reduce": 1},
            "end": {"all-reduce": 5 + 2 * batches, "all-gather": 1},
        },
    }


def size(count: float) -> str:
    """Bytes for a person."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def seconds(count: float) -> str:
    """Of so many bytes; what is small takes as long as a message does anyway."""
    time = count / BANDWIDTH
    return f"{time:.2g} s" if time >= 1e-4 else "that of a message"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of Markdown."""
    lines = [heads, ("---",) * len(heads), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def tables(model: Decoder) -> list[list[str]]:
    """What the page shows."""
    facts = [
        ("weights of a block", f"{model.block:,}"),
        ("weights", f"{model.weights:,}"),
        ("numbers of norms, a task", f"{model.norms:,}"),
        ("units of HAT", f"{model.units:,}"),
        ("words of a unit at 1,000 tasks", str(words(TASKS))),
    ]
    memory = [(a, b, size(n), "no" if n > DEVICE else "yes") for a, b, n in held(model)]
    stepped, learned = (
        [(a, b, size(n), seconds(n)) for a, b, n in rows] for rows in (step(model), task(model))
    )
    counted = [
        (name, *(", ".join(f"{n} {kind}" for kind, n in part.items()) for part in parts.values()))
        for name, parts in messages(7 * model.layers + 2, 9 * model.layers + 3, 100).items()
    ]
    return [
        table(("of the shape", ""), facts),
        table(("method", "held by a process", "", "fits"), memory),
        table(("engine and method", "sent in a step", "by each", "time"), stepped),
        table(("method", "sent for a task", "by each", "time"), learned),
        table(("method", "as a task begins", "in a step", "as it ends"), counted),
    ]


def main() -> None:
    """Print the tables."""
    for lines in tables(Decoder()):
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
