"""The loop: what it measures, what it tells, that it learns, and that seeds alone decide."""

from __future__ import annotations

import dataclasses
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from maskcl.callback import Callback
from maskcl.methods import EWC, HAT, MAS, Piggyback, PlanWarning
from maskcl.problems import Vision
from maskcl.training.result import Result
from maskcl.training.trainer import Trainer
from tests import tiny

TASKS = 3


def make(net=None, scenario=None, **changed) -> Trainer:
    arguments = {
        "method": HAT(sparsity=0.2),
        "optimizer_fn": tiny.OPTIMIZERS["adam"],
        "epochs": 2,
        "batch_size": 8,
        "device": "cpu",
    } | changed
    return Trainer(
        net if net is not None else tiny.network("mlp", TASKS),
        arguments.pop("method"),
        Vision(),
        scenario if scenario is not None else tiny.scenario(TASKS),
        arguments.pop("optimizer_fn"),
        **arguments,
    )


class Log(Callback):
    def __init__(self) -> None:
        self.events: list[tuple] = []

    def on_task_start(self, task, epochs, first_epoch):
        self.events.append(("task", task, epochs, first_epoch))

    def on_epoch_start(self, task, epoch, batches):
        self.events.append(("epoch", task, epoch, batches))

    def on_step(self, task, epoch, batch, loss):
        assert isinstance(loss, torch.Tensor)
        assert loss.dim() == 0
        assert not loss.requires_grad
        self.events.append(("step", task, epoch, batch))

    def on_epoch_end(self, task, epoch, loss, accuracy, outlook):
        assert math.isfinite(loss)
        assert 0 <= accuracy <= 1
        assert outlook.startswith("free ")
        self.events.append(("epoch end", task, epoch))

    def on_task_end(self, task, scores):
        assert scores.shape == (TASKS,)
        self.events.append(("task end", task))


@pytest.mark.parametrize("model", tiny.MODELS)
def test_it_learns(model):
    trainer = make(
        tiny.network(model, TASKS), tiny.scenario(TASKS, count=64), epochs=8, batch_size=8
    )
    result = trainer.fit()
    assert np.diag(result.matrix).min() >= 0.9
    assert all(losses[-1] < losses[0] for losses in result.losses)


def test_the_matrix_with_heads_of_their_own():
    result = make().fit()
    below = np.tril(np.ones((TASKS, TASKS), dtype=bool))
    assert np.isfinite(result.matrix[below]).all()
    assert np.isnan(result.matrix[~below]).all()
    assert np.isnan(result.untrained).all()


def test_the_matrix_with_a_shared_head():
    trainer = make(tiny.network("mlp", TASKS, shared=True), tiny.scenario(TASKS, setting="domain"))
    result = trainer.fit()
    assert np.isfinite(result.matrix).all()
    assert np.isfinite(result.untrained).all()
    head = [p for p in trainer.net.parameters() if p.shape == (tiny.CLASSES, 12)]
    assert len(head) == 1
    initial = dict(tiny.network("mlp", TASKS, shared=True).named_parameters())
    name = next(n for n, p in trainer.net.named_parameters() if p is head[0])
    bias = name.replace("weight", "bias")
    assert not torch.equal(head[0], initial[name])
    assert not torch.equal(dict(trainer.net.named_parameters())[bias], initial[bias])


def test_scores_are_the_scenarios_with_hard_masks():
    scenario = tiny.scenario(TASKS)
    trainer = make(scenario=scenario)
    result = trainer.fit()
    for task in range(TASKS):
        x = torch.stack([scenario.test_inputs(task)[i] for i in range(16)])
        wanted = scenario.score(task, tiny.logits(trainer.net, task, x).argmax(1))
        assert result.matrix[TASKS - 1, task] == trainer.evaluate(task) == wanted


def test_callbacks_come_in_order():
    log = Log()
    make(callback=log).fit()
    wanted: list[tuple] = []
    for task in range(TASKS):
        wanted.append(("task", task, 2, 0))
        for epoch in range(2):
            wanted.append(("epoch", task, epoch, 3))
            wanted += [("step", task, epoch, batch) for batch in range(3)]
            wanted.append(("epoch end", task, epoch))
        wanted.append(("task end", task))
    assert log.events == wanted


