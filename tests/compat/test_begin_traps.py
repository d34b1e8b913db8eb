"""What went wrong in other implementations of these trainers, as tests of this one.

HAT first, then Piggyback, then MAS and the metrics.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torch_geometric")

from maskcl.compat.begin.algorithms import hat, mas, piggyback
from maskcl.compat.begin.trainers.common import BaseTrainer
from maskcl.compat.begin.trainers.results import metrics_of
from tests.compat.begin_tiny import TASKS, make

HATS = (hat.NCTaskILHATTrainer, hat.LCTaskILHATTrainer, hat.GCTaskILHATTrainer)
PIGGYBACKS = (
    piggyback.NCTaskILPiggybackTrainer,
    piggyback.LCTaskILPiggybackTrainer,
    piggyback.GCTaskILPiggybackTrainer,
)
kinds = pytest.mark.parametrize("kind", HATS, ids=lambda kind: kind.__name__)


def watched(base: type[BaseTrainer], event: str, note: Callable[..., None]) -> type[BaseTrainer]:
    """A subclass that calls ``note(trainer, *arguments)`` after an event."""

    def overridden(self: Any, *args: Any) -> Any:
        result = getattr(super(kind, self), event)(*args)
        note(self, *args)
        return result

    kind = type(f"My{base.__name__}", (base,), {event: overridden})
    return kind


def logits(trainer: Any, task: int) -> Tensor:
    """Outputs of all test samples under a task's masks."""
    dataset = trainer._scenario.get_current_dataset()
    loader = trainer.prepareLoader(dataset, {})[2]
    trainer.model.eval()
    with torch.no_grad(), trainer.model.task(task):
        return torch.cat(
            [trainer.inference(trainer.model, batch, None)["preds"] for batch in loader]
        )


@pytest.mark.parametrize("kind", [*HATS, *PIGGYBACKS], ids=lambda kind: kind.__name__)
def test_zero_forgetting_bit_for_bit(kind: type[BaseTrainer]) -> None:
    rows: list[list[Tensor]] = []

    def note(trainer: Any, task: int, *rest: Any) -> None:
        rows.append([logits(trainer, old) for old in range(task + 1)])

    trainer = make(
        watched(kind, "processAfterTraining", note),
        optimizer_fn=lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.05),
    )
    found = trainer.run(4)
    assert len(rows) == TASKS
    for later in rows:
        for old, outputs in enumerate(later):
            assert torch.equal(outputs, rows[old][old]), f"{old} after {len(later) - 1}"
    assert found["exp_AF"] == 0


@kinds
def test_b1_every_hat_score_moves_in_a_step_with_s_below_s_max(kind: type[BaseTrainer]) -> None:
    start: list[Tensor] = []
    used: list[Tensor] = []
    moved: list[Tensor] = []

    def before(trainer: Any, *rest: Any) -> None:
        start.append(trainer.model.core.embeddings[trainer.curr_task].detach().clone())
        used.append(trainer.model.core.used())

    def after(trainer: Any, *rest: Any) -> None:
        now = trainer.model.core.embeddings[trainer.curr_task].detach()
        moved.append(now != start[len(moved)])

    trainer = make(
        watched(watched(kind, "beforeInference", before), "processTrainIteration", after)
    )
    ids = {id(p) for p in trainer.model.parameters()}
    assert all(id(p) in ids for p in trainer.model.core.embeddings)
    trainer.run(2)
    assert bool(moved[0].all())
    for task in range(TASKS):  # the first of two steps has s = 1 / s_max
        # A unit that earlier tasks use costs nothing, and where it is silent too nothing moves it.
        assert bool((moved[2 * task] | used[2 * task]).all())


def test_b1_masks_survive_state_dict_in_a_new_process(tmp_path: Path) -> None:
    """Piggyback's too (B2)."""
    for kind in (hat.NCTaskILHATTrainer, piggyback.NCTaskILPiggybackTrainer):
        trainer: Any = make(kind)
        dataset = trainer._scenario.get_current_dataset()
        trainer.run(2)
        batch = (dataset, dataset.ndata["test_mask"])
        found = []
        for task in range(TASKS):
            with trainer.model.task(task), torch.no_grad():
                found.append(trainer.inference(trainer.model, batch, None)["preds"])
        torch.save(trainer.model.state_dict(), tmp_path / f"{kind.__name__}.pt")
        torch.save(torch.stack(found), tmp_path / f"{kind.__name__}.logits.pt")
    child = """
import sys, torch
from pathlib import Path
from maskcl.compat.begin.algorithms import hat, piggyback
from tests.compat.begin_tiny import TASKS, make
torch.set_num_threads(1)
folder = Path(sys.argv[1])
for kind in (hat.NCTaskILHATTrainer, piggyback.NCTaskILPiggybackTrainer):
    trainer = make(kind, seed=9)
    trainer.model.load_state_dict(torch.load(folder / f"{kind.__name__}.pt"))
    dataset = trainer._scenario.get_current_dataset()
    wanted = torch.load(folder / f"{kind.__name__}.logits.pt")
    trainer.model.eval()
    for task in range(TASKS):
        with trainer.model.task(task), torch.no_grad():
            batch = (dataset, dataset.ndata["test_mask"])
            found = trainer.inference(trainer.model, batch, None)["preds"]
        assert torch.equal(found, wanted[task]), (kind, task)
"""
    ran = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path)],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr


@kinds
def test_b1_the_cumulative_mask_covers_all_earlier_tasks(kind: type[BaseTrainer]) -> None:
    used: list[Tensor] = []
    masks: list[Tensor] = []

    def note(trainer: Any, task: int, *rest: Any) -> None:
        net = trainer.model.core
        masks.append(net.hard_mask(task))
        logits(trainer, task)  # a forward, which must leave what was recorded alone
        used.append(net.used())
        assert torch.equal(net.hard_mask(0), masks[0])

    make(watched(kind, "processAfterTraining", note)).run(2)
    for task in range(TASKS):
        assert torch.equal(used[task], torch.stack(masks[: task + 1]).any(0))
    assert not torch.equal(masks[0], masks[1])


@kinds
def test_b1_masks_reach_the_forward_of_every_layer_that_claims_one(
    kind: type[BaseTrainer],
) -> None:
    """With all units of a layer closed, no output can tell its samples apart."""
    trainer: Any = make(kind)
    net = trainer.model.core.eval()
    layers = {"NC": 3, "LC": 3 + 2, "GC": 1 + 4 + 2}[kind.__name__[:2]]
    assert len(net.units) == layers
    samples = trainer._example(trainer.model, trainer._scenario.get_current_dataset())

    def spread() -> float:
        with net.task(0), torch.no_grad():
            outputs = net(*samples)
            return float((outputs.amax(0) - outputs.amin(0)).max())

    for name, span in net.units.items():
        with torch.no_grad():
            net.embeddings[0].fill_(1.0)
            assert spread() > 1e-5
            net.embeddings[0][span] = -1.0
        assert spread() == 0, name


@kinds
def test_b1_every_layer_that_claims_a_mask_is_protected(kind: type[BaseTrainer]) -> None:
    trainer: Any = make(kind)
    trainer.run(1)
    net = trainer.model.core
    fractions = net.protection().fraction()
    for name in net.units:
        shares = [fractions[key] for key in fractions if f"{name}." in key and "weight" in key]
        assert len(shares) == 1 and shares[0] > 0, name


def scales_of(kind: type[BaseTrainer], epochs: int, **body: Any) -> list[float]:
    """s in each step of the first task."""
    found: list[float] = []

    def note(trainer: Any, *rest: Any) -> None:
        if trainer.curr_task == 0:
            found.append(float(trainer.model.core._state.scale))

    base = type(kind.__name__, (kind,), body)
    make(watched(base, "processTrainIteration", note), smax=50.0).run(epochs)
    return found


@kinds
def test_b1_s_is_annealed_on_every_problem(kind: type[BaseTrainer]) -> None:
    found = scales_of(kind, 5)
    assert found[0] == pytest.approx(1 / 50) and found[-1] == pytest.approx(50)
    assert found == sorted(found)
    assert scales_of(kind, 1) == [pytest.approx(50)]  # one step, and no division by zero


def test_b1_s_stays_at_most_s_max_in_minibatches() -> None:
    found = scales_of(hat.GCTaskILHATTrainer, 2, batch_size=1)
    assert max(found) == pytest.approx(50) and min(found) == pytest.approx(1 / 50)
    steps = len(found) // 2
    assert steps >= 10 and found[:steps] == found[steps:]  # in every epoch anew


def test_b1_embeddings_are_clamped() -> None:
    trainer: Any = make(
        hat.NCTaskILHATTrainer,
        thres_emb=0.25,
        optimizer_fn=lambda p: torch.optim.Adam(p, lr=1.0),
    )
    trainer.run(3)
    assert all(float(e.detach().abs().max()) <= 0.25 for e in trainer.model.core.embeddings)


def test_b1_the_keywords_reach_the_method() -> None:
    options = {
        "smax": 100.0,
        "lamb": 0.5,
        "clipgrad": 7.0,
        "thres_cosh": 40.0,
        "thres_emb": 5.0,
    }
    method: Any = make(hat.LCTaskILHATTrainer, **options).method
    found = (method.s_max, method.sparsity, method.clip, method.cosh_clamp, method.embedding_clamp)
    assert found == tuple(options.values())


