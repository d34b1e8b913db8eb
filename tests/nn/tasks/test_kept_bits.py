"""What finished tasks need is compared at the end of each later one; nothing slips by."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import maskcl
from maskcl.nn.tasks.bits import fingerprint, fingerprints, protected_fingerprint
from maskcl.optim import guard
from tests.helpers import in_two_processes

METHODS = {"hat": maskcl.HAT(s_max=20.0), "piggyback": maskcl.Piggyback(spread="uniform")}


def model() -> nn.Sequential:
    torch.manual_seed(0)
    frozen = nn.Linear(8, 8).requires_grad_(False)
    layers = [frozen, nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(32, 3))


def begun(name: str, task: int = 1) -> tuple[Any, Any, Any]:
    """A network with the tasks before finished, its method, and the state of the task begun."""
    method = METHODS[name]
    net = (
        maskcl.nn.to_hat(model(), 3, torch.zeros(2, 8), classes=[3] * 3)
        if name == "hat"
        else maskcl.nn.to_piggyback(model(), 3, classes=[3] * 3, norms="task")
    )
    for earlier in range(task):
        train(net, method, method.begin_task(net, earlier), earlier)
    return net, method, method.begin_task(net, task)


def train(net: Any, method: Any, state: Any, task: int, optimizer: Any = None) -> None:
    if optimizer is None:
        optimizer = torch.optim.AdamW(method.parameter_groups(net, task), lr=0.01)
        method.protect(optimizer, net, state)
    net.train()
    for step in range(4):
        method.before_step(net, state, step / 3)
        optimizer.zero_grad()
        with net.task(task, state.scale):
            (net(torch.randn(16, 8)).square().mean() + method.loss_term(net, state)).backward()
        method.after_backward(net, state)
        optimizer.step()
        method.after_step(net, state)
    with torch.no_grad():  # one bit of the mask differs, so that nothing warns
        for scores in getattr(net, "scores", list)():
            scores.view(-1)[0] *= -1
    method.end_task(net, state)


def logits(net: Any, task: int) -> Tensor:
    torch.manual_seed(1)
    with net.eval().task(task), torch.no_grad():
        return net(torch.randn(4, 8))


# --- fingerprints ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5), (0,), (2, 3, 4, 4), (70_000,), (600, 700)])
def test_one_changed_element_changes_a_fingerprint(dtype: torch.dtype, shape: tuple) -> None:
    tensor = torch.randn(shape).mul(9).to(dtype)
    print_of = fingerprint(tensor)
    assert fingerprint(tensor.clone()) == print_of
    assert fingerprint(tensor.clone().t() if tensor.dim() == 2 else tensor).dtype == torch.int64
    for place in {0, tensor.numel() // 2, tensor.numel() - 1} if tensor.numel() else ():
        other = tensor.clone()
        flat = other.view(-1)
        flat[place] = ~flat[place] if dtype == torch.bool else flat[place] + 8
        assert fingerprint(other) != print_of


def test_a_fingerprint_is_of_bits() -> None:
    zero, nan = torch.zeros(4), torch.tensor([math.nan, 1.0])
    assert fingerprint(zero) != fingerprint(-zero)
    assert fingerprint(nan) == fingerprint(nan.clone())
    assert fingerprint(torch.tensor([1.0, 2.0])) != fingerprint(torch.tensor([2.0, 1.0]))
    rows = torch.randn(5, 6)
    assert fingerprint(rows[:, 1:]) == fingerprint(rows[:, 1:].clone())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (2, 7), (2, 3, 4, 5), (0,), (40, 500), (600, 700)])
def test_fingerprints_of_many_tensors_are_each_ones(dtype: torch.dtype, shape: tuple) -> None:
    tensors = [torch.randn(shape).mul(9).to(dtype) for _ in range(60 if len(shape) < 4 else 9)]
    tensors[5] = tensors[5].transpose(0, -1) if len(set(shape)) == 1 and shape else tensors[5]
    if len(shape) == 4:
        tensors[3] = tensors[3].contiguous(memory_format=torch.channels_last)
    assert fingerprints(tensors).tolist() == [int(fingerprint(t)) for t in tensors]
    mixed = [*tensors[:4], torch.randn(5), *tensors[4:], torch.randn(2, 2).double(), torch.randn(5)]
    assert fingerprints(mixed).tolist() == [int(fingerprint(t)) for t in mixed]


@pytest.mark.parametrize(("shape", "groups"), [((6, 4), 1), ((6,), 1), ((6, 2, 3, 3), 2)])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("is_large", [False, True])
def test_protected_elements_alone_count(
    shape: tuple, groups: int, exact: bool, is_large: bool
) -> None:
    if is_large:
        shape = (6_000 if groups == 1 else 6, *(s * 50 for s in shape[1:]))
    out = torch.randint(4, (shape[0], 1))
    into = torch.randint(4, (shape[1] * groups, 1)) if len(shape) > 1 else torch.tensor([[-1]])
    tensor, noise = torch.randn(shape), torch.randn(shape)
    kept = noise.clone()
    maskcl.ops.restore_protected_(
        [kept], [tensor], [out], [into if len(shape) > 1 else None], groups=[groups],
        protection="exact" if exact else "min",
    )  # fmt: skip
    sides = out, into, groups, exact
    wanted = protected_fingerprint(tensor, *sides)
    assert protected_fingerprint(kept, *sides) == wanted
    protected = (kept == tensor).nonzero()
    assert 0 < len(protected) < tensor.numel()
    kept[tuple(protected[-1])] *= -1
    assert protected_fingerprint(kept, *sides) != wanted


# --- by another door -------------------------------------------------------------------------


def written(net: Any, name: str) -> Tensor:
    return net.state_dict(keep_vars=True)[name]


def sam(net: Any, task: int) -> Any:
    """Two steps of which neither is the wrapper's own."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, params: Any) -> None:
            super().__init__(params, {})
            self.base = torch.optim.AdamW(self.param_groups, lr=0.01, weight_decay=0.1)

    wrapper = Wrapper(net.task_parameters(task))
    state = METHODS["hat"].begin_task(net, task)
    METHODS["hat"].protect(wrapper, net, state)
    return wrapper.base, state


