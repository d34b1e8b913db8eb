"""Which units feed which weight: by hand, and against what the numbers themselves say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskcl.nn import ConversionError, HATNetwork, to_hat
from tests.nn.zoo import MODELS, assert_restores, images

NAMES = list(MODELS)
# Their outputs enter products, which the other factor closes too: more is protected than matters.
FACTORS = {"prenorm": "model.qkv", "excite": "model.expand", "concat": "model.head"}


def converted(name: str, classes: list[int] | None = None, tasks: int = 3) -> HATNetwork:
    return to_hat(MODELS[name](), tasks, images(2), classes=classes).eval()


def feed(net: HATNetwork, layer: str) -> list[list[int]]:
    found = net.topology.feeds[layer]
    assert found is not None
    return found.tolist()


def protected_elements(net: HATNetwork, exact: bool = True) -> list[Tensor]:
    """Dense masks of what is protected, found by restoring ones over zeros."""
    protection = net.protection()
    before = protection.snapshot()
    with torch.no_grad():
        for parameter in protection.parameters:
            parameter.zero_()
        protection.restore_([torch.ones_like(p) for p in protection.parameters], exact)
        found = [p == 1 for p in protection.parameters]
        for parameter, old in zip(protection.parameters, before, strict=True):
            parameter.copy_(old)
    return found


def test_flatten_repeats_each_channel_per_position() -> None:
    net = converted("conv")
    start = net.units["4"].start
    assert feed(net, "9") == [[start + c for c in range(8) for _ in range(4)]]
    assert net.topology.feeds["0"] is None


def test_residual_sum_is_the_union_of_its_branches() -> None:
    net = converted("residual")
    stem, branch = net.units["conv1"], net.units["blocks.0.conv2"]
    both = [list(range(stem.start, stem.stop)), list(range(branch.start, branch.stop))]
    assert feed(net, "blocks.1.conv1") == both
    assert feed(net, "blocks.1.downsample.0") == both


def test_concatenation_keeps_order_and_marks_the_network_input() -> None:
    net = converted("concat")
    assert feed(net, "c") == [[-1, *range(4), *range(4, 9)]]


def test_channel_shuffle_permutes_units() -> None:
    net = converted("grouped")
    start = net.units["grouped"].start
    shuffled = torch.arange(start, start + 12).view(4, 3).t().reshape(-1)
    assert feed(net, "depthwise") == [shuffled.tolist()]


def test_attention_carries_the_units_of_its_values() -> None:
    net = converted("prenorm")
    start = net.units["qkv"].start
    assert feed(net, "proj") == [list(range(start + 16, start + 24))]


def test_token_mixing_reads_all_channels_at_every_position() -> None:
    net = converted("excite")
    assert feed(net, "mix") == [[c] * 4 for c in range(8)]


def test_no_unit_feeds_a_zero_padded_channel() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 3, 1), nn.Conv2d(3, 5, 1), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.c(
                (self.b(F.pad(x, (0, 0, 0, 0, 1, 1))[:, 1:4]) + F.pad(x, (0, 0, 0, 0, 1, 1))).amax(
                    (2, 3)
                )
            )

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.last = Padded(), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.body(x))

    net = to_hat(Head(), 1, images(2))
    assert feed(net, "body.c") == [[-2, 0, 1, 2, -2], [3, 4, 5, 6, 7]]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [[2, 3, 4], None], ids=["heads", "shared"])
def test_protected_weights_are_those_that_a_task_depends_on(
    name: str, classes: list[int] | None
) -> None:
    """One task: a weight is protected just where the task's outputs have a gradient to it."""
    net = converted(name, classes)
    with torch.no_grad():
        for key, parameter in net.model.named_parameters():
            if key.endswith("bias"):
                parameter.fill_(0.5)  # so that no ReLU is dead
    net.begin_task(1)
    with net.task(1):
        net(images(200)).square().sum().backward()
    protection = net.protection()
    used = [torch.zeros_like(p) if p.grad is None else p.grad for p in protection.parameters]
    net.finish_task(1)
    for key, found, grad in zip(protection.names, protected_elements(net), used, strict=True):
        # Over a kernel's positions: one that only ever meets padding has no gradient.
        found, wanted = (t.flatten(2).any(-1) if t.dim() > 2 else t for t in (found, grad != 0))
        if key.startswith(FACTORS.get(name, "-")):
            assert bool((found | ~wanted).all()), key
        else:
            assert torch.equal(found, wanted), key
        assert 0 < found.double().mean() <= 1, key


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "min"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_depend_on_nothing_but_protected_elements(name: str, exact: bool) -> None:
    """Everything else becomes random: the finished tasks' logits keep their bits."""
    net = converted(name, [2, 3, 4])
    net.finish_task(0)
    net.finish_task(2)
    with torch.no_grad():
        before = {}
        for k in (0, 2):
            with net.task(k):
                before[k] = net(images(20))
        protection = net.protection()
        saved = protection.snapshot()
        for parameter in [*protection.parameters, *net.task_parameters(1)]:
            parameter.normal_(std=3)
        protection.restore_(saved, exact)
        changed = sum(
            int((a != b).sum()) for a, b in zip(saved, protection.parameters, strict=True)
        )
        assert changed > 0
        for k in (0, 2):
            with net.task(k):
                assert torch.equal(net(images(20)), before[k])
        with net.task(1):
            assert not torch.equal(net(images(20)), before[0][:, :1].expand(-1, 3))