def test_free_capacity_counts_the_task_in_training():
    class Free(Log):
        free: list[str] = []  # noqa: RUF012

        def on_epoch_end(self, task, epoch, loss, accuracy, outlook):
            net = trainer.net
            wanted = 1 - float((net.used() | net.hard_mask(task)).double().mean())
            assert outlook == f"free {100 * wanted:.1f} %"
            self.free.append(outlook)

    trainer = make(callback=Free())
    result = trainer.fit()
    assert len(trainer.callback.free) == 2 * TASKS
    assert len(result.capacity) == len(result.protected) == TASKS
    assert result.capacity[-1] == trainer.net.capacity()
    assert all(b >= a for a, b in zip(result.capacity[0].values(), result.capacity[2].values()))


def piggyback(**changed) -> Trainer:
    """As `make`, with Piggyback on random weights."""
    net = changed.pop("net", None) or tiny.piggyback("conv", TASKS, norms="task")
    return make(net, **({"method": Piggyback()} | changed))


@pytest.mark.parametrize("model", tiny.MODELS)
def test_piggyback_learns(model):
    trainer = piggyback(
        net=tiny.piggyback(model, TASKS, norms="task"),
        scenario=tiny.scenario(TASKS, count=64),
        epochs=8,
    )
    base = trainer.net.base_hash()
    result = trainer.fit()
    assert np.diag(result.matrix).min() >= 0.9
    assert trainer.net.base_hash() == base


def test_piggybacks_measures_are_shares_of_weights():
    trainer = piggyback()
    result = trainer.fit()
    assert result.off == [trainer.net.off(task) for task in range(TASKS)]
    assert 0 < np.mean([list(off.values()) for off in result.off]) < 1
    assert result.capacity == result.protected == []
    assert Result.from_dict(result.to_dict()).off == result.off


@pytest.mark.parametrize("setting", ["task", "domain"])
def test_a_task_without_a_mask_yet_has_no_score(setting):
    result = piggyback(scenario=tiny.scenario(TASKS, setting=setting)).fit()
    below = np.tril(np.ones((TASKS, TASKS), dtype=bool))
    assert np.isfinite(result.matrix[below]).all()
    assert np.isnan(result.matrix[~below]).all()
    assert np.isnan(result.untrained).all()


def test_piggybacks_outlook_is_of_the_mask_in_training():
    class Off(Callback):
        seen: list[str] = []  # noqa: RUF012 (one test at a time)

        def on_epoch_end(self, task, epoch, loss, accuracy, outlook):
            assert trainer.net.training_task == task
            assert outlook == trainer.method.outlook(trainer.net, task)
            self.seen.append(outlook)

    trainer = piggyback(callback=Off())
    trainer.fit()
    assert len(trainer.callback.seen) == 2 * TASKS
    assert all(text.startswith("off ") for text in trainer.callback.seen)
    assert len(set(trainer.callback.seen)) > 1


def test_a_plan_that_cannot_work_is_told_of_before_it_starts():
    class Stop(Callback):
        def on_task_start(self, task, epochs, first_epoch):
            raise KeyboardInterrupt

    trainer = piggyback(method=Piggyback(lr=1e-5), callback=Stop())
    steps = "1e-05 x 6 steps = 6e-05"  # 2 epochs of 24 samples, 8 a step
    with pytest.warns(PlanWarning, match=steps), pytest.raises(KeyboardInterrupt):
        trainer.fit()


def test_a_method_that_adds_nothing_to_the_loss_costs_nothing():
    """The loss is the problem's own tensor, with no sum behind it."""

    class Seen(Callback):
        def on_step(self, task, epoch, batch, loss):
            assert any(loss.data_ptr() == own.data_ptr() for own in kept)

    class Keeping(Vision):
        def loss(self, *args):
            kept.append(super().loss(*args))
            return kept[-1]

    kept: list[torch.Tensor] = []
    trainer = piggyback(callback=Seen(), epochs=1)
    trainer.problem = Keeping()
    trainer.fit()
    assert len(kept) == 3 * TASKS


def test_piggyback_in_bf16_keeps_float32_scores():
    class Seen(Callback):
        dtypes: set[torch.dtype] = set()  # noqa: RUF012 (one test at a time)

        def on_step(self, task, epoch, batch, loss):
            self.dtypes |= {s.dtype for s in trainer.net.scores()}

    trainer = piggyback(precision="bf16", callback=Seen(), epochs=8)
    result = trainer.fit()
    assert Seen.dtypes == {torch.float32}
    assert (result.matrix[2, :2] == np.diag(result.matrix)[:2]).all()
    assert np.diag(result.matrix).mean() >= 0.8


