"""CLArena's own pipeline, callbacks and heads drive these classes; where clarena is installed.

To run it: ``pip install clarena pytest`` into an environment, and there ``PYTHONPATH=. pytest
tests/compat/test_clarena_pipeline.py``.
"""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from tests.compat.clarena_tiny import CLASSES, FEATURES, OUTPUT

try:
    VERSION = importlib.metadata.version("clarena")
    import lightning
    from clarena.cl_datasets import CLDataset
    from clarena.pipelines.cl_main_expr import CLMainExperiment
    from omegaconf import OmegaConf
except ImportError as reason:
    pytest.skip(f"clarena cannot be imported here: {reason}", allow_module_level=True)

HERE = "tests.compat.test_clarena_pipeline"
OURS, THEIRS = "maskcl.compat.clarena", "clarena"
MODES = {"HAT": {"adjustment_mode": "hat"}, "AdaHAT": {"adjustment_mode": "adahat"}}
MODES["AdaHAT"] |= {"adjustment_intensity": 0.02}


class Tasks(CLDataset):
    """Three tasks on samples of one kind: which of the features from the task's on is largest."""

    def prepare_data(self) -> None:
        pass

    def get_cl_class_map(self, task_id: int) -> dict[str | int, int]:
        return {c: c for c in range(CLASSES)}

    def _data(self, seed: int) -> TensorDataset:
        chance = torch.Generator().manual_seed(10 * self.task_id + seed)
        x = torch.randn(48, FEATURES, generator=chance)
        return TensorDataset(x, x[:, self.task_id :].argmax(1) % CLASSES)

    def train_and_val_dataset(self) -> tuple[TensorDataset, TensorDataset]:
        return self._data(1), self._data(2)

    def test_dataset(self) -> TensorDataset:
        return self._data(3)


class Witness(lightning.Callback):
    """What each task answers when it has been trained."""

    answers: dict[int, Tensor] = {}  # noqa: RUF012 - the pipeline makes it, the test reads it

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self.answers[pl_module.task_id] = answer(pl_module, pl_module.task_id)


@torch.no_grad()
def answer(algorithm: Any, task: int) -> Tensor:
    x = torch.randn(8, FEATURES, generator=torch.Generator().manual_seed(9))
    return algorithm.eval()(x, "test", task_id=task)[0]