def test_an_optimizer_that_steps_past_its_guard_is_noticed() -> None:
    net, method, _ = begun("hat")
    base, state = sam(net, 1)
    with pytest.raises(RuntimeError, match=r"HAT\.end_task: what finished tasks need .*weight"):
        train(net, method, state, 1, base)
    assert net.finished.tolist() == [True, False, False]
    assert not (net.tasks & 2).any()


CHANGES = {
    "hat": {
        "protected weight": "model.1.weight", "frozen weight": "model.0.weight",
        "finished head": "model.6.heads.0.weight", "finished norm": "model.2.norms.0.weight",
        "finished statistics": "model.2.norms.0.running_mean", "bits": "tasks",
    },
    "piggyback": {
        "masked weight": "model.1.weight", "its bias": "model.1.bias", "words": "model.1.words",
        "finished head": "model.6.heads.0.bias", "finished norm": "model.2.norms.0.bias",
        "finished statistics": "model.2.norms.0.running_var",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "what"), [(name, what) for name, found in CHANGES.items() for what in found]
)
def test_a_value_written_by_other_code_is_noticed(name: str, what: str) -> None:
    net, method, state = begun(name)
    key = CHANGES[name][what]
    with torch.no_grad():
        tensor = written(net, key)
        tensor.copy_(-tensor if tensor.is_floating_point() else ~tensor)
        if tensor.is_floating_point():
            tensor.add_(1.0)
    with pytest.raises(RuntimeError, match=rf"end_task: what .* {key.replace('.', '[.]')}"):
        train(net, method, state, 1)
    assert net.finished.tolist() == [True, False, False]


@pytest.mark.parametrize("name", METHODS)
def test_a_task_that_trains_as_it_should_changes_nothing_that_is_kept(name: str) -> None:
    net, method, state = begun(name)
    before = logits(net, 0)
    train(net, method, state, 1)
    assert torch.equal(logits(net, 0), before)
    train(net, method, method.begin_task(net, 2), 2)
    assert torch.equal(logits(net, 0), before)


@pytest.mark.parametrize("rule", ["const", "adahat", "random"])
def test_rules_that_let_protected_weights_move_promise_nothing(rule: str) -> None:
    method = maskcl.HAT(rule=rule, rule_value=None if rule == "random" else 0.5)
    net, _, _ = begun("hat")
    train(net, method, method.begin_task(net, 1), 1)
    assert bool(net.finished[1])


# --- replaced parameters ---------------------------------------------------------------------


def assigned(net: Any) -> None:
    net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)


