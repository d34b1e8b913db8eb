"""What docs/integrations/avalanche.md says of the settings that a strategy may have."""

import pytest
import torch
from torch import nn

import maskcl
from tests.integrations.small_tasks import METHODS, TASKS, assert_same_bits, network, outputs

pytest.importorskip("avalanche", reason="avalanche-lib is not installed")

from tests.integrations.test_avalanche import benchmark, strategy, train  # isort: skip

from avalanche.benchmarks.scenarios import split_online_stream
from avalanche.models import MultiHeadClassifier
from avalanche.training.plugins import (
    LRSchedulerPlugin,
    ReplayPlugin,
    SupervisedPlugin,
)

from maskcl.integrations.avalanche import MaskedModel

pytestmark = pytest.mark.filterwarnings("ignore")
MASKS = ["hat", "piggyback"]


def decayed(strategy):
    """An optimizer of all, which knows nothing of tasks."""
    given = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    return torch.optim.SGD(strategy.model.parameters(), **given)


class ReplaceWithin(SupervisedPlugin):
    def after_training_iteration(self, strategy, *args, **kwargs):
        if strategy.clock.train_exp_iterations == 3:
            strategy.optimizer = decayed(strategy)


class ReplaceBetween(SupervisedPlugin):
    def before_training_exp(self, strategy, *args, **kwargs):
        strategy.optimizer = decayed(strategy)


class Reset(SupervisedPlugin):
    def before_training_epoch(self, strategy, *args, **kwargs):
        strategy.make_optimizer(reset_optimizer_state=True)


class Clip(SupervisedPlugin):
    def before_update(self, strategy, *args, **kwargs):
        nn.utils.clip_grad_norm_(strategy.model.parameters(), 0.1)


def assert_tasks_keep_their_outputs(net, learner):
    kept = []
    for experience in benchmark().train_stream:
        train(learner, experience)
        kept.append(outputs(net, len(kept)))
    for task, before in enumerate(kept):
        assert torch.equal(before, outputs(net, task))


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("plugin", [ReplaceWithin, ReplaceBetween, Reset, Clip])
def test_plugins_that_have_their_hands_on_the_optimizer(name, plugin):
    net = network(name)
    assert_tasks_keep_their_outputs(net, strategy(net, METHODS[name](), plugin()))


@pytest.mark.parametrize("name", MASKS)
def test_an_optimizer_that_knows_no_decay(name):
    net = network(name)
    optimizer = torch.optim.Rprop(net.parameters(), lr=0.01)
    assert_tasks_keep_their_outputs(net, strategy(net, METHODS[name](), optimizer=optimizer))


@pytest.mark.parametrize("name", MASKS)
def test_a_scheduler_has_the_methods_groups(name):
    """The optimizer is as the refusal of a single group with decay says."""
    net, method = network(name), METHODS[name]()
    single = torch.optim.AdamW(net.parameters(), lr=0.02, weight_decay=0.1)
    plugin = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(single, 1))
    with pytest.raises(ValueError, match="make the optimizer of method"):
        train(strategy(net, method, plugin, optimizer=single), benchmark().train_stream[0])
    groups = method.parameter_groups(net, 0)
    optimizer = torch.optim.AdamW(groups, lr=0.02, weight_decay=0.1)
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.9)
    plugin = LRSchedulerPlugin(schedule, reset_scheduler=False, reset_lr=False)
    learner = strategy(net, method, plugin, optimizer=optimizer)
    assert_tasks_keep_their_outputs(net, learner)
    after = [rate * 0.9 ** (TASKS * learner.train_epochs) for rate in rates]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(after)


@pytest.mark.parametrize("name", MASKS)
def test_nothing_is_learned_of_replayed_samples_of_finished_tasks(name):
    found = []

    class Look(SupervisedPlugin):
        def before_backward(self, strategy, *args, **kwargs):
            out = strategy.mb_output[strategy.mb_task_id < strategy.model.run.task]
            trained = [p for p in net.parameters() if p.requires_grad]
            if len(out) == 0 or not out.requires_grad:
                return
            grads = torch.autograd.grad(out.sum(), trained, retain_graph=True, allow_unused=True)
            for parameter, grad in zip(trained, grads, strict=True):
                parameter.grad = grad
            strategy.model.run.after_backward()
            found.extend(p.grad for p in trained if p.grad is not None and p.grad.any())
            strategy.optimizer.zero_grad()

    net = network(name)
    learner = strategy(net, METHODS[name](), ReplayPlugin(mem_size=20), Look())
    for experience in benchmark().train_stream[:2]:
        train(learner, experience)
    assert not found


@pytest.mark.parametrize("name", METHODS)
def test_the_networks_state_between_experiences_is_all_that_a_new_process_needs(name):
    one, other, stream = network(name), network(name), benchmark().train_stream
    learner = strategy(one, METHODS[name]())
    for experience in stream[:2]:
        train(learner, experience)
    other.load_state_dict(one.state_dict())
    for task in range(2):
        assert torch.equal(outputs(one, task), outputs(other, task))
    train(learner, stream[2])
    train(strategy(other, METHODS[name]()), stream[2])
    assert_same_bits(one, other)


@pytest.mark.parametrize("name", ["hat", "mas", "ewc"])
def test_later_tasks_are_answered_too(name):
    learner, stream = strategy(network(name), METHODS[name](), eval_every=1), benchmark()
    train(learner, stream.train_stream[0], eval_streams=[stream.test_stream])
    learner.eval(stream.test_stream)


def test_piggyback_is_not_evaluated_before_its_task():
    learner, stream = (
        strategy(network("piggyback"), METHODS["piggyback"](), eval_every=1),
        benchmark(),
    )
    with pytest.raises(RuntimeError, match="task 0 is neither finished nor in training"):
        train(learner, stream.train_stream[0], eval_streams=[stream.test_stream[:1]])


def test_an_online_stream_is_refused():
    learner = strategy(network("hat"), maskcl.HAT())
    stream = split_online_stream(benchmark().train_stream, experience_size=10)
    with pytest.raises(ValueError, match="an online stream"):
        train(learner, next(iter(stream)))


def test_heads_that_avalanche_grows_are_refused():
    base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), MultiHeadClassifier(16, 2))
    with pytest.raises(ValueError, match="MultiHeadClassifier, which Avalanche replaces"):
        MaskedModel(maskcl.nn.to_importance(base, TASKS))