def config(
    package: str, algorithm: str, folder: Path, callbacks: list[str], paradigm: str = "TIL"
) -> Any:
    """An experiment as CLArena's documents configure it; the package is in two lines."""
    out = str(folder)
    by_class: dict[str, dict[str, Any]] = {
        "metrics.CLAccuracy": {"test_acc_matrix_plot_name": "acc.png"},
        "metrics.CLLoss": {"test_loss_cls_csv_name": "loss.csv"},
        "metrics.HATMasks": {
            "test_masks_dir_name": ".",
            "test_cumulative_masks_dir_name": ".",
        },
        "metrics.HATAdjustmentRate": {"plot_adjustment_rate_every_n_steps": 100},
    }
    backbone = {"input_dim": FEATURES, "hidden_dims": [16, 12], "output_dim": OUTPUT}
    backbone |= {"gate": "sigmoid", "batch_normalization": "independent", "bias": True}
    backbone |= {"dropout": None}
    backbone["activation_layer"] = {"_target_": "hydra.utils.get_class", "path": "torch.nn.ReLU"}
    common = {"s_max": 40, "clamp_threshold": 50, "mask_sparsity_reg_factor": 0.75}
    scheduler = {"_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau", "_partial_": True}
    trainer = {"_target_": "lightning.Trainer", "max_epochs": 4, "accelerator": "cpu"}
    trainer |= {"devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
    return OmegaConf.create(
        {
            "pipeline": "CL_MAIN_EXPR",
            "expr_name": "tiny",
            "cl_paradigm": paradigm,
            "train_tasks": 3,
            "eval_after_tasks": 3,
            "global_seed": 1,
            "cl_dataset": {"_target_": f"{HERE}.Tasks", "root": out, "num_tasks": 3}
            | {"batch_size": 8},
            "cl_algorithm": {"_target_": f"{package}.cl_algorithms.{algorithm}"}
            | MODES[algorithm]
            | common,
            "backbone": {"_target_": f"{package}.backbones.HATMaskMLP", **backbone},
            "optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.05}
            | {"weight_decay": 0.01},
            "lr_scheduler": scheduler,
            "trainer": trainer | {"log_every_n_steps": 1},
            "metrics": [
                {"_target_": f"clarena.{name}", "save_dir": out, **by_class.get(name, {})}
                for name in callbacks
                if name.startswith("metrics")
            ],
            "callbacks": [{"_target_": f"{HERE}.Witness"}]
            + [
                {"_target_": f"clarena.{name}", **({"save_dir": out} if "Save" in name else {})}
                for name in callbacks
                if name.startswith("callbacks")
            ],
            "lightning_loggers": {
                "csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "save_dir": out}
            },
            "output_dir": out,
            "misc": {"log_level": "INFO"},
        }
    )


def run(*args: Any, **options: Any) -> CLMainExperiment:
    Witness.answers = {}
    experiment = CLMainExperiment(config(*args, **options))
    experiment.run()
    return experiment


CALLBACKS = [
    "metrics.CLAccuracy",
    "metrics.CLLoss",
    "metrics.HATMasks",
    "metrics.HATNetworkCapacity",
    "metrics.HATAdjustmentRate",
    "callbacks.CLPylogger",
    "callbacks.SaveModels",
]


@pytest.mark.parametrize("algorithm", MODES)
def test_the_pipeline_drives_our_classes_with_its_callbacks_and_heads(
    tmp_path: Path, algorithm: str
) -> None:
    found = run(OURS, algorithm, tmp_path, CALLBACKS)
    assert type(found.heads).__module__.startswith("clarena."), "heads are the pipeline's own"
    assert type(found.model).__module__.startswith(OURS)
    rows = list(csv.DictReader((tmp_path / "acc.csv").open()))
    assert [int(row["after_training_task"]) for row in rows] == [1, 2, 3]
    accuracies = [float(rows[2][f"test_on_task_{task}"]) for task in (1, 2, 3)]
    print(f"clarena {VERSION}, {algorithm}: accuracy of tasks 1 to 3 at the end: {accuracies}")
    assert min(accuracies) > 1.2 / CLASSES
    for task, before in Witness.answers.items():
        same = torch.equal(answer(found.model, task), before)
        assert same == (algorithm == "HAT" or task == 3), task
    assert (tmp_path / "fc.0_task3.png").exists()
    saved = torch.load(tmp_path / "cl_model.pth", weights_only=False)
    assert torch.equal(answer(saved, 2), answer(found.model, 2))
    assert saved.hparams["backbone.gate"] == "sigmoid" and saved.hparams["s_max"] == 40


def test_one_head_for_all_domains_where_the_pipeline_has_it(tmp_path: Path) -> None:
    pytest.importorskip("clarena.heads.head_dil", reason=f"clarena {VERSION} has no HeadDIL")
    found = run(OURS, "HAT", tmp_path, CALLBACKS[:2], paradigm="DIL")
    assert type(found.heads).__module__ == "clarena.heads.head_dil"
    for task, before in Witness.answers.items():
        assert torch.equal(answer(found.model, task), before), task


def test_the_same_lines_run_clarenas_own_classes(tmp_path: Path) -> None:
    # Its HATMasks looks for masks where they no longer are.
    callbacks = [name for name in CALLBACKS if name != "metrics.HATMasks"]
    found = run(THEIRS, "HAT", tmp_path, callbacks)
    kept = [torch.equal(answer(found.model, task), Witness.answers[task]) for task in (1, 2)]
    print(f"clarena {VERSION}, its own HAT: are outputs of tasks 1 and 2 as they were? {kept}")
    assert len(list(csv.DictReader((tmp_path / "acc.csv").open()))) == 3


@pytest.mark.parametrize("name", ["CLAlgorithm", "HAT", "AdaHAT"])
def test_nothing_of_theirs_is_run(name: str) -> None:
    theirs, ours = (
        getattr(importlib.import_module(f"{package}.cl_algorithms"), name)
        for package in (THEIRS, OURS)
    )
    assert issubclass(ours, theirs)
    methods = [n for n, value in vars(theirs).items() if callable(value) and n != "__doc__"]
    mine = [n for n in methods if getattr(ours, n).__module__.startswith("maskcl.")]
    assert mine == methods
