import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import maskcl
from tests.integrations.small_tasks import (
    BATCH,
    EPOCHS,
    METHODS,
    SAMPLES,
    TASKS,
    assert_same_bits,
    learn,
    network,
    outputs,
    samples,
)
from tests.pages import blocks, page

pytest.importorskip("avalanche", reason="avalanche-lib is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from avalanche.benchmarks import nc_benchmark
    from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics
    from avalanche.models import IncrementalClassifier
    from avalanche.training.plugins import (
        EarlyStoppingPlugin,
        EvaluationPlugin,
        LRSchedulerPlugin,
        LwFPlugin,
        ReplayPlugin,
        SupervisedPlugin,
    )
    from avalanche.training.supervised import Cumulative, Naive
    from avalanche.training.templates.base_sgd import PeriodicEval

    from maskcl.integrations.avalanche import NO_CLASS, MaskedModel, MaskPlugin

pytestmark = pytest.mark.filterwarnings("ignore")


def benchmark(**options):
    """An experience a task; classes are counted from 0 in each."""
    data = []
    for x, y in map(samples, range(TASKS)):
        data.append(TensorDataset(x, y))
        data[-1].targets = y.tolist()
    given = {"task_labels": True, "class_ids_from_zero_in_each_exp": True, **options}
    return nc_benchmark(data, data, TASKS, one_dataset_per_exp=True, shuffle=False, **given)


def strategy(
    net, method, *plugins, kind=Naive, tasks="labels", optimizer=None, evaluator=None, **options
):
    model = MaskedModel(net, tasks=tasks)
    return kind(
        model=model,
        optimizer=optimizer or torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=nn.CrossEntropyLoss(),
        eval_mb_size=SAMPLES,
        plugins=[MaskPlugin(method), *plugins],
        evaluator=evaluator or EvaluationPlugin(loggers=[]),
        **{"train_mb_size": BATCH, "train_epochs": EPOCHS, **options},
    )


def train(learner, experience, **options):
    learner.train(experience, shuffle=False, **{"eval_streams": [], **options})


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_what_a_loop_of_ones_own_learns(name):
    method, mine, theirs = METHODS[name](), network(name), network(name)
    learner, stream = strategy(theirs, method), benchmark().train_stream
    for task in range(2):
        learn(method, mine, task)
        train(learner, stream[task])
    assert_same_bits(mine, theirs)


@pytest.mark.parametrize("name", ["hat", "piggyback"])
@pytest.mark.parametrize("habit", ["replay", "evaluation in between", "momentum"])
def test_finished_tasks_keep_their_outputs_and_bwt_is_0(name, habit):
    net, kept, stream = network(name), [], benchmark()
    metrics = [accuracy_metrics(experience=True), bwt_metrics(stream=True)]
    given = {"evaluator": EvaluationPlugin(*metrics, loggers=[])}
    plugins = [ReplayPlugin(mem_size=20)] if habit == "replay" else []
    if habit == "evaluation in between":  # before a task Piggyback has no mask to evaluate
        plugins = [PeriodicEval(1, do_initial=name == "hat")]
    if habit == "momentum":
        given["optimizer"] = torch.optim.SGD(
            net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1
        )
    learner = strategy(net, METHODS[name](), *plugins, **given)
    for task in range(TASKS):
        before = [p.detach().clone() for p in net.parameters()]
        train(learner, stream.train_stream[task], eval_streams=[stream.test_stream[: task + 1]])
        kept.append(outputs(net, task))
        found = learner.eval(stream.test_stream[: task + 1])
        assert found["StreamBWT/eval_phase/test_stream"] == 0
        assert not all(map(torch.equal, before, net.parameters()))
    for task, before in enumerate(kept):
        assert torch.equal(before, outputs(net, task))


class OneAtATime(SupervisedPlugin):
    """Samples of all tasks so far, one a step: Avalanche's own loader mixes tasks in each batch."""

    def before_training_epoch(self, strategy, *args, **kwargs):
        data = strategy.adapted_dataset
        strategy.dataloader = DataLoader(data, batch_size=1, collate_fn=data.collate_fn)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_may_have_samples_of_finished_tasks_alone(name):
    net = network(name)
    learner = strategy(net, METHODS[name](), OneAtATime(), kind=Cumulative, train_epochs=1)
    stream, kept = benchmark().train_stream, []
    for task in range(2):
        train(learner, stream[task])
        kept.append(outputs(net, task))
    assert name in ("mas", "ewc") or torch.equal(kept[0], outputs(net, 0))


@pytest.mark.parametrize("name", ["hat", "piggyback"])
def test_norms_of_finished_tasks_stand_still_while_their_samples_are_replayed(name):
    base = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    given = (torch.zeros(2, 8),) if name == "hat" else ()
    net = getattr(maskcl.nn, f"to_{name}")(base, TASKS, *given, classes=[2] * TASKS)
    learner, stream = strategy(net, METHODS[name](), ReplayPlugin(mem_size=20)), benchmark()
    train(learner, stream.train_stream[0])
    kept = outputs(net, 0)
    train(learner, stream.train_stream[1])
    assert torch.equal(kept, outputs(net, 0))


def test_an_experience_is_trained_once_and_by_one_plugin():
    net, stream = network("hat"), benchmark().train_stream
    learner = strategy(net, maskcl.HAT())
    train(learner, stream[0])
    kept = outputs(net, 0)
    with pytest.raises(RuntimeError, match="task 0 is finished"):
        train(learner, stream[0])
    with pytest.raises(ValueError, match="the strategy has 2 of them"):
        train(strategy(net, maskcl.HAT(), MaskPlugin(maskcl.HAT())), stream[1])
    other = strategy(net, maskcl.HAT())  # a second strategy goes on where the first one stopped
    train(other, stream[1])
    train(learner, stream[2])
    assert net.finished.all() and torch.equal(kept, outputs(net, 0))


def test_a_plugin_before_it_may_copy_the_model_at_the_end():
    net, stream = network("hat"), benchmark().train_stream
    learner = strategy(net, maskcl.HAT())
    learner.plugins.insert(0, LwFPlugin())  # the copy is taken before the task is finished
    train(learner, stream[0])
    kept = outputs(net, 0)
    train(learner, stream[1])
    assert net.finished.tolist() == [True, True, False]
    assert torch.equal(kept, outputs(net, 0))


def test_an_early_stop_goes_back_to_its_best_state_and_ends_the_task():
    net, stream, kept = network("hat"), benchmark(), []
    stop = EarlyStoppingPlugin(patience=1, val_stream_name="test_stream", margin=2.0)
    seen = EvaluationPlugin(accuracy_metrics(experience=True, stream=True), loggers=[])
    learner = strategy(net, maskcl.HAT(), stop, evaluator=seen, eval_every=1, train_epochs=6)
    for task in range(2):
        train(learner, stream.train_stream[task], eval_streams=[stream.test_stream[: task + 1]])
        assert learner.clock.train_exp_epochs < 6
        kept.append(outputs(net, task))
    assert net.finished.tolist() == [True, True, False]
    assert torch.equal(kept[0], outputs(net, 0))


def test_each_sample_of_a_mixed_batch_is_answered_under_its_own_task():
    base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    net = maskcl.nn.to_hat(base, 2, torch.zeros(2, 8), classes=[2, 3])
    model = MaskedModel(net).eval()
    x, labels = torch.rand(5, 8), torch.tensor([1, 0, 1, 1, 0])
    found = model(x, labels)
    for k, classes in ((0, 2), (1, 3)):
        with torch.no_grad(), net.task(k):
            torch.testing.assert_close(found[labels == k, :classes], net(x[labels == k]))
    assert (found[labels == 0, 2] == NO_CLASS).all()


@pytest.mark.parametrize("name", ["mas", "ewc"])
def test_without_task_labels_each_experience_is_a_task(name):
    base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    net = maskcl.nn.to_importance(base, TASKS)
    learner = strategy(net, METHODS[name](), tasks="experiences")
    stream = benchmark(task_labels=False)
    for experience in stream.train_stream:
        train(learner, experience)
    assert net.finished.all()
    learner.eval(stream.test_stream)


def test_without_task_labels_masks_are_refused():
    with pytest.raises(ValueError, match="wanted a benchmark with task labels"):
        MaskedModel(network("hat"), tasks="experiences")
    learner, stream = strategy(network("hat"), maskcl.HAT()), benchmark(task_labels=False)
    train(learner, stream.train_stream[0])
    with pytest.raises(RuntimeError, match="task 0 is finished"):
        train(learner, stream.train_stream[1])


def test_classes_that_no_head_has_are_refused():
    learner = strategy(network("hat"), maskcl.HAT())
    learner._criterion = lambda found, wanted: found.sum()  # which would not complain
    with pytest.raises(ValueError, match="class 3, and the outputs are 2"):
        train(learner, benchmark(class_ids_from_zero_in_each_exp=False).train_stream[1])


def test_a_task_that_piggyback_has_not_trained_is_no_guess():
    learner, stream = strategy(network("piggyback"), METHODS["piggyback"]()), benchmark()
    train(learner, stream.train_stream[0])
    with pytest.raises(RuntimeError, match="task 1"):
        learner.eval(stream.test_stream)


def test_a_growing_head_of_avalanches_is_refused():
    base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), IncrementalClassifier(16, 2))
    net = maskcl.nn.to_importance(base, TASKS)
    with pytest.raises(ValueError, match="IncrementalClassifier, which Avalanche replaces"):
        MaskedModel(net, tasks="experiences")


