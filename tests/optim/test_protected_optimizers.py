"""Optimizers whose step is one op: torch's where nothing is protected, not a bit where it is."""

from __future__ import annotations

import copy
import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import maskcl
from maskcl import HAT, optim
from maskcl.nn import to_hat
from maskcl.optim import FusedStep, Guard

KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, optim.SGD, {"lr": 0.05}),
    "momentum": (torch.optim.SGD, optim.SGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.1}),
    "nesterov": (
        torch.optim.SGD,
        optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    ),
    "adam": (torch.optim.Adam, optim.Adam, {"lr": 0.01, "weight_decay": 0.01}),
    "adamw": (torch.optim.AdamW, optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.99)}),
}


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)
    )


def finished(tasks: int = 3) -> tuple[Any, HAT]:
    """A network whose first task is finished, about half of its units in use."""
    net = to_hat(mlp(), tasks, torch.zeros(2, 12), classes=[3] * tasks).train()
    net.finish_task(0)
    return net, HAT(s_max=50.0)


def loss_of(net: Any, state: Any, method: HAT) -> torch.Tensor:
    x, y = torch.randn(16, 12), torch.randint(3, (16,))
    with net.task(state.task, state.scale):
        return nn.functional.cross_entropy(net(x), y) + method.loss_term(net, state)


def step(net: Any, state: Any, method: HAT, optimizer: Any) -> None:
    optimizer.zero_grad()
    loss_of(net, state, method).backward()
    method.after_backward(net, state)
    optimizer.step()
    method.after_step(net, state)


