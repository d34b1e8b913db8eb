"""What BeGin's trainers have besides the events: keywords as attributes, states, HAT's masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_geometric")

from maskcl.compat.begin.algorithms import bare, hat, mas, piggyback
from maskcl.compat.begin.trainers.nodes import NCTrainer
from tests.compat.begin_tiny import TASKS, make


def mine(base: type[Any], **body: Any) -> type[Any]:
    return type(f"My{base.__name__}", (base,), body)


@pytest.mark.parametrize("full_mode", [False, True])
def test_every_loader_is_made_with_the_states_of_the_users(full_mode: bool) -> None:
    seen: list[dict[str, Any]] = []

    def states(self: Any, *args: Any) -> dict[str, Any]:
        return {**super(kind, self).initTrainingStates(*args), "noise": 0.5}

    def loader(self: Any, _curr_dataset: Any, curr_training_states: Any) -> Any:
        seen.append(curr_training_states)
        assert curr_training_states["noise"] == 0.5
        curr_training_states["visits"] = curr_training_states.get("visits", 0) + 1
        return super(kind, self).prepareLoader(_curr_dataset, curr_training_states)

    kind = mine(mas.NCTaskILMASTrainer, initTrainingStates=states, prepareLoader=loader)
    make(kind, full_mode=full_mode).run(1)
    kept = [s for s in seen if s["visits"] >= TASKS]
    assert kept  # states stay from task to task


def test_keywords_are_attributes_that_may_be_set_while_it_runs() -> None:
    given = {"smax": 300.0, "lamb": 0.5, "clipgrad": 7.0, "thres_cosh": 40.0, "thres_emb": 5.0}
    trainer: Any = make(hat.LCTaskILHATTrainer, **given)
    assert {name: getattr(trainer, name) for name in given} == given
    trainer.lamb = 0.25
    assert (trainer.method.sparsity, trainer.method.s_max) == (0.25, 300.0)
    assert make(piggyback.NCTaskILPiggybackTrainer, threshold=0.05).threshold == 0.05  # type: ignore[attr-defined]
    terms: list[float] = []

    def before(self: Any, model: Any, optimizer: Any, batch: Any, states: Any) -> None:
        self.lamb = 0.0 if self.curr_task == 1 else 0.75
        terms.append(float(self._run_of(model).method.sparsity))

    make(mine(hat.NCTaskILHATTrainer, beforeInference=before)).run(1)
    assert terms == [0.75, 0.0, 0.75]


def test_a_subclass_with_its_own_constructor_takes_its_own_keywords() -> None:
    class MyTrainer(NCTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.lamb = kwargs.get("lamb", 1.0)
            self.fulmode = kwargs.get("fulmode")

    class All(NCTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.extra = kwargs

    MyTrainer.__name__ = All.__name__ = "MyNC"
    assert make(MyTrainer, lamb=3.0, fulmode=1).lamb == 3.0  # type: ignore[attr-defined]
    assert make(All, num_memories=5).extra["num_memories"] == 5  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"no keyword 'ful_mode', known are .*full_mode"):
        make(All, ful_mode=True)


def test_the_result_has_the_name_that_the_trainer_says(tmp_path: Path) -> None:
    trainer = make(bare.NCTaskILBareTrainer, tmp_save_path=tmp_path)
    trainer.run(1)
    assert (tmp_path / f"{trainer.save_file_name}.pkl").exists()
    assert trainer.tmp_path == trainer.result_path == tmp_path and trainer.init_lrs == [0.01]
    assert make(NCTrainer).result_path is None


@pytest.mark.parametrize("kind", [NCTrainer, mas.NCTaskILMASTrainer, hat.NCTaskILHATTrainer])
def test_a_model_and_an_optimizer_go_back_to_their_start(kind: type[Any]) -> None:
    trainer = make(kind)
    start = {k: v.clone() for k, v in trainer.model.state_dict().items() if isinstance(v, Tensor)}
    trainer.run(2)
    assert any(not torch.equal(start[k], trainer.model.state_dict()[k]) for k in start)
    chance = torch.get_rng_state()
    trainer._reset_model(trainer.model)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(start[k], trainer.model.state_dict()[k]) for k in start)
    optimizer = trainer.optimizer_fn(list(trainer.model.parameters()))
    optimizer.param_groups[0]["lr"], optimizer.state[next(trainer.model.parameters())] = 5, {"t": 1}
    trainer._reset_optimizer(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.01 and not optimizer.state


def test_parameters_that_come_later_are_trained() -> None:
    moved: list[float] = []

    def before(self: Any, task: int, dataset: Any, model: Any, optimizer: Any, states: Any) -> None:
        super(kind, self).processBeforeTraining(task, dataset, model, optimizer, states)
        if task == 1 and self._run_of(model).name == "exp":
            model.extra = nn.Parameter(torch.ones(()))
            self.add_parameters(model, optimizer)
            assert model.extra is optimizer.param_groups[-1]["params"][0]

    def infer(self: Any, model: Any, batch: Any, states: Any) -> Any:
        results = super(kind, self).inference(model, batch, states)
        if hasattr(model, "extra"):
            results["loss"] = results["loss"] * model.extra
            moved.append(float(model.extra))
        return results

    kind = mine(mas.NCTaskILMASTrainer, processBeforeTraining=before, inference=infer)
    trainer = make(kind)
    trainer.run(2)
    assert moved[0] == 1 and moved[-1] != 1
    trainer._reset_model(trainer.model)
    assert float(trainer.model.extra) == 1


def test_masks_of_layers_are_those_that_the_network_applies() -> None:
    trainer: Any = make(hat.LCTaskILHATTrainer)
    assert trainer.mask_pre is None and trainer.mask_back is None
    trainer.run(2)
    net = trainer.model.core
    assert torch.equal(torch.cat(trainer.mask_pre), net.used().float())
    found = trainer.get_mask(1, trainer.model, 9.0, trainer.masking, trainer.embedding_list)
    torch.testing.assert_close(torch.cat(found), torch.sigmoid(9.0 * net.embeddings[1]))
    assert found is trainer.masking and trainer.embedding_list[0].weight.shape == (TASKS, 8)
    protection = net.protection()
    saved = protection.snapshot()
    with torch.no_grad():
        for p in protection.parameters:
            p += 1
        protection.restore_(saved)
    named = dict(trainer.model.named_parameters())
    assert set(trainer.mask_back) == {f"core.{name}" for name in protection.names}
    for name, before in zip(protection.names, saved, strict=True):
        moved = (named[f"core.{name}"] != before).float()
        assert torch.equal(trainer.mask_back[f"core.{name}"], moved)
        view = trainer.get_view_for(f"core.{name}", trainer.model, before, found)
        assert view is None or view.shape == before.shape


def test_the_criterion_is_the_loss_and_eq_5() -> None:
    trainer: Any = make(hat.NCTaskILHATTrainer, lamb=0.5)
    outputs, targets = torch.randn(4, 6), torch.tensor([0, 1, 2, 3])
    masks = [torch.rand(8) for _ in range(3)]
    plain = trainer.loss_fn(outputs, targets)
    wanted = plain + 0.5 * torch.cat(masks).mean()
    torch.testing.assert_close(trainer.criterion(outputs, targets, masks), wanted)
    trainer.run(1)
    free = 1 - trainer.model.core.used().float()
    wanted = plain + 0.5 * (torch.cat(masks) * free).sum() / free.sum()
    torch.testing.assert_close(trainer.criterion(outputs, targets, masks), wanted)


def test_the_masks_that_were_applied_are_among_the_results() -> None:
    seen: list[Any] = []

    def after(self: Any, results: Any, *rest: Any) -> Any:
        seen.append(results["hat_masks"])
        return super(kind, self).afterInference(results, *rest)

    kind = mine(hat.NCTaskILHATTrainer, afterInference=after)
    make(kind).run(1)
    assert [len(mask) for mask in seen[0]] == [8, 8, 8] and seen[0][0].requires_grad
