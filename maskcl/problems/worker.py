"""What runs in a worker process: it reads the batches that it is asked for."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from maskcl.problems.reading import read
from maskcl.scenarios.items import ItemError

# A batch to read: which dataset, its seed, and which samples.
Job = tuple[int, int | None, list[int]]


class Jobs:
    """A sampler of jobs, new ones for every epoch."""

    def __init__(self) -> None:
        self.jobs: Iterator[Job] = iter(())

    def __iter__(self) -> Iterator[Job]:
        return self.jobs


@dataclass(frozen=True)
class Failure:
    """An `ItemError` on its way from a worker."""

    sentence: str
    cause: BaseException | None


class Reader(Dataset):
    """What lives in a worker: job -> batch, or a `Failure`."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        self._datasets = list(datasets)

    def __getitem__(self, job: Job) -> Any:
        which, seed, rows = job
        try:
            return read(self._datasets[which], rows, seed)
        except ItemError as error:
            return Failure(str(error), _sendable(error.__cause__))


def as_it_is(batch: Any) -> Any:
    """A batch is put together in `read`; torch has nothing to add."""
    return batch


def ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the first one ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _sendable(cause: BaseException | None) -> BaseException | None:
    """An exception that another process can have: itself, or its words."""
    try:
        pickle.loads(pickle.dumps(cause))
    except Exception:
        return RuntimeError(f"{type(cause).__name__}: {cause}")
    return cause
