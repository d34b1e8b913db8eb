from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torch_geometric")

from maskcl.compat.begin.algorithms import bare, ewc, hat, mas, piggyback
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.compat.begin.trainers.nodes import NCTrainer
from tests.compat.begin_tiny import TASKS, make, model_for, scenario

TASK, ALL = ("Task",), ("Task", "Class", "Domain", "Time")


def _names(method: str, settings: tuple[str, ...]) -> dict[str, list[str]]:
    """By page the classes of a method; but for the task alone, link trainers have their own."""
    if settings == TASK:
        return {p: [f"{p[0].upper()}CTaskIL{method}Trainer"] for p in ("nodes", "links", "graphs")}
    links = [f"LC{s}IL{method}Trainer" for s in ("Task", "Class", "Time")]
    links += [f"LP{s}IL{method}Trainer" for s in ("Time", "Domain")]
    nodes = [f"NC{s}IL{method}Trainer" for s in settings] + [f"NCClassIL{method}MinibatchTrainer"]
    return {"nodes": nodes, "links": links, "graphs": [f"GC{s}IL{method}Trainer" for s in settings]}


METHODS = {"HAT": TASK, "Piggyback": TASK, "MAS": ALL, "Bare": ALL, "EWC": ALL}
NAMES = {
    f"{method.lower()}.{page}": names
    for method, settings in METHODS.items()
    for page, names in _names(method, settings).items()
}
CLASSES = [
    getattr(method, name)
    for method in (hat, piggyback, mas, bare, ewc)
    for name in sorted(method.__all__)
]


@pytest.mark.parametrize("path", NAMES)
def test_every_class_of_begins_pages_comes_with_a_star(path: str) -> None:
    name = f"maskcl.compat.begin.algorithms.{path}"
    space: dict[str, Any] = {}
    exec(f"from {name} import *", space)
    found = {key: value for key, value in space.items() if not key.startswith("__")}
    assert sorted(found) == sorted(NAMES[path])
    for key, value in found.items():
        assert (value.__name__, value.__module__) == (key, name)
        assert value.__doc__.startswith(f"{key[:2]}") and pickle.loads(pickle.dumps(value)) is value


def test_begins_other_import_lines_have_their_names() -> None:
    for path, names in {
        "scenarios.nodes": ["NCScenarioLoader"],
        "scenarios.links": ["LCScenarioLoader", "LPScenarioLoader"],
        "scenarios.graphs": ["GCScenarioLoader"],
        "trainers.nodes": ["NCTrainer", "NCMinibatchTrainer"],
        "trainers.links": ["LCTrainer", "LPTrainer"],
        "trainers.graphs": ["GCTrainer"],
        "trainers.common": ["BaseTrainer"],
        "utils": ["GCNNode", "GCNLink", "GCNGraph", "AdaptiveLinear"],
    }.items():
        module = importlib.import_module(f"maskcl.compat.begin.{path}")
        assert all(hasattr(module, name) for name in names), path


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_runs_and_returns_begins_result(kind: type[BaseTrainer]) -> None:
    found = make(kind).run(2)
    for name in ("exp_val", "exp_test"):
        assert found[name].shape == (TASKS, TASKS + 1)
        assert not found[name].tril()[:, :-1].isnan().any()
    assert found["init_val"].shape == found["init_test"].shape == (TASKS + 1,)
    scores = found["exp_test"][:, :-1].double()
    assert found["exp_AP"] == pytest.approx(float(scores[-1].mean()))
    fallen = scores.diagonal()[:-1] - scores[-1, :-1]
    assert found["exp_AF"] == pytest.approx(float(fallen.mean()))
    assert (found["exp_FWT"] is None) == (kind.setting != "domain")
    assert "exp_INT" not in found


def test_fwt_is_over_all_tasks_but_the_first() -> None:
    found = make(mas.NCDomainILMASTrainer).run(2)
    before = [found["exp_test"][j - 1, j] - found["init_test"][j] for j in range(1, TASKS)]
    assert found["exp_FWT"] == pytest.approx(float(torch.stack(before).double().mean()))


def test_training_learns_the_tasks() -> None:
    for kind in (hat.NCTaskILHATTrainer, piggyback.NCTaskILPiggybackTrainer):
        options = {"threshold": 5e-2} if kind is piggyback.NCTaskILPiggybackTrainer else {}
        found = make(kind, **options).run(30)
        assert found["exp_AP"] > 0.9, kind  # chance: one of two classes, 0.5
        assert found["exp_AF"] == 0


def test_full_mode_trains_a_base_and_a_joint_model_and_has_int() -> None:
    found = make(mas.NCTaskILMASTrainer, full_mode=True).run(2)
    for name in ("base_val", "base_test", "accum_val", "accum_test"):
        assert found[name].shape == (TASKS, TASKS + 1)
    missing = found["accum_test"][:, :-1].diagonal() - found["exp_test"][:, :-1].diagonal()
    assert found["exp_INT"] == pytest.approx(float(missing.double().mean()))
    alone = make(mas.NCTaskILMASTrainer).run(2)
    assert torch.equal(found["exp_test"], alone["exp_test"])  # the others do not disturb it