def mas(setting: str = "task", tasks: int = TASKS, **changed) -> Trainer:
    """As `make`, with MAS and the output layer of the setting."""
    net = tiny.importance(changed.pop("model", "mlp"), tasks, setting=setting)
    scenario = changed.pop("scenario", None) or tiny.scenario(tasks, setting=setting)
    return make(net, scenario, **({"method": MAS(strength=0.05)} | changed))


@pytest.mark.parametrize("method", [MAS(strength=0.05), EWC()], ids=["MAS", "EWC"])
@pytest.mark.parametrize("setting", ["task", "domain", "class", "time"])
def test_penalties_work_in_every_setting(method, setting):
    trainer = mas(setting, method=method, epochs=6)
    result = trainer.fit()
    assert np.diag(result.matrix).min() >= 0.9
    below = np.tril(np.ones((TASKS, TASKS), dtype=bool))
    shared = setting in ("domain", "time")
    assert np.isfinite(result.matrix[below]).all()
    assert np.isfinite(result.matrix[~below]).all() == shared
    assert np.isnan(result.matrix[~below]).all() == (not shared)
    assert np.isfinite(result.untrained).all() == shared
    names = trainer.net.names(heads=False)
    assert [list(after) for after in result.measured("importance")] == [names] * TASKS
    assert [list(after) for after in result.measured("drift")] == [[], names, names]
    first, last = result.measured("importance")[0], result.measured("importance")[-1]
    assert all(0 < first[name] <= last[name] for name in names)


def test_mas_forgets_less_than_no_penalty():
    means = []
    for strength in (0.0, 0.1):
        result = mas("domain", 8, method=MAS(strength), epochs=4).fit()
        assert np.diag(result.matrix).min() >= 0.9
        means.append(result.matrix[-1].mean())
    assert means[1] > means[0] + 0.2


@pytest.mark.parametrize("model", ["conv", "layernorm"])
def test_mas_learns_with_norms_in_the_model(model):
    scenario = tiny.scenario(TASKS, setting="class", count=64)
    result = mas("class", model=model, scenario=scenario, method=MAS(0.01), epochs=10).fit()
    assert np.diag(result.matrix).min() >= 0.9
    assert result.measured("drift")[-1]


def test_a_growing_head_chooses_among_all_classes_so_far():
    seen = []

    class Widths(Vision):
        def predictions(self, logits):
            if not torch.is_grad_enabled():
                seen.append(logits.shape[1])
            return super().predictions(logits)

    class Between(Callback):
        def on_epoch_end(self, task, epoch, loss, accuracy, outlook):
            seen.clear()
            trainer.evaluate(0)
            assert seen == [2 * (task + 1)]

        def on_task_end(self, task, scores):
            seen.clear()
            again = [trainer.evaluate(t) for t in range(task + 1)]
            assert again == scores[: task + 1].tolist()
            assert seen == [2 * (task + 1)] * (task + 1)

    trainer = mas("class", callback=Between())
    trainer.problem = trainer._tests.problem = Widths()
    result = trainer.fit()
    # Another trainer of the same network has only the record of what is finished.
    other = make(trainer.net, tiny.scenario(TASKS, setting="class"), method=MAS())
    assert [other.evaluate(t) for t in range(TASKS)] == result.matrix[-1].tolist()


def test_where_the_task_is_told_at_test_its_head_is_used():
    trainer = mas("task", epochs=4)
    trainer.fit()
    x = torch.stack([trainer.scenario.test_inputs(0)[i] for i in range(16)])
    wanted = trainer.scenario.score(0, tiny.logits(trainer.net, 0, x).argmax(1))
    assert trainer.evaluate(0) == wanted


@pytest.mark.parametrize(("world", "rank"), [(1, 0), (2, 0), (2, 1), (7, 6)])
def test_importances_see_every_training_sample_once(world, rank):
    trainer = mas(scenario=tiny.scenario(TASKS, count=25))
    dataset = trainer.scenario.train_set(1)

    class Fabric:
        world_size, global_rank = world, rank
        to_device = staticmethod(lambda batch: batch)

    data = dataclasses.replace(trainer.samples, fabric=Fabric()).task_data(1, dataset)
    for _ in range(2):
        found = torch.cat([x for x, _ in data.batches()])
        assert torch.equal(found, torch.stack([dataset[i][0] for i in range(rank, 25, world)]))
    with trainer.net.task(1):
        outputs, targets = data.forward(trainer.net, next(iter(data.batches())))
    assert outputs.shape == (len(targets), 2)