def overwritten(net: Any) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        net.double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def one_by_hand(net: Any) -> None:
    layer = net.get_submodule("model.4")
    layer.weight = nn.Parameter(layer.weight.detach().clone())


@pytest.mark.parametrize("replace", [assigned, overwritten, one_by_hand])
@pytest.mark.parametrize("when", ["before the guard", "before a step"])
def test_replaced_parameters_are_refused_at_once(replace: Any, when: str) -> None:
    net, method, state = begun("hat")
    optimizer = torch.optim.AdamW(method.parameter_groups(net, 1), lr=0.01)
    if when == "before the guard":
        replace(net)
        optimizer = torch.optim.AdamW(method.parameter_groups(net, 1), lr=0.01)
        with pytest.raises(RuntimeError, match=r"protect: .* is no longer the parameter"):
            method.protect(optimizer, net, state)
        return
    method.protect(optimizer, net, state)
    replace(net)
    with pytest.raises(RuntimeError, match=r"AdamW\.step: .* is no longer the parameter"):
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"HAT\.after_backward: .* is no longer the parameter"):
        method.after_backward(net, state)


@pytest.mark.parametrize("replace", [assigned, overwritten, one_by_hand])
def test_parameters_replaced_before_a_task_begins_are_protected(replace: Any) -> None:
    net, method, _ = begun("hat")
    before = logits(net, 0)
    replace(net)
    train(net, method, method.begin_task(net, 1), 1)
    assert torch.equal(logits(net, 0), before)


def test_a_group_that_is_added_later_is_guarded_too() -> None:
    net, method, state = begun("hat")
    before = logits(net, 0)
    first, second = (g["params"] for g in method.parameter_groups(net, 1))
    optimizer = torch.optim.AdamW(second, lr=0.01, weight_decay=0.1)
    guard(optimizer, state.protection)
    optimizer.add_param_group({"params": first})
    train(net, method, state, 1, optimizer)
    assert torch.equal(logits(net, 0), before)


# --- processes -------------------------------------------------------------------------------