@pytest.mark.parametrize("kind", [HATS[0], PIGGYBACKS[0]], ids=lambda kind: kind.__name__)
def test_b1_each_task_has_its_own_norms(kind: type[BaseTrainer]) -> None:
    """Statistics of a BatchNorm that tasks shared would change what earlier ones compute.

    Ones that stay at their start (B2) would leave an untrained network without any.
    """
    trainer: Any = make(kind)
    trainer.run(2)
    norms = trainer.model.core.model.nodes.norms[0].norms
    assert len(norms) == TASKS
    assert not torch.equal(norms[0].running_mean, norms[1].running_mean)


@pytest.mark.parametrize("kind", PIGGYBACKS, ids=lambda kind: kind.__name__)
def test_b2_masks_are_in_state_dict_at_one_bit_a_weight(kind: type[BaseTrainer]) -> None:
    trainer: Any = make(kind, threshold=5e-2)
    trainer.run(2)
    state = trainer.model.state_dict()
    words = {name: value for name, value in state.items() if name.endswith("words")}
    layers = trainer.model.core.layers
    assert len(words) == len(layers) > 0
    stored = sum(value.numel() * value.element_size() * 8 for value in words.values())
    weights = sum(layer.weight.numel() for layer in layers.values())
    slack = 64 * len(layers) * TASKS  # each mask ends with a whole word
    assert weights * TASKS <= stored <= weights * TASKS + slack
    assert not any(name.endswith("scores") for name in state)


def test_b2_scores_never_decay_and_follow_the_schedule() -> None:
    rates: list[list[float]] = []

    def note(trainer: Any, model: Any, optimizer: Any, *rest: Any) -> None:
        scores = {id(p) for p in model.core.scores()}
        for group in optimizer.param_groups:
            mine = any(id(p) in scores for p in group["params"])
            assert group["weight_decay"] == (0 if mine else 0.1)
        assert scores <= {id(p) for g in optimizer.param_groups for p in g["params"]}
        rates.append([group["lr"] for group in optimizer.param_groups])

    make(
        watched(piggyback.NCTaskILPiggybackTrainer, "beforeInference", note),
        optimizer_fn=lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
        scheduler_fn=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5),
    ).run(2)
    assert rates[:2] == [[0.01, 0.01], [0.005, 0.005]]


def test_b2_the_base_never_changes() -> None:
    found: list[dict[str, Tensor]] = []

    def note(trainer: Any, model: Any, *rest: Any) -> None:
        layers = model.core.layers.items()
        found.append({name: layer.weight.detach().clone() for name, layer in layers})

    kind = piggyback.GCTaskILPiggybackTrainer
    make(watched(watched(kind, "beforeInference", note), "inference", note_later(found))).run(3)
    first, *rest = [weights for weights in found if weights]
    assert all(torch.equal(first[name], later[name]) for later in rest for name in first)


def note_later(found: list[dict[str, Tensor]]) -> Callable[..., None]:
    """Weights after each inference too: a mask is never written into them."""

    def note(trainer: Any, model: Any, *rest: Any) -> None:
        layers = getattr(model.core, "layers", {})
        found.append({name: layer.weight.detach().clone() for name, layer in layers.items()})

    return note


def test_b2_best_weights_bring_their_masks_back() -> None:
    """The head that comes back at a task's end was trained with the masks that come back."""
    outputs: list[Tensor] = []
    after: list[Tensor] = []

    class MyTrainer(piggyback.NCTaskILPiggybackTrainer):  # type: ignore[valid-type, misc]
        def processAfterEachIteration(
            self, model: Any, optimizer: Any, states: Any, results: Any
        ) -> bool:
            outputs.append(logits(self, self.curr_task))
            results["val_stats"]["loss"] = [3.0, 1.0, 2.0, 4.0][(len(outputs) - 1) % 4]
            return super().processAfterEachIteration(model, optimizer, states, results)

        def processAfterTraining(self, task_id: int, *rest: Any) -> None:
            super().processAfterTraining(task_id, *rest)
            after.append(logits(self, task_id))

    MyTrainer.__name__ = "MyNC"
    make(MyTrainer, optimizer_fn=lambda p: torch.optim.Adam(p, lr=0.1), threshold=5e-2).run(4)
    for task in range(TASKS):
        assert torch.equal(after[task], outputs[4 * task + 1])
        assert not torch.equal(after[task], outputs[4 * task + 3])


def test_b2_threshold_and_start_are_begins() -> None:
    method: Any = make(piggyback.LCTaskILPiggybackTrainer, threshold=0.05).method
    assert (method.threshold, method.init, method.inclusive) == (0.05, 0.1, True)