def test_a_model_that_is_no_masked_model_is_refused():
    learner = strategy(network("hat"), maskcl.HAT())
    learner.model = nn.Linear(8, 2)
    learner.optimizer = torch.optim.SGD(learner.model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="the strategy's model is a Linear"):
        train(learner, benchmark().train_stream[0])


def test_a_strategy_without_the_plugin_is_refused():
    learner = strategy(network("hat"), maskcl.HAT())
    del learner.plugins[0]
    with pytest.raises(RuntimeError, match="wanted a MaskPlugin"):
        train(learner, benchmark().train_stream[0])


def test_a_scheduler_goes_on_through_the_tasks():
    net = network("hat")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    plugin = LRSchedulerPlugin(schedule, reset_scheduler=False, reset_lr=False)
    learner = strategy(net, maskcl.HAT(), plugin, optimizer=optimizer)
    for experience in benchmark().train_stream[:2]:
        train(learner, experience)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5 ** (2 * EPOCHS))


def test_an_interrupted_experience_is_begun_again():
    class Kill(MaskPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            raise RuntimeError("killed")

    net, stream = network("hat"), benchmark()
    learner = strategy(net, maskcl.HAT())
    train(learner, stream.train_stream[0])
    kept, before = outputs(net, 0), learner.plugins[0]
    learner.plugins[0] = kill = Kill(maskcl.HAT())
    with pytest.raises(RuntimeError, match="killed"):
        train(learner, stream.train_stream[1])
    plain = Naive(
        model=learner.model,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        criterion=nn.CrossEntropyLoss(),
        evaluator=EvaluationPlugin(loggers=[]),
    )
    with pytest.raises(RuntimeError, match="wanted a MaskPlugin"):
        train(plain, stream.train_stream[1])  # without the plugin nobody would protect
    kill.before_training(learner)
    learner.plugins[0] = before
    train(learner, stream.train_stream[1])
    assert net.finished.tolist() == [True, True, False]
    assert torch.equal(kept, outputs(net, 0))


def test_a_weight_written_between_two_evaluations_raises_at_the_end():
    """Strategies move the model to its device again and again; that hides nothing."""

    class Write(ReplayPlugin):
        def after_training_epoch(self, strategy, *args, **kwargs):
            with torch.no_grad():
                for parameter in strategy.model.net.model.parameters():
                    parameter.mul_(1.5)

    net, stream = network("hat"), benchmark()
    train(strategy(net, maskcl.HAT()), stream.train_stream[0])
    learner = strategy(net, maskcl.HAT(), Write(), eval_every=1)
    with pytest.raises(RuntimeError, match="has changed since the last one was finished"):
        train(learner, stream.train_stream[1], eval_streams=[stream.test_stream[:2]])
    assert net.finished.tolist() == [True, False, False]


def test_the_example_of_its_page(capsys, tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    (example,) = blocks("python", page("integrations/avalanche.md"))
    assert len(example.splitlines()) <= 40
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("train_epochs=5", "train_epochs=1"), "a page", "exec"), {})
    found = re.findall(r"BWT ([-\d.e]+)", capsys.readouterr().out)
    assert len(found) == 5 and set(map(float, found)) == {0.0}