def test_the_same_seed_gives_the_same_result_and_another_another() -> None:
    kind = hat.GCTaskILHATTrainer
    trainers = [make(kind, seed=seed) for seed in (0, 0, 5)]
    first, again, _ = [trainer.run(2)["exp_test"] for trainer in trainers]
    assert torch.equal(first, again)
    states = [trainer.model.state_dict() for trainer in trainers]
    tensors = [name for name in states[0] if not name.endswith("_extra_state")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in tensors)
    assert not torch.equal(states[0]["core.embeddings.0"], states[2]["core.embeddings.0"])


@pytest.mark.parametrize("setting", ["task", "time"])
def test_verbose_prints_what_begin_prints(setting: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind = {"task": mas.GCTaskILMASTrainer, "time": mas.LPTimeILMASTrainer}[setting]
    make(kind, verbose=True).run(2)
    lines = capsys.readouterr().out.splitlines()
    words = "train_loss: val_hits:" if setting == "time" else "train_acc: val_acc: train_loss:"
    logs = [line for line in lines if line.startswith("task_id: 1 Epoch #")]
    assert len(logs) == 2 and all(word in line for word in words.split() for line in logs)
    for start in ("init_acc: [", "algo_acc_mat: [[", "AP: 0.", "AF: "):
        assert any(line.startswith(start) for line in lines), start
    make(kind).run(1)
    assert capsys.readouterr().out == ""


def test_nothing_is_written_but_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(NCTrainer).run(1)
    assert list(tmp_path.iterdir()) == []
    found = make(NCTrainer, tmp_save_path=tmp_path / "out").run(1)
    (path,) = (tmp_path / "out").iterdir()
    saved = pickle.loads(path.read_bytes())
    assert path.name.startswith("result_") and path.suffix == ".pkl"
    np.testing.assert_array_equal(saved["exp_test"], found["exp_test"].numpy())


def test_the_smallest_rate_ends_a_task() -> None:
    seen: list[int] = []

    class MyTrainer(NCTrainer):
        def processAfterEachIteration(self, *args: Any) -> bool:
            seen.append(self.curr_task)
            return super().processAfterEachIteration(*args)

    MyTrainer.__name__ = "MyNCTrainer"

    def plateau(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=50, min_lr=0.01)

    make(MyTrainer, scheduler_fn=plateau).run(5)  # the optimizer's rate is at min_lr at once
    assert seen == list(range(TASKS))


def test_a_scheduler_that_is_none_of_a_plateau_is_stepped_by_epochs() -> None:
    rates: list[float] = []

    class MyTrainer(NCTrainer):
        def processAfterEachIteration(self, *args: Any) -> bool:
            going = super().processAfterEachIteration(*args)
            rates.append(args[1].param_groups[0]["lr"])
            return going

    MyTrainer.__name__ = "MyNCTrainer"
    make(MyTrainer, scheduler_fn=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5)).run(2)
    assert rates == [0.005, 0.0025] * TASKS


REFUSED = [
    (hat.NCTaskILHATTrainer, {"s_max": 400.0}, "no keyword 's_max', known are .*smax"),
    (mas.NCTaskILMASTrainer, {"smax": 400.0}, "no keyword 'smax', known are .*lamb"),
    (piggyback.NCTaskILPiggybackTrainer, {"treshold": 0.1}, "no keyword 'treshold'"),
    (NCTrainer, {"lamb": 1.0}, "no keyword 'lamb'.*`keywords`"),
]


@pytest.mark.parametrize(("kind", "given", "words"), REFUSED)
def test_a_misspelt_keyword_raises(kind: type[BaseTrainer], given: Any, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        make(kind, **given)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(ValueError, match="incr_type is 'class', wanted 'task'"):
        make(hat.NCTaskILHATTrainer, "class")
    nodes = scenario("NC", "task")
    with pytest.raises(ValueError, match="a NCScenarioLoader, wanted one of link problems"):
        hat.LCTaskILHATTrainer(nn.Linear(2, 2), nodes, torch.optim.Adam, nn.MSELoss(), None)
    with pytest.raises(TypeError, match="model is a Linear, wanted a GCNNode"):
        make(hat.NCTaskILHATTrainer, model=nn.Linear(8, 8))
    with pytest.raises(ValueError, match="epoch_per_task is 0"):
        make(NCTrainer).run(0)
    used = make(NCTrainer)
    used.run(1)
    with pytest.raises(RuntimeError, match=f"the scenario is at task {TASKS}, wanted a new one"):
        used.run(1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_device_that_is_not_here_is_refused_in_one_sentence() -> None:
    found = scenario("NC", "task")
    with pytest.raises(RuntimeError, match=r"'cuda:0', and torch .* finds 0 CUDA devices here"):
        hat.NCTaskILHATTrainer(
            model_for("NC", found),
            found,
            lambda p: torch.optim.Adam(p),
            nn.CrossEntropyLoss(ignore_index=-1),
            torch.device("cuda:0"),
            smax=400.0,
            lamb=0.75,
        )


def test_the_given_model_stays_untrained_where_a_method_converts_it() -> None:
    found = scenario("NC", "task")
    model = model_for("NC", found)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = hat.NCTaskILHATTrainer(
        model, found, lambda p: torch.optim.Adam(p), nn.CrossEntropyLoss(), verbose=False
    )
    trainer.run(1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert trainer.model is not model and type(trainer.model) is type(model)