@pytest.mark.parametrize("kind", KINDS)
def test_without_protection_it_is_torchs_step(kind: str) -> None:
    theirs, ours, options = KINDS[kind]
    models = [mlp() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (
        theirs(models[0].parameters(), **options),
        ours(models[1].parameters(), **options),
    )
    for _ in range(20):
        x, y = torch.randn(16, 12), torch.randint(3, (16,))
        for model, optimizer in zip(models, (first, second), strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    # State is exchanged in both directions, and training goes on alike.
    theirs(models[0].parameters(), **options).load_state_dict(second.state_dict())
    ours(models[1].parameters(), **options).load_state_dict(first.state_dict())
    assert first.state_dict()["state"].keys() == second.state_dict()["state"].keys()
    for a, b in zip(first.state.values(), second.state.values(), strict=True):
        assert a.keys() == b.keys()


@pytest.mark.parametrize("protection", ["exact", "min"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["built", "protected"])
def test_protected_elements_and_their_moments_keep_their_bits(
    kind: str, protection: str, how: str
) -> None:
    theirs, ours, options = KINDS[kind]
    net, _ = finished()
    method = HAT(s_max=50.0, protection=protection)
    state = method.begin_task(net, 1)
    with torch.no_grad():  # bits that arithmetic would not keep
        net.model[0].weight[:, 0] = -0.0
    net._remember_bits()
    groups = method.parameter_groups(net, 1)
    if how == "built":
        optimizer = ours(groups, protect=net, protection=protection, **options)
        step_is_ours = optimizer
    else:
        optimizer = step_is_ours = theirs(groups, **options)
        assert isinstance(method.protect(optimizer, net, state), FusedStep)
    assert "step" in vars(step_is_ours)
    before = net.protection().snapshot()
    for _ in range(5):
        step(net, state, method, optimizer)
    known = net.protection()
    moved = 0
    for p, old, out, into in zip(
        known.parameters, before, known.out_tasks, known.in_tasks, strict=True
    ):
        far = (out[:, 0, None] & into[None, :, 0]) if protection == "exact" else None
        held = far != 0 if far is not None else (out[:, 0, None] != 0) & (into[None, :, 0] != 0)
        held = held.expand(p.shape[0], -1)
        held = held if p.dim() > 1 else held[:, 0]
        held = held.expand(p.shape)
        assert torch.equal(p.detach()[held].view(torch.int32), old[held].view(torch.int32)), (
            known.names
        )
        moved += int((p.detach() != old).sum())
        for value in optimizer.state.get(p, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == p.shape:
                assert not value[held].any()
    assert moved > 0
    method.end_task(net, state)


def test_the_embedding_stays_in_its_bounds_and_gradients_stay_as_they_are() -> None:
    net, _ = finished()
    method = HAT(s_max=50.0, embedding_clamp=0.5)
    state = method.begin_task(net, 1)
    optimizer = torch.optim.SGD(method.parameter_groups(net, 1), lr=0.1)
    method.protect(optimizer, net, state)
    step(net, state, method, optimizer)
    assert float(net.embeddings[1].detach().abs().max()) == 0.5
    held = net.protection().out_tasks[0][:, 0] != 0
    assert net.model[0].weight.grad[held].any()


def test_clipping_counts_what_may_move() -> None:
    """HAT(clip=) in the step is clip_grad_norm_ behind the clamp."""
    results = []
    for fused in (True, False):
        torch.manual_seed(3)
        net, _ = finished()
        method = HAT(s_max=50.0, clip=0.05)
        state = method.begin_task(net, 1)
        optimizer: Any = torch.optim.SGD(method.parameter_groups(net, 1), lr=0.5)
        if not fused:  # a class of its own keeps its own step, under a guard
            optimizer = type("Mine", (torch.optim.SGD,), {})(
                method.parameter_groups(net, 1), lr=0.5
            )
        handle = method.protect(optimizer, net, state)
        assert isinstance(handle, FusedStep if fused else Guard)
        for _ in range(3):
            step(net, state, method, optimizer)
        results.append([p.detach().clone() for p in net.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["scheduler first", "scheduler behind"])
def test_schedulers_see_the_step(order: str, recwarn: pytest.WarningsRecorder) -> None:
    net, method = finished()
    state = method.begin_task(net, 1)
    optimizer = torch.optim.SGD(method.parameter_groups(net, 1), lr=1.0)
    if order == "scheduler first":
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    handle = method.protect(optimizer, net, state)
    if order == "scheduler behind":
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for _ in range(2):
        step(net, state, method, optimizer)
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.25
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]
    assert handle is not None
    handle.remove()
    optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_a_scaler_scales_and_skips(fused: bool) -> None:
    results = []
    for scaled in (False, True):
        torch.manual_seed(5)
        net, method = finished()
        state = method.begin_task(net, 1)
        optimizer = torch.optim.AdamW(method.parameter_groups(net, 1), lr=0.01, fused=fused)
        method.protect(optimizer, net, state)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        for _ in range(3):
            optimizer.zero_grad()
            scaler.scale(loss_of(net, state, method)).backward()
            method.after_backward(net, state, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
        results.append([p.detach().clone() for p in net.parameters()])
        if scaled:
            net.model[0].weight.grad.fill_(float("inf"))
            scaler.step(optimizer)
            for p, old in zip(net.parameters(), results[-1], strict=True):
                assert torch.equal(p.detach(), old)
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_step_that_a_scaler_skips_leaves_no_state_unwritten(kind: str) -> None:
    theirs, ours, options = KINDS[kind]
    p, q = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimizer: Any = ours([p], fused=True, **options)
    optimizer.grad_scale = torch.tensor(2.0)
    for found_inf, size in ((1.0, float("inf")), (0.0, 2.0), (0.0, 2.0)):
        optimizer.found_inf = torch.tensor(found_inf)
        p.grad = torch.full((4, 4), size)
        optimizer.step()
        if found_inf:
            assert torch.equal(p.detach(), torch.ones(4, 4))
    right = theirs([q], **options)
    for _ in range(2):
        q.grad = torch.ones(4, 4)
        right.step()
    torch.testing.assert_close(p, q)


def test_hooks_see_and_change_a_steps_arguments_as_they_do_with_torch() -> None:
    seen: list[list[Any]] = [[], []]
    weights = [nn.Parameter(torch.ones(2)) for _ in range(2)]
    for known, weight, is_fused in zip(seen, weights, (True, False), strict=True):
        optimizer = torch.optim.SGD([weight], lr=0.1)
        if is_fused:
            assert maskcl.optim.fuse(optimizer) is not None

        def loss(weight=weight) -> torch.Tensor:
            weight.grad = torch.ones(2)
            return weight.sum()

        def before(optimizer, args, kwargs, known=known, loss=loss) -> Any:
            known.append((len(args), args[0] is optimizer, kwargs))
            return (args[0], loss), {}

        def after(optimizer, args, kwargs, known=known, loss=loss) -> None:
            known.append((len(args), args[1] is loss, kwargs))

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        known.append(optimizer.step())
    assert torch.equal(*weights) and float(weights[0][0]) < 1
    assert seen[0] == seen[1]
    optimizer.register_step_pre_hook(lambda *_: 3)
    assert maskcl.optim.fuse(optimizer) is not None
    with pytest.raises(RuntimeError, match="gave 3, wanted None or a tuple"):
        optimizer.step()


def test_closures_hooks_rates_and_groups_added_later() -> None:
    net, method = finished()
    state = method.begin_task(net, 1)
    groups = method.parameter_groups(net, 1)
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam(groups[:1], lr=rate, fused=True)
    method.protect(optimizer, net, state)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(net, state, method)
        loss.backward()
        method.after_backward(net, state)
        return loss

    before = net.model[0].weight.detach().clone()
    assert isinstance(optimizer.step(closure), torch.Tensor)
    assert seen == ["before", "after"]
    assert not torch.equal(net.model[0].weight, before)
    rate.zero_()
    before = net.model[0].weight.detach().clone()
    optimizer.step(closure)
    assert torch.equal(net.model[0].weight, before)
    embedding = net.embeddings[1].detach().clone()
    optimizer.add_param_group({**groups[1], "lr": 0.1})
    optimizer.step(closure)
    assert not torch.equal(net.embeddings[1], embedding)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_of_any_shape(kind: str) -> None:
    theirs, ours, options = KINDS[kind]
    shapes: list[tuple[int, ...]] = [(), (1,), (0,), (3, 0), (2, 3, 4), (2, 3, 1, 2)]
    firsts, seconds = ([nn.Parameter(torch.ones(s)) for s in shapes] for _ in range(2))
    optimizers = theirs(firsts, **options), ours(seconds, max_norm=1e9, **options)
    for _ in range(3):
        for a, b in zip(firsts, seconds, strict=True):
            a.grad = b.grad = torch.randn(a.shape)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(firsts, seconds, strict=True):
        torch.testing.assert_close(a, b)


def test_half_precision_keeps_moments_in_float32() -> None:
    p = nn.Parameter(torch.randn(8, 8).bfloat16())
    optimizer = optim.AdamW([p], lr=0.01, state_dtype=torch.float32)
    p.grad = torch.randn(8, 8).bfloat16()
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype == torch.float32
    again = optim.AdamW([p], lr=0.01, state_dtype=torch.float32)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(again.state[p]["exp_avg_sq"], optimizer.state[p]["exp_avg_sq"])
    assert again.state[p]["exp_avg"].dtype == torch.float32
    plain = optim.AdamW([nn.Parameter(p.detach().clone())], lr=0.01)
    plain.param_groups[0]["params"][0].grad = p.grad
    plain.step()
    assert next(iter(plain.state.values()))["exp_avg"].dtype == torch.bfloat16


def test_other_optimizers_are_guarded() -> None:
    net, method = finished()
    state = method.begin_task(net, 1)
    groups = method.parameter_groups(net, 1)
    for optimizer in (
        torch.optim.RMSprop(groups),
        torch.optim.Adam(groups, amsgrad=True),
        torch.optim.NAdam(groups),
    ):
        assert isinstance(method.protect(optimizer, net, state), Guard)


def test_an_option_that_the_step_does_not_do_is_refused_and_never_left_out() -> None:
    net, method = finished()
    method.begin_task(net, 1)
    parameters = net.task_parameters(1)
    with pytest.raises(ValueError, match=r"Adam: amsgrad is set; maskcl\.optim\.protect takes"):
        optim.Adam(parameters, amsgrad=True)
    with pytest.raises(ValueError, match="SGD: protection is 'all', wanted 'exact' or 'min'"):
        optim.SGD(parameters, lr=0.1, protection="all")
    with pytest.raises(ValueError, match="AdamW: max_norm is 0, wanted a number above 0 or None"):
        optim.AdamW(parameters, max_norm=0)
    with pytest.raises(ValueError, match=r"AdamW: state_dtype is torch\.float16"):
        optim.AdamW(parameters, state_dtype=torch.float16)
    with pytest.raises(TypeError, match="SGD: protect is a Sequential, wanted a HATNetwork"):
        optim.SGD(parameters, protect=mlp())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="protect: net is None"):
        optim.protect(torch.optim.SGD(parameters), None)  # type: ignore[arg-type]
    optimizer = optim.AdamW(parameters, protect=net)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(RuntimeError, match=r"AdamW\.step: amsgrad is set, which the protected"):
        optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = False
    parameters[0].grad = parameters[0].grad.to_sparse()
    with pytest.raises(RuntimeError, match="a gradient is sparse"):
        optimizer.step()


def test_a_replaced_parameter_raises() -> None:
    net, method = finished()
    method.begin_task(net, 1)
    optimizer = optim.SGD(net.task_parameters(1), lr=0.1, protect=net)
    net.load_state_dict(net.state_dict(), assign=True)
    with pytest.raises(RuntimeError, match=r"SGD\.step: .* is no longer the parameter"):
        optimizer.step()


def test_after_remove_the_gradients_are_clamped_again() -> None:
    net, method = finished()
    state = method.begin_task(net, 1)
    optimizer = torch.optim.SGD(net.task_parameters(1), lr=0.1)
    handle = method.protect(optimizer, net, state)
    assert state.is_fused and handle is not None
    handle.remove()
    assert "step" not in vars(optimizer)
    step(net, state, method, optimizer)
    method.end_task(net, state)


def test_an_old_handle_takes_no_new_protection_away() -> None:
    net, method = finished()
    state = method.begin_task(net, 1)
    optimizer = torch.optim.SGD(net.task_parameters(1), lr=0.1, momentum=0.9, weight_decay=0.1)
    old = method.protect(optimizer, net, state)
    new = method.protect(optimizer, net, state)
    assert old is not None and new is not None
    old.remove()
    step(net, state, method, optimizer)
    net.check_kept()
    new.remove()
    before = net.model[0].weight.detach().clone()
    optimizer.step()  # torch's own again
    assert not torch.equal(net.model[0].weight, before)
    with pytest.raises(RuntimeError, match="what finished tasks need has changed"):
        net.check_kept()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_copy_does_not_step_unprotected(kind: str) -> None:
    _, ours, options = KINDS[kind]
    net, method = finished()
    method.begin_task(net, 1)
    optimizer = copy.deepcopy(ours(net.task_parameters(1), protect=net, **options))
    with pytest.raises(RuntimeError, match=r"step: this optimizer is a copy or came out of a pick"):
        optimizer.step()


def test_two_optimizers_share_a_network() -> None:
    net, method = finished()
    state = method.begin_task(net, 1)
    shared, own = (group["params"] for group in method.parameter_groups(net, 1))
    optimizers = torch.optim.SGD(shared, lr=0.1), torch.optim.SGD(own, lr=0.1)
    for optimizer in optimizers:
        method.protect(optimizer, net, state)
    assert not state.is_fused  # each knows its own part alone: gradients are clamped as ever
    loss_of(net, state, method).backward()
    method.after_backward(net, state)
    for optimizer in optimizers:
        optimizer.step()
    method.after_step(net, state)
    method.end_task(net, state)


@pytest.mark.parametrize("kind", KINDS)
def test_five_tasks_in_a_row_forget_nothing(kind: str) -> None:
    theirs, ours, options = KINDS[kind]
    x = torch.randn(32, 12)
    for built in (False, True):
        net = to_hat(mlp(), 5, torch.zeros(2, 12), classes=[3] * 5)
        method, kept = HAT(s_max=50.0), []
        for task in range(5):
            net.train()
            state = method.begin_task(net, task)
            groups = method.parameter_groups(net, task)
            if built:
                optimizer = ours(groups, protect=net, **options)
            else:
                optimizer = theirs(groups, **options)
                method.protect(optimizer, net, state)
            for i in range(8):
                method.before_step(net, state, i / 7)
                step(net, state, method, optimizer)
            method.end_task(net, state)
            net.eval()
            for k in range(task + 1):
                with torch.no_grad(), net.task(k):
                    out = net(x)
                if k == task:
                    kept.append(out)
                assert torch.equal(out, kept[k])


def test_the_optimizers_are_found_behind_a_bare_import() -> None:
    code = "import maskcl; print(maskcl.optim.AdamW.__mro__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch.optim.adamw.AdamW" in ran.stdout


def test_public_names() -> None:
    for name, kind in itertools.product(("SGD", "Adam", "AdamW"), (torch.optim,)):
        assert issubclass(getattr(maskcl.optim, name), getattr(kind, name))
