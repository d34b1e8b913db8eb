"""Image scenarios by name: how each is cut, where its images lie, what suits it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskcl.scenarios import idx_files, image_folders, published_files, sources, vision
from maskcl.scenarios import sequence as sequences
from maskcl.scenarios.base import Scenario, ScenarioError
from maskcl.scenarios.images import Channels
from maskcl.scenarios.sources import Images
from maskcl.settings import Setting

SETTINGS = ("task", "domain", "class")


@dataclass(frozen=True)
class Source:
    """Where images come from.

    Attributes:
        read: (folder, seed) -> the images; the folder is None where ``reads_data`` is False.
        is_normalised: whether mean and standard deviation of the training images are taken out
            where nothing else is asked for.
        model: of ``maskcl.models`` that suits it where its pixels are in their places.
        batch_size: that suits it.
        epochs: a task, with that model.
        reads_data: whether there is a folder.
    """

    read: Callable[[Any, int], Images]
    is_normalised: bool = True
    model: str = "mlp"
    batch_size: int = 64
    epochs: int = 10
    reads_data: bool = True


def _idx(name: str, *, is_normalised: bool = True) -> Source:
    return Source(lambda data, seed: idx_files.idx(name, data), is_normalised)


def _cifar(name: str) -> Source:
    return Source(lambda data, seed: published_files.cifar(name, data), model="conv", epochs=20)


SOURCES: dict[str, Source] = {
    "digits": Source(
        lambda data, seed: sources.digits(seed), False, batch_size=16, reads_data=False
    ),
    "mnist": _idx("mnist", is_normalised=False),
    "fashion-mnist": _idx("fashion-mnist"),
    "kmnist": _idx("kmnist"),
    "usps": Source(lambda data, seed: published_files.usps(data)),
    "notmnist": Source(idx_files.notmnist),
    "cifar10": _cifar("cifar10"),
    "cifar100": _cifar("cifar100"),
    "svhn": Source(lambda data, seed: published_files.svhn(data), model="conv", epochs=20),
    "tiny-imagenet": Source(
        lambda data, seed: image_folders.tiny_imagenet(data), model="resnet18", epochs=20
    ),
}


@dataclass(frozen=True)
class Named:
    """What a name stands for.

    Attributes:
        cut: split, permuted, images (any folder's, split) or sequence.
        source: one of ``SOURCES``; None for images and sequence.
        tasks: its own number of tasks; None where that depends on the data.
        setting: where none is asked for.
        model, batch_size, epochs: that suit it.
    """

    cut: str
    source: str | None
    tasks: int | None
    setting: str
    model: str = "conv"
    batch_size: int = 64
    epochs: int = 20

    @property
    def reads_data(self) -> bool:
        """Whether it is made of files in a folder."""
        return self.source is None or SOURCES[self.source].reads_data


def _split(source: str, tasks: int = 5) -> Named:
    own = SOURCES[source]
    return Named("split", source, tasks, "task", own.model, own.batch_size, own.epochs)


def _permuted(source: str) -> Named:
    # Neighbours mean nothing any more: no convolution.
    own = SOURCES[source]
    return Named("permuted", source, 10, "domain", "mlp", own.batch_size, own.epochs)


_TASKS = {"cifar100": 10, "tiny-imagenet": 10}

IMAGES: dict[str, Named] = {
    **{f"split-{source}": _split(source, _TASKS.get(source, 5)) for source in SOURCES},
    **{f"permuted-{source}": _permuted(source) for source in SOURCES if source != "tiny-imagenet"},
    "images": Named("images", None, None, "task"),
    "sequence": Named("sequence", None, None, "task"),
}


def in_words() -> str:
    """The names, for a person: those that are cut in both ways together."""
    both = [source for source in SOURCES if f"permuted-{source}" in IMAGES]
    rest = [name for name in IMAGES if name.partition("-")[2] not in both]
    cut = f"split-SET or permuted-SET (as split-digits), SET out of {', '.join(both)}"
    return f"{cut}; {', '.join(rest)}"


@dataclass(frozen=True)
class Wanted:
    """How an image scenario is asked for, see ``scenarios.load``."""

    name: str
    data: Path | None
    seed: int
    size: int | None = None
    datasets: Sequence[str] | None = None


def load_images(
    wanted: Wanted,
    setting: Setting,
    tasks: int | None,
    *,
    padding: int = 0,
    normalise: tuple[Channels, Channels] | None = None,
    shuffle: bool = False,
    groups: Sequence[Sequence[int]] | None = None,
) -> Scenario:
    """The scenario of that name.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    named = IMAGES[wanted.name]
    if named.cut == "sequence":
        if groups is not None:
            raise ScenarioError("sequence: each data set is a task: groups cannot be")
        sets = {}
        for name, images in _sequence_of(wanted, tasks, shuffle).items():
            own = sources.statistics(images) if normalise is None else normalise
            sets[name] = sources.prepared(sequences.coloured(images), padding, own)
        return sequences.sequence(sets, setting, wanted.seed)
    images = read_images(wanted, padding, normalise)
    if tasks is None and groups is None:
        tasks = named.tasks or max(1, min(5, len(images.labels.unique()) // 2))
    cut: Any = vision.permuted if named.cut == "permuted" else vision.split
    made: Scenario = cut(
        wanted.name, images, setting, wanted.seed, tasks, shuffle=shuffle, groups=groups
    )
    return made


def read_images(
    wanted: Wanted, padding: int = 0, normalise: tuple[Channels, Channels] | None = None
) -> Images:
    """The images that a scenario other than a sequence is cut from, framed and normalised.

    Raises:
        ScenarioError: with one sentence, whatever is wrong.
    """
    named = IMAGES[wanted.name]
    if wanted.datasets is not None:
        raise ScenarioError(f"{wanted.name} is one data set: datasets are of sequence")
    if named.source is not None and wanted.size is not None:
        raise ScenarioError(f"{wanted.name} has a size of its own: size is of images, sequence")
    _check_size(wanted.size)
    folder = _folder(wanted, named.reads_data)
    if named.source is not None:
        own = SOURCES[named.source]
        return _prepared(own, own.read(folder, wanted.seed), padding, normalise)
    assert folder is not None
    found = image_folders.image_folder(folder, wanted.seed, wanted.size)
    return _prepared(None, found, padding, normalise)


def _sequence_of(wanted: Wanted, tasks: int | None, shuffle: bool) -> dict[str, Images]:
    names = sequences.order_of(tuple(SOURCES), wanted.datasets, wanted.seed, tasks, shuffle)
    size = sequences.SIZE if wanted.size is None else wanted.size
    _check_size(size)
    folder = _folder(wanted, any(SOURCES[name].reads_data for name in names))
    found = {name: SOURCES[name].read(folder, wanted.seed) for name in names}
    return {name: sequences.brought_to(images, size) for name, images in found.items()}


def _check_size(size: int | None) -> None:
    if size is not None and size < 1:
        raise ScenarioError(f"size must be at least 1, got {size}")


def _folder(wanted: Wanted, reads_data: bool) -> Path | None:
    """``--data`` where files are read, None where there are none."""
    if not reads_data:
        if wanted.data is not None:
            raise ScenarioError(f"{wanted.name} comes with scikit-learn and reads no --data")
        return None
    if wanted.data is None:
        raise ScenarioError(f"{wanted.name} reads files: say where they are with --data DIR")
    if not wanted.data.is_dir():
        raise ScenarioError(f"--data {wanted.data} is not a folder")
    return wanted.data


def _prepared(
    source: Source | None,
    images: Images,
    padding: int,
    normalise: tuple[Channels, Channels] | None,
) -> Images:
    """With the frame, and mean and standard deviation taken out: those asked for, or its own."""
    if normalise is None and (source is None or source.is_normalised):
        normalise = sources.statistics(images)
    return sources.prepared(images, padding, normalise)
