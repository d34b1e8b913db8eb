"""Batches of a dataset: cut out of memory, or read one by one, by workers too."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from maskcl.problems.reading import read
from maskcl.problems.worker import Failure, Jobs, Reader, as_it_is, ignore_interrupts
from maskcl.scenarios.base import length
from maskcl.scenarios.items import ItemError
from maskcl.scenarios.memory import subset_rows, taker

# Torch's warning of more workers than CPUs, two lines long; how many is the caller's to choose.
_MANY = "This DataLoader will create"


def batches(
    dataset: Any, parts: Iterable[Tensor], generator: torch.Generator | None = None
) -> Iterator[Any]:
    """A batch of samples for each part.

    Args:
        dataset: map-style, a tensor, or what `Loader.of` makes of one.
        parts: int64 [n] each, which samples.
        generator: gives each batch a seed for what its samples draw while they are read, so that
            neither workers nor what else draws changes them; None leaves the process's generators
            to them. Batches that are cut out of memory draw nothing.

    Raises:
        ItemError: a sample cannot be read, or is not like the others.
    """
    if isinstance(dataset, Loaded):
        yield from dataset.loader.batches(dataset.dataset, parts, generator)
    elif (take := taker(dataset)) is not None:
        for rows in parts:
            yield take(rows)
    else:
        for rows in parts:
            yield read(dataset, rows.tolist(), _seed(generator))


class Loader:
    """Reads batches in worker processes, where samples are read one by one; else does nothing.

    Workers are started when they are first needed, serve all datasets, and end with the outermost
    ``with`` block, whatever ends it. Batches are the same for any number of workers.

    Args:
        workers: processes; 0 reads in this one.
        datasets: those to come, as far as known: workers are started anew for any other.
        pin: copies batches into pinned memory, from where a GPU takes them without waiting.
        context: how processes are started, "fork", "spawn" or "forkserver"; None for Python's way.

    Raises:
        ValueError: not such a number.
    """

    def __init__(
        self,
        workers: int = 0,
        datasets: Iterable[Any] = (),
        *,
        pin: bool = False,
        context: str | None = None,
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ValueError(f"workers is {workers!r}, wanted an integer of at least 0")
        self.workers = workers
        self._pin, self._context = pin, context
        self._datasets = [part for part in datasets if self.of(part) is not part]
        self._loader: DataLoader[Any] | None = None
        self._jobs = Jobs()
        self._is_busy = False
        self._depth = 0

    def of(self, dataset: Any) -> Any:
        """A `Loaded` where there are workers for it, else the dataset itself."""
        if self.workers == 0 or not hasattr(dataset, "__getitem__") or taker(dataset):
            return dataset
        return Loaded(dataset, self)

    def __enter__(self) -> Loader:
        self._depth += 1
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        self.close()
        # Torch raises it as soon as a worker is killed, whatever is run at that moment.
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker"):
            raise RuntimeError(self._ended(error)) from error

    def close(self) -> None:
        """End the worker processes; they are started again when needed."""
        loader, self._loader = self._loader, None
        if loader is not None and loader._iterator is not None:
            # torch has no public way; waiting for the garbage collector would leave them running
            # while an error's traceback is kept.
            loader._iterator._shutdown_workers()  # type: ignore[attr-defined]

    def batches(
        self, dataset: Any, parts: Iterable[Tensor], generator: torch.Generator | None
    ) -> Iterator[Any]:
        """As `batches`. Inside another epoch that the workers read, it is read here."""
        if self._is_busy:
            for rows in parts:
                yield read(dataset, rows.tolist(), _seed(generator))
            return
        self._is_busy = True
        try:
            yield from self._read(dataset, parts, generator)
        finally:
            self._is_busy = False

    def _read(
        self, dataset: Any, parts: Iterable[Tensor], generator: torch.Generator | None
    ) -> Iterator[Any]:
        while type(dataset) is Subset:  # the workers have what it is of
            parts = _within(subset_rows(dataset), parts)
            dataset = dataset.dataset
        loader, which = self._started(dataset)
        self._jobs.jobs = ((which, _seed(generator), rows.tolist()) for rows in parts)
        found = self._first(loader)
        while True:
            try:
                batch = next(found)
            except StopIteration:
                return
            except Exception as error:  # what a sample does comes as a Failure
                self.close()
                raise RuntimeError(self._ended(error)) from error
            if isinstance(batch, Failure):
                raise ItemError(batch.sentence) from batch.cause
            yield batch

    def _ended(self, error: Exception) -> str:
        return (
            f"Trainer: a worker process that reads samples ended ({_line(error)}): is there memory"
            f" (of /dev/shm too) for {self.workers} workers? workers=0 needs none"
        )

    def _started(self, dataset: Any) -> tuple[DataLoader[Any], int]:
        """The workers, and the dataset's number among theirs."""
        known = [place for place, other in enumerate(self._datasets) if other is dataset]
        if not known:
            self.close()
            known = [len(self._datasets)]
            self._datasets.append(dataset)
        if self._loader is None:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", _MANY)
                self._loader = self._made()
        return self._loader, known[0]

    def _made(self) -> DataLoader[Any]:
        return DataLoader(
            Reader(self._datasets),
            batch_size=None,
            sampler=self._jobs,  # type: ignore[arg-type]
            collate_fn=as_it_is,
            num_workers=self.workers,
            pin_memory=self._pin,
            persistent_workers=True,
            worker_init_fn=ignore_interrupts,
            multiprocessing_context=self._context,
            generator=torch.Generator(),  # else it draws from the process's
        )

    def _first(self, loader: DataLoader[Any]) -> Iterator[Any]:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Got pickle error")  # it is told below
                warnings.filterwarnings("ignore", _MANY)
                return iter(loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            self.close()
            raise RuntimeError(
                f"Trainer: workers is {self.workers}, and a dataset cannot be sent to a process"
                f" ({_line(error)}): wanted functions and classes at the top level of a module, or"
                " workers=0"
            ) from error


class Loaded(Dataset):
    """A dataset whose batches a `Loader` reads; its samples are those of the dataset."""

    def __init__(self, dataset: Any, loader: Loader) -> None:
        self.dataset, self.loader = dataset, loader

    def __len__(self) -> int:
        return length(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]


def _within(chosen: Tensor, parts: Iterable[Tensor]) -> Iterator[Tensor]:
    return (chosen[rows] for rows in parts)


def _seed(generator: torch.Generator | None) -> int | None:
    if generator is None:
        return None
    return int(torch.randint(2**62, (), generator=generator))


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1][:200] if text else type(error).__name__