def _wrapped_once(rank: int, folder: str) -> None:
    """DistributedDataParallel around the network before its first task, two tasks after it."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    try:
        for wrap_anew in (True, False):
            method = METHODS["hat"]
            torch.manual_seed(0)
            net = maskcl.nn.to_hat(
                nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), 2,
                torch.zeros(2, 8), classes=[3, 3],
            )  # fmt: skip
            wrapped: Any = None
            for task in range(2):
                state = method.begin_task(net, task)
                if wrapped is None or wrap_anew:
                    wrapped = DistributedDataParallel(net, find_unused_parameters=True)
                optimizer = torch.optim.SGD(method.parameter_groups(net, task), lr=0.1)
                guarded = method.protect(optimizer, net, state)
                for step in range(3):
                    method.before_step(net, state, step / 2)
                    optimizer.zero_grad()
                    torch.manual_seed(10 * step + rank)
                    with net.task(task, state.scale):
                        wrapped(torch.randn(4, 8)).square().mean().backward()
                    method.after_backward(net, state)
                    optimizer.step()
                if task and not wrap_anew:
                    with pytest.raises(RuntimeError, match="processes hold different values of"):
                        method.end_task(net, state)
                    assert not net.finished[1]
                else:
                    method.end_task(net, state)
                guarded.remove()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_that_drift_apart_are_noticed_when_a_task_ends(tmp_path: Path) -> None:
    in_two_processes(_wrapped_once, tmp_path)


# --- between tasks, and tasks that cross -----------------------------------------------------


def loop(net: Any, method: Any, state: Any, task: int, *, guarded: bool = True) -> None:
    """Steps without an end."""
    optimizer = torch.optim.AdamW(method.parameter_groups(net, task), lr=0.01, weight_decay=0.1)
    if guarded:
        method.protect(optimizer, net, state)
    for step in range(3):
        method.before_step(net, state, step / 2)
        optimizer.zero_grad()
        with net.train().task(task, state.scale):
            (net(torch.randn(16, 8)).square().mean() + method.loss_term(net, state)).backward()
        if guarded:
            method.after_backward(net, state)
        optimizer.step()


def test_a_state_loaded_after_a_task_began_makes_the_next_step_raise() -> None:
    trained, method, state = begun("hat")
    fresh = maskcl.nn.to_hat(model(), 3, torch.zeros(2, 8), classes=[3] * 3)
    state = method.begin_task(fresh, 1)
    fresh.load_state_dict(trained.state_dict())  # in which task 0 is finished
    with pytest.raises(RuntimeError, match=r"HAT\.after_backward: tasks \[0\] were finished"):
        loop(fresh, method, state, 1)


def test_the_same_state_loaded_after_a_task_began_is_nothing_new() -> None:
    net, method, state = begun("hat")
    before = logits(net, 0)
    net.load_state_dict(copy.deepcopy(net.state_dict()))
    train(net, method, state, 1)
    assert torch.equal(logits(net, 0), before)


def test_of_two_tasks_in_turns_the_second_has_to_begin_again() -> None:
    net, method, first = begun("hat", 0)
    second = method.begin_task(net, 1)
    net.begin_task(0)
    loop(net, method, first, 0)
    method.end_task(net, first)
    with pytest.raises(RuntimeError, match=r"tasks \[0\] were finished or forgotten"):
        loop(net, method, second, 1)
    with pytest.raises(RuntimeError, match=r"HAT\.end_task: tasks \[0\] were finished"):
        method.end_task(net, second)


def test_a_task_ends_under_the_rule_that_it_began_with() -> None:
    net, method, _ = begun("hat")
    state = maskcl.HAT(rule="const", rule_value=0.5).begin_task(net, 1)
    with pytest.raises(RuntimeError, match="began with rule 'const' and ends with 'hat'"):
        method.end_task(net, state)


def test_an_abandoned_task_that_was_not_guarded_is_noticed_when_the_next_begins() -> None:
    net, method, state = begun("hat")
    loop(net, method, state, 1, guarded=False)
    with pytest.raises(RuntimeError, match=r"HATNetwork\.begin_task: what finished tasks need"):
        method.begin_task(net, 2)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_written_between_tasks_and_after_the_last_is_noticed(name: str) -> None:
    net, method, state = begun(name, 0)
    train(net, method, state, 0)
    net.check_kept()
    with torch.no_grad():
        net.get_parameter("model.1.weight").mul_(1.1)
    net.to("cpu")  # which some loops do before every epoch: it hides nothing
    with pytest.raises(RuntimeError, match="what finished tasks need has changed"):
        net.check_kept()
    with pytest.raises(RuntimeError, match="begin_task: what finished tasks need has changed"):
        method.begin_task(net, 1)


def test_a_conversion_or_a_loaded_state_is_what_is_kept_from_then_on() -> None:
    net, _, _ = begun("hat")
    net.double()
    net.check_kept()
    other = maskcl.nn.to_hat(model(), 3, torch.zeros(2, 8), classes=[3] * 3).double()
    other.load_state_dict(net.state_dict())
    other.check_kept()
    copy.deepcopy(other).check_kept()


@pytest.mark.parametrize("name", METHODS)
def test_a_finished_tasks_norms_stand_still_in_training_mode(name: str) -> None:
    net, _, _ = begun(name)
    before = logits(net, 0)
    with torch.no_grad(), net.train().task(0):
        net(torch.randn(32, 8) * 5)
    assert torch.equal(logits(net, 0), before)
    net.forget_task(0)
    norm = net.train().get_submodule("model.2.norms.0")
    seen = norm.running_mean.clone()
    norm(torch.randn(32, 32))
    assert not torch.equal(norm.running_mean, seen)  # an ordinary norm again


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_state_that_takes_a_finished_task_back_says_so(name: str) -> None:
    net, method, state = begun(name)
    early = copy.deepcopy(net.state_dict())
    train(net, method, state, 1)
    if name == "hat":
        with pytest.warns(UserWarning, match=r"tasks \[1\] are not finished, which they were here"):
            net.load_state_dict(early)


@pytest.mark.parametrize("name", METHODS)
def test_a_model_changed_inside_a_task_is_noticed_at_its_end(name: str) -> None:
    net, method, state = begun(name)
    net.model[3] = nn.Tanh()
    with pytest.raises(ValueError, match=r"module '3' \(Tanh\) was put in the place of another"):
        train(net, method, state, 1)
    assert net.finished.tolist() == [True, False, False]


def test_negative_zeros_stay_under_an_sgd_that_maximizes() -> None:
    net, method, state = begun("hat")
    protection = state.protection
    with torch.no_grad():  # as pruning leaves them
        for parameter in protection.parameters:
            parameter.mul_(-0.0)
    net._remember_bits()
    optimizer = torch.optim.SGD(method.parameter_groups(net, 1), lr=0.1, maximize=True)
    method.protect(optimizer, net, state)
    train(net, method, state, 1, optimizer)


def test_a_wrapper_without_step_hooks_is_refused_with_the_way_out() -> None:
    class Lookahead:
        def __init__(self, inner: Any) -> None:
            self.inner, self.param_groups, self.state = inner, inner.param_groups, {}

    net, method, state = begun("hat")
    inner = torch.optim.Adam(method.parameter_groups(net, 1))
    with pytest.raises(TypeError, match=r"a Lookahead without .* call protect\(\) on the"):
        method.protect(Lookahead(inner), net, state)


def test_buffers_that_count_forwards_are_no_matter() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    torch.manual_seed(0)
    net = maskcl.nn.to_piggyback(nn.Sequential(nn.Linear(8, 8), Counted(), nn.Linear(8, 3)), 2)
    method = METHODS["piggyback"]
    for task in range(2):
        train(net, method, method.begin_task(net, task), task)


def test_gradients_of_a_functional_call_reach_the_embedding() -> None:
    net, _, _ = begun("hat")
    net.eval()
    parameters = {n: p for n, p in net.named_parameters() if p.requires_grad}
    x = torch.randn(16, 8)

    def loss(values: dict[str, Tensor]) -> Tensor:
        with net.task(1, 2.0):
            return torch.func.functional_call(net, values, (x,)).square().mean()

    loss(parameters).backward()
    found = torch.func.grad(loss)({n: p.detach() for n, p in parameters.items()})
    assert bool(found["embeddings.1"].any())
    torch.testing.assert_close(found["embeddings.1"], parameters["embeddings.1"].grad)


# --- one task of many ------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("part", ["heads", "norms"])
def test_the_task_whose_own_part_changed_is_named(name: str, task: int, part: str) -> None:
    net, _, _ = begun(name, 2)
    (holder,) = (m for m in net.model.modules() if hasattr(m, part))
    getattr(holder, part)[task].bias.data[1] += 1  # which no version counter sees
    with pytest.raises(RuntimeError, match=rf"was finished: model\.\d\.{part}\.{task}\.bias\."):
        net.check_kept()


def test_the_task_whose_mask_changed_is_named() -> None:
    net, _, _ = begun("piggyback", 2)
    net.model[4].words.data[1, 0, 3] ^= 1
    with pytest.raises(RuntimeError, match=r"was finished: model\.4\.words\[1\]\."):
        net.check_kept()
    net.model[4].words.data[1, 0, 3] ^= 1
    net.model[4].words.data[2, 0, 3] ^= 1  # of a task that is not finished
    net.check_kept()


@pytest.mark.parametrize("name", METHODS)
def test_a_changed_head_is_seen_after_a_check_that_saw_none(name: str) -> None:
    def halved(head: nn.Linear) -> None:
        head.forward = lambda x: x[..., :3]

    def with_buffer(head: nn.Linear) -> None:
        head.register_buffer("more", torch.zeros(1))

    for change in (halved, with_buffer, torch.nn.utils.parametrizations.weight_norm):
        net, _, _ = begun(name)
        net._structure.check("check", net.model)
        net._structure.check("check", net.model)
        change(net.model[6].heads[0])
        with pytest.raises(maskcl.nn.ConversionError, match="since the model was converted"):
            net._structure.check("check", net.model)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_task_that_diverged_does_not_end_and_can_be_begun_again(value):
    """0 times NaN is NaN: a finished task's outputs hang on its closed units being finite."""
    net, method, state = begun("hat")
    x = torch.randn(4, 8)
    with torch.no_grad(), net.eval().task(0):
        before = net(x)
    closed = int((~net.hard_mask(0)[:32]).nonzero()[0])
    with torch.no_grad():
        net.model[1].weight[closed] = value
    with pytest.raises(RuntimeError, match=r"HAT.end_task: training has diverged: model.1.weight"):
        method.end_task(net, state)
    assert net.finished.tolist() == [True, False, False]
    with pytest.raises(RuntimeError, match="begin_task: training has diverged"):
        method.begin_task(net, 1)
    net.forget_task(1, reset=True)
    train(net, method, method.begin_task(net, 1), 1)
    with torch.no_grad(), net.eval().task(0):
        assert torch.equal(net(x), before)
