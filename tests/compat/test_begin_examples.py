"""Scripts as BeGin's users write them: the imports' prefix, the device and the epochs changed."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

pytest.importorskip("torch_geometric")

DATA = os.environ.get("MASKCL_DATA")

SCRIPT = """
import torch
from begin.algorithms.{method}.{level} import *
from begin.scenarios.{level} import {loader}
from begin.utils import {model}

scenario = {loader}(dataset_name={dataset!r}, num_tasks={tasks}, metric={metric!r},
                    save_path=FOLDER, incr_type={setting!r}, task_shuffle=1)
model = {model}(scenario.num_feats, scenario.num_classes, HIDDEN, dropout=0.0)
rate = 1e-3
benchmark = {trainer}(
    model=model,
    scenario=scenario,
    optimizer_fn=lambda x: torch.optim.Adam(x, lr=rate, weight_decay=0),
    loss_fn={loss},
    device=torch.device(DEVICE),
    scheduler_fn=lambda x: torch.optim.lr_scheduler.ReduceLROnPlateau(
        x, mode='min', patience=20, min_lr=rate * 2e-3),
    benchmark=True, seed=0, {options})
results = benchmark.run(epoch_per_task=EPOCHS)
"""
CLASSES = "torch.nn.CrossEntropyLoss(ignore_index=-1)"
SIGNS = "lambda preds, gt: torch.nn.BCEWithLogitsLoss()(preds, gt.float())"
SCRIPTS: dict[str, dict[str, Any]] = {
    "run_hat_taskIL_bitcoin": {
        "method": "hat",
        "level": "links",
        "loader": "LCScenarioLoader",
        "model": "GCNLink",
        "dataset": "bitcoin",
        "embedded": {"dataset": "links-digits"},
        "tasks": 3,
        "metric": "accuracy",
        "setting": "task",
        "trainer": "LCTaskILHATTrainer",
        "loss": CLASSES,
        "options": "lamb=0.75, smax=400.",
    },
    "run_piggyback_taskIL_cora": {
        "method": "piggyback",
        "level": "nodes",
        "loader": "NCScenarioLoader",
        "model": "GCNNode",
        "dataset": "cora",
        "embedded": {"dataset": "nodes-digits"},
        "tasks": 3,
        "metric": "accuracy",
        "setting": "task",
        "trainer": "NCTaskILPiggybackTrainer",
        "loss": CLASSES,
        "options": "threshold=5e-2",
    },
    "run_MAS_timeIL_bitcoin": {
        "method": "mas",
        "level": "links",
        "loader": "LCScenarioLoader",
        "model": "GCNLink",
        "dataset": "bitcoin",
        "embedded": {"dataset": "links-digits", "metric": "accuracy", "loss": CLASSES},
        "tasks": 7,
        "metric": "rocauc",
        "setting": "time",
        "trainer": "LCTimeILMASTrainer",
        "loss": SIGNS,
        "options": "",
    },
}


# The script of Piggyback has a rate at which so few epochs learn no mask, which is said.
@pytest.mark.filterwarnings("ignore::maskcl.methods.base.PlanWarning")
@pytest.mark.parametrize("name", SCRIPTS)
def test_begins_example_scripts_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    values = dict(SCRIPTS[name])
    embedded = values.pop("embedded")
    if DATA is None:
        values |= embedded
    text = SCRIPT.format(**values).replace("from begin.", "from maskcl.compat.begin.")
    # Small steps on the CPU: the script's 256 units and 1000 epochs are the reader's.
    space: dict[str, Any] = {"FOLDER": DATA, "DEVICE": "cpu", "HIDDEN": 16, "EPOCHS": 1}
    exec(compile(text, name, "exec"), space)
    results, tasks = space["results"], values["tasks"]
    assert results["exp_test"].shape == (tasks, tasks + 1)
    assert 0 <= results["exp_AP"] <= 1 and results["exp_FWT"] is None
    assert torch.isfinite(results["exp_test"].tril()[:, :-1]).all()
    if values["setting"] == "task":
        assert results["exp_AF"] == 0
    printed = capsys.readouterr().out
    assert f"task_id: {tasks - 1} Epoch #0:" in printed and "algo_acc_mat:" in printed