def test_importances_are_measured_in_full_precision_under_autocast():
    class Measuring(MAS):
        def end_task(self, net, state, data=None):
            dtypes.clear()
            super().end_task(net, state, data)
            assert dtypes == {torch.float32}
            dtypes.add("measured")

    class Training(Callback):
        def on_step(self, task, epoch, batch, loss):
            assert torch.bfloat16 in dtypes

    dtypes: set = set()
    trainer = mas(precision="bf16", epochs=6, method=Measuring(0.05), callback=Training())
    layer = trainer.net.model[4]
    layer.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    result = trainer.fit()
    assert "measured" in dtypes
    assert {o.dtype for o in trainer.net.importances.values()} == {torch.float32}
    assert np.diag(result.matrix).min() >= 0.9


def test_a_run_with_importances_resumes_at_a_tasks_end_too(tmp_path):
    class Stop(Callback):
        def on_task_start(self, task, epochs, first_epoch):
            if task == 2:
                raise KeyboardInterrupt

    for setting in ("class", "task"):
        folder = tmp_path / setting
        with pytest.raises(KeyboardInterrupt):
            mas(setting, method=EWC(labels="sampled"), directory=folder, callback=Stop()).fit()
        resumed, whole = (
            mas(setting, method=EWC(labels="sampled"), **more)
            for more in ({"directory": folder}, {})
        )
        results = resumed.fit(resume=True), whole.fit()
        assert equal(state(resumed), state(whole))
        np.testing.assert_array_equal(results[0].matrix, results[1].matrix)
        assert results[0].measures == results[1].measures


