"""``maskcl pretrain``: train a plain backbone and keep it in a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskcl import models, scenarios
from maskcl.cli.common import (
    RunOptions,
    build_model,
    device_of,
    optimizer_factory,
    seeded_weights,
    table,
)
from maskcl.cli.folders import check_new, refusing
from maskcl.cli.options import CommandError, option
from maskcl.scenarios.image_names import IMAGES
from maskcl.scenarios.pretraining import SOURCES
from maskcl.training.environment import environment
from maskcl.training.pretrain import train_backbone, write_base

if TYPE_CHECKING:
    from rich.console import Console

    from maskcl.scenarios import Pretraining

LEARNING_RATES = {"sgd": 0.05, "adam": 0.001, "adamw": 0.001}

# Used where no --epochs is given: MNIST's images in three positions are 162,000 examples, the
# digits 1,400 to 3,900.
EPOCHS = {"digits": 20, "others": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainOptions(RunOptions):
    """Train an ordinary network, the base that ``maskcl train piggyback`` masks."""

    MAY_CHANGE = ()

    source: str = option(
        "rotated: the scenario's training images, turned, never upright; digits: scikit-learn's, "
        "resized, for MNIST.",
        "rotated",
        choices=SOURCES,
    )
    model: str | None = option(
        f"{', '.join(models.NAMES)}.", None, shown="as maskcl train's", choices=models.NAMES
    )
    hidden: tuple[int, ...] | None = option("Widths of the mlp.", None, shown="200,200")
    dropout: float | None = option("Of the mlp.", None, shown="0", at_least=0, below=1)
    epochs: int | None = option(
        "Over the source.",
        None,
        shown=f"of digits {EPOCHS['digits']}, of others {EPOCHS['others']}",
        at_least=1,
    )
    lr: float | None = option("Learning rate.", None, shown=table(LEARNING_RATES), above=0)

    def __post_init__(self) -> None:
        problem = scenarios.problem_of(self.scenario)
        if problem not in ("vision", None):
            raise CommandError(
                f"{self.scenario} is a {problem} problem: pretrain learns from images, and "
                "`maskcl train piggyback` takes a random base for graphs"
            )
        self._complete("lr", LEARNING_RATES.get(self.optimizer))
        of_digits = self.source == "digits" or scenarios.images_of(self.scenario) == "digits"
        self._complete("epochs", EPOCHS["digits" if of_digits else "others"])
        images = IMAGES.get(self.scenario)
        self._complete("model", None if images is None else images.model)
        super().__post_init__()


def pretrain(options: PretrainOptions, console: Console) -> dict[str, Any]:
    """Train and write the folder; returns the content of its config.json.

    Raises:
        CommandError: it cannot start; nothing has been written then.
    """
    directory = Path(options.out)
    check_new(directory)
    device = device_of(options.device)
    with refusing():
        data = _load(options)
    with seeded_weights(options.seed):
        model = build_model(
            str(options.model),
            data.input_shape,
            data.classes,
            hidden=options.hidden,
            dropout=options.dropout,
        )
    # PretrainOptions puts the numbers.
    assert options.epochs is not None
    assert options.batch_size is not None
    assert options.lr is not None
    sizes = len(data.train), len(data.held_out)  # type: ignore[arg-type]
    console.print(
        f"{options.model} on {data.words}: {sizes[0]} examples, {sizes[1]} held out",
        soft_wrap=True,
        highlight=False,
    )

    def show(epoch: int, loss: float, accuracy: float) -> None:
        line = f"epoch {epoch + 1}/{options.epochs} loss {loss:.4f} accuracy {accuracy:.4f}"
        console.print(line, soft_wrap=True, highlight=False)
        console.file.flush()

    accuracy = train_backbone(
        model,
        data,
        optimizer_factory(options, options.lr),
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed,
        device=str(device),
        on_epoch=show,
    )
    facts = {
        **_architecture(options, data),
        "source": data.source,
        "trained_on": data.words,
        "images": scenarios.images_of(options.scenario),
        "scenario": options.scenario,
        "seed": options.seed,
        "train_size": sizes[0],
        "held_out_size": sizes[1],
        "accuracy": accuracy,
        "epochs": options.epochs,
        "configuration": options.to_json(),
        "environment": environment(device),
    }
    return write_base(directory, model, facts)


def _architecture(options: PretrainOptions, data: Pretraining) -> dict[str, Any]:
    """The arguments that `models.build` makes the same module from."""
    return {
        "model": options.model,
        "hidden": None if options.hidden is None else list(options.hidden),
        "dropout": options.dropout,
        "input_shape": list(data.input_shape),
        "outputs": data.classes,
    }


def _load(options: PretrainOptions) -> Pretraining:
    try:
        return scenarios.load_pretraining(
            options.scenario,
            options.source,
            data=options.data,
            seed=options.seed,
            size=options.size,
        )
    except scenarios.ScenarioError as error:
        raise CommandError(str(error)) from None