def importances_after_first_task(kind: type[BaseTrainer], epochs: int = 2) -> tuple[Any, Any]:
    """The trainer, and what its first task's importances were."""
    found: dict[str, Tensor] = {}

    def note(trainer: Any, task: int, *rest: Any) -> None:
        if task == 0:
            net = trainer.model.core
            _, _, omegas = net.anchored(net.names(heads=trainer.method.heads))
            names = net.names(heads=trainer.method.heads)
            found.update({n: o.clone() for n, o in zip(names, omegas, strict=True)})
            found["expected"] = expected(trainer, names)

    trainer = make(watched(kind, "processAfterTraining", note))
    trainer.run(epochs)
    return trainer, found


def expected(trainer: Any, names: list[str]) -> Any:
    """Importances by their definition: of graphs one at a time, else of the one batch."""
    model, dataset = trainer.model, trainer._scenario.get_current_dataset()
    model.eval()
    if isinstance(dataset, dict):
        from maskcl.compat.begin.trainers.graphs import collate

        batches = [collate([item]) for item in dataset["train"]]
    else:
        batches = trainer.prepareLoader(dataset, {})[0]
    parameters = dict(model.core.model.named_parameters())
    wanted = [parameters[name] for name in names]
    needs = [p.requires_grad for p in wanted]
    sums = [torch.zeros_like(p) for p in wanted]
    for p in wanted:
        p.requires_grad_(True)
    for batch in batches:
        with model.task(0):
            preds = trainer.inference(model, batch, {})["preds"]
        seen = preds[:, model.get_observed_labels() & (preds > -1e30).all(0)]
        grads = torch.autograd.grad(seen.square().sum(1).mean(), wanted, allow_unused=True)
        for total, grad in zip(sums, grads, strict=True):
            total += 0 if grad is None else grad.abs() / len(batches)
    for p, before in zip(wanted, needs, strict=True):
        p.requires_grad_(before)
    return dict(zip(names, sums, strict=True))


@pytest.mark.parametrize(
    ("kind", "reduction"),
    [
        (mas.GCClassILMASTrainer, "sample"),
        (mas.GCTaskILMASTrainer, "sample"),
        (mas.NCClassILMASTrainer, "batch"),
        (mas.LCTaskILMASTrainer, "batch"),
    ],
)
def test_b3_importances_are_what_their_form_says(kind: type[BaseTrainer], reduction: str) -> None:
    """Exact for graphs; of nodes the mean is over training nodes, not over all; logits of classes

    that are masked take no part.
    """
    trainer, found = importances_after_first_task(kind)
    assert trainer.method.reduction == reduction
    wanted = found.pop("expected")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-6, msg=name)
    assert any(bool((value > 0).any()) for value in found.values())


def test_b3_importances_of_link_prediction_are_repeatable() -> None:
    """Negatives come from a generator of their own, and the global one is left alone."""
    found: list[dict[str, Tensor]] = []
    for shift in (0, 100):

        def note(trainer: Any, model: Any, *rest: Any, shift: int = shift) -> None:
            torch.rand(shift)  # what else a script may draw

        kind = watched(mas.LPTimeILMASTrainer, "beforeInference", note)
        trainer: Any = make(kind)
        trainer.run(1)
        found.append(trainer.model.core.importance.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

    def ending(trainer: Any, *rest: Any) -> None:
        state = torch.get_rng_state()
        run = trainer._runs[id(trainer.model)]
        list(trainer._task_data(run).batches())
        assert torch.equal(torch.get_rng_state(), state)

    make(watched(mas.LPTimeILMASTrainer, "processAfterTraining", ending)).run(1)


def test_b3_heads_that_tasks_share_are_held_and_own_ones_are_not() -> None:
    shared: Any = make(mas.NCTimeILMASTrainer)
    own: Any = make(mas.NCTaskILMASTrainer)
    assert shared.method.heads and "head.weight" in shared.model.core.names()
    assert not any(name.startswith("head") for name in own.model.core.names())


def test_b3_af_is_positive_where_something_was_forgotten_and_divided_by_t_minus_1() -> None:
    matrix = torch.tensor([[0.9, 0.1, 0.2, 0.0], [0.6, 0.8, 0.1, 0.0], [0.3, 0.7, 1.0, 0.0]])
    found = metrics_of(matrix, None)
    assert found["AF"] == pytest.approx(((0.9 - 0.3) + (0.8 - 0.7)) / 2)
    assert found["AP"] == pytest.approx((0.3 + 0.7 + 1.0) / 3) and found["FWT"] is None
    untrained = torch.tensor([0.5, 0.05, 0.25, 0.0])
    forward = metrics_of(matrix, untrained)["FWT"]
    assert forward == pytest.approx(((0.1 - 0.05) + (0.1 - 0.25)) / 2)