def state(trainer: Trainer) -> list[torch.Tensor]:
    return [v.clone() for v in trainer.net.state_dict().values()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_the_seed_alone_decides():
    runs = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        trainer = make(tiny.network("dropout", TASKS), seed=seed)
        torch.manual_seed(noise)
        random.seed(noise)
        trainer.fit()
        runs.append(state(trainer))
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_the_callers_random_numbers_are_not_touched():
    trainer = make()
    torch.manual_seed(5)
    random.seed(5)
    wanted = (float(torch.rand(())), random.random())
    torch.manual_seed(5)
    random.seed(5)
    trainer.fit()
    assert (float(torch.rand(())), random.random()) == wanted


def test_shuffling_depends_on_seed_task_and_epoch_alone():
    trainer, other = make(), make(seed=1)
    order = trainer.samples.order(1, 2, 24)
    torch.rand(3)
    assert order.dtype == torch.int64
    assert torch.equal(trainer.samples.order(1, 2, 24), order)
    assert sorted(order.tolist()) == list(range(24))
    for samples, task, epoch in ((trainer, 1, 1), (trainer, 2, 2), (other, 1, 2)):
        assert not torch.equal(samples.samples.order(task, epoch, 24), order)


@pytest.mark.parametrize(
    ("count", "size", "wanted"),
    [(24, 8, [8, 8, 8]), (25, 8, [8, 8, 9]), (26, 8, [8, 8, 8, 2]), (3, 8, [3]), (1, 8, [1]),
     (3, 1, [1, 1, 1]), (9, 8, [9]), (17, 16, [17])],
)  # fmt: skip
def test_no_batch_of_one_is_left_over(count, size, wanted):
    x, y = torch.arange(float(count))[:, None], torch.arange(count)
    order = torch.randperm(count).tolist()
    problem = Vision()
    batches = list(problem.train_batches(TensorDataset(x, y), order, size))
    assert [len(b) for _, b in batches] == wanted
    assert problem.num_batches(count, size) == len(wanted)
    assert torch.cat([b for _, b in batches]).tolist() == order
    assert all(torch.equal(a.flatten().long(), b) for a, b in batches)


def test_any_map_style_dataset_gives_the_same_batches():
    class Plain(Dataset):
        def __len__(self):
            return len(y)

        def __getitem__(self, i):
            return x[i], int(y[i])

    class Taking(Plain):
        def __getitem__(self, i):
            raise AssertionError("one by one")

        def take(self, indices):
            return x[indices], y[indices]

    x, y = tiny.samples(0)
    order = [3, 1, 2, 9, 11]
    kinds = [TensorDataset(x, y), Plain(), Taking()]
    found = [list(Vision().train_batches(d, order, 2)) for d in kinds]
    for batches in found:
        assert len(batches) == 2
        for (a, b), (c, d) in zip(batches, found[0]):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    for inputs in (x, TensorDataset(x)):
        assert torch.equal(torch.cat(list(Vision().test_batches(inputs, 7))), x)


def test_a_weighted_loss():
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    problem = Vision()
    torch.testing.assert_close(
        problem.loss(logits, target, torch.ones(4)), problem.loss(logits, target)
    )
    only = problem.loss(logits, target, torch.tensor([0.0, 2, 0, 0]))
    torch.testing.assert_close(only, problem.loss(logits[1:2], target[1:2]))


def test_bf16_trains_and_keeps_the_promise():
    method = HAT(sparsity=0.1)
    trainer = make(tiny.network("conv", TASKS), precision="bf16", epochs=10, method=method)
    result = trainer.fit()
    assert all(p.dtype == torch.float32 for p in trainer.net.parameters())
    assert (result.matrix[2, :2] == np.diag(result.matrix)[:2]).all()
    assert np.diag(result.matrix).mean() >= 0.8


def test_precision_is_what_was_asked_for():
    seen = []
    for precision in ("32", "bf16"):
        net = tiny.network("mlp", TASKS)
        layer = next(m for m in net.modules() if getattr(m, "out_features", 0) == 12)
        handle = layer.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
        make(net, precision=precision, epochs=1).fit()
        handle.remove()
        assert set(seen) == {torch.float32 if precision == "32" else torch.bfloat16}
        seen.clear()


def test_a_loss_that_is_not_finite_stops_the_run():
    trainer = make(optimizer_fn=lambda p: torch.optim.SGD(p, lr=1e30), epochs=4)
    with pytest.raises(RuntimeError, match=r"the loss is (nan|inf) in task 0, epoch"):
        trainer.fit()


def test_the_result_goes_through_json():
    import json

    result = make().fit()
    again = Result.from_dict(json.loads(json.dumps(result.to_dict())))
    np.testing.assert_array_equal(again.matrix, result.matrix)
    np.testing.assert_array_equal(again.untrained, result.untrained)
    assert again.losses == result.losses
    assert again.capacity == result.capacity
    assert min(result.seconds) > 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "epochs is 0, wanted an integer of at least 1"),
        ({"epochs": 1.5}, "epochs is 1.5"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"device": "tpu"}, "device is 'tpu', wanted one of auto, cpu, cuda"),
        ({"precision": "16"}, "precision is '16', float16 with a scaled loss"),
        ({"scenario": tiny.scenario(4)}, "net has 3 tasks, the scenario 4"),
        ({"scenario": tiny.scenario(2, setting="class")}, "which the class setting does not tell"),
        (
            {"scenario": tiny.scenario(2, setting="time"), "method": MAS()},
            "net has a head for each task, and the time setting does not tell",
        ),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match="Trainer: ") as error:
        make(**changed)
    assert message in str(error.value)


def test_the_trainers_module_is_not_imported_by_maskcl():
    code = """
import sys, maskcl
late = ("lightning_fabric", "safetensors", "maskcl.training.trainer")
print([m for m in late if m in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_on_a_gpu_the_promise_holds_and_a_run_resumes(precision, tmp_path):
    class Stop(Log):
        def on_epoch_start(self, task, epoch, batches):
            if (task, epoch) == (1, 1):
                raise KeyboardInterrupt

    arguments = {"device": "cuda", "precision": precision, "directory": tmp_path}
    arguments["optimizer_fn"] = tiny.OPTIMIZERS["adamw"]
    with pytest.raises(KeyboardInterrupt):
        make(tiny.network("conv", TASKS), callback=Stop(), **arguments).fit()
    trainer = make(tiny.network("conv", TASKS), **arguments)
    result = trainer.fit(resume=True)
    assert {p.device.type for p in trainer.net.parameters()} == {"cuda"}
    for task in range(TASKS):
        assert (result.matrix[task:, task] == result.matrix[task, task]).all()
    x = tiny.samples(0, seed=1)[0].cuda()
    before = tiny.logits(trainer.net, 0, x)
    trainer.net.forget_task(2)
    tiny.train_task(trainer.net, HAT(), 2, tiny.OPTIMIZERS["adamw"])
    assert torch.equal(tiny.logits(trainer.net, 0, x), before)