def test_exact_protects_no_more_than_min_and_less_where_tasks_share_no_path() -> None:
    net = to_hat(
        nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        2,
        torch.randn(2, 3),
    )
    with torch.no_grad():
        # Task 0 uses units 0, 1 of both layers, task 1 units 2, 3.
        for k in (0, 1):
            net.embeddings[k].copy_(
                torch.tensor([1.0 if u % 4 // 2 == k else -1.0 for u in range(8)])
            )
            net.finish_task(k)
    exact, least = net.protection().fraction(True), net.protection().fraction(False)
    assert exact["model.2.weight"] == 0.5
    assert least["model.2.weight"] == 1.0
    assert exact["model.0.weight"] == least["model.0.weight"] == 1.0


def test_a_layer_called_twice_reads_the_units_of_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.again, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.first(x))
            return self.last(torch.tanh(self.again(torch.tanh(self.again(x)))))

    net = to_hat(Twice(), 2, torch.randn(2, 4)).eval()
    assert feed(net, "again") == [list(range(6)), list(range(6, 12))]
    net.finish_task(0)
    assert_restores(net, torch.randn(9, 4))


def test_masks_wait_for_a_batch_norm_but_not_for_norms_that_mix_channels() -> None:
    assert converted("conv").topology.moved == {"0", "9"}
    assert converted("prenorm").topology.moved == set()
    assert converted("grouped").topology.moved == set()


@pytest.mark.parametrize("name", ["prenorm", "grouped"])
def test_closed_units_add_exact_zeros_to_norms_that_mix_channels(name: str) -> None:
    net = converted(name)
    seen: list[tuple[Tensor, Tensor]] = []
    for key, module in net.model.named_modules():
        if key in net.topology.masks:
            module.register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        for embedding in net.embeddings:
            embedding.copy_(torch.where(torch.arange(embedding.numel()) % 2 == 0, 1.0, -1.0))
    with torch.no_grad(), net.task(0):
        net(images(5))
    assert len(seen) == len(net.topology.masks)
    for entered, left in seen:
        closed = entered.movedim(1 if name == "grouped" else -1, 0)[1::2]
        assert torch.equal(closed, torch.zeros_like(closed))
        assert torch.equal(left == 0, entered == 0)


class Between(nn.Module):
    """Two layers with ``between`` applied to the first's output, [N, 6]."""

    def __init__(self, between: Callable[[Tensor], Tensor], inputs: int = 6) -> None:
        super().__init__()
        self.between = between
        self.first, self.last = nn.Linear(4, 6), nn.Linear(inputs, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(torch.tanh(self.first(x))))


# What the last layer reads: None where every task uses every input.
MIXED: dict[str, tuple[Between, list[list[int]] | None]] = {
    "mean of two units": (
        Between(lambda x: x.view(-1, 3, 2).mean(2), 3),
        [[0, 2, 4], [1, 3, 5]],
    ),
    "mean of many units": (
        Between(lambda x: x.repeat(1, 2).mean(1, keepdim=True).expand(-1, 6)),
        None,
    ),
    "sum over units in a product": (Between(lambda x: x @ torch.ones(6, 6)), None),
    "addcmul": (
        Between(lambda x: torch.addcmul(x, x.flip(1), x)),
        [[*range(6)], [*range(5, -1, -1)]],
    ),
}


@pytest.mark.parametrize("name", list(MIXED))
def test_units_that_are_mixed_all_count(name: str) -> None:
    model, wanted = MIXED[name]
    net = to_hat(model, 2, torch.randn(2, 4)).eval()
    found = net.topology.feeds["last"]
    assert (found if found is None else found.tolist()) == wanted
    net.finish_task(0)
    assert_restores(net, torch.randn(9, 4))


def test_a_matrix_product_with_an_argument_by_name_is_refused_with_a_remedy() -> None:
    model = Between(lambda x: torch.matmul(x, other=torch.ones(6, 6)))
    with pytest.raises(ConversionError, match=r"matmul\(\).* cannot be followed.*sources="):
        to_hat(model, 2, torch.randn(2, 4))


def test_a_norm_of_tokens_of_which_one_has_no_units_is_read_by_every_task() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.randn(1, 1, 8))
            self.embed, self.norm, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
            return self.last(self.norm(x).mean(1))

    net = to_hat(Tokens(), 2, torch.randn(2, 3, 4)).eval()
    assert net.topology.feeds["last"] is None and net.topology.masks == {}
    net.finish_task(0)
    assert_restores(net, torch.randn(5, 3, 4))


@pytest.mark.parametrize(
    "use",
    [
        lambda h: h**0,
        lambda h: torch.pow(h, 0.0),
        lambda h: h**-0.5,
        lambda h: torch.pow(input=h, exponent=0),
        lambda h: h * float("inf"),
        lambda h: h / 0,
        lambda h: h + float("nan"),
    ],
)
def test_numbers_that_make_something_of_a_closed_units_zero_are_refused(use) -> None:
    class Used(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(use(torch.relu(self.a(x))))

    with pytest.raises(ConversionError):
        to_hat(Used(), 2, torch.ones(2, 4))


def test_positive_powers_keep_a_closed_units_zero() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x)) ** 2 + torch.pow(self.a(x), 3.0))

    assert to_hat(Squared(), 2, torch.ones(2, 4)).topology.feeds["b"] is not None
