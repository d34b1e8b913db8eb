"""compact: which channels go and which must stay together, operation by operation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskcl.export import compact
from maskcl.nn import to_plain
from tests.export.zoo import network, outputs, used
from tests.nn.zoo import images


def test_flatten_repeats_a_channel_for_each_position() -> None:
    net = network("conv", 0.5)
    small, open_units = compact(net, 1), used(net, 1)
    assert 0 < open_units["4"] < 8
    assert small.get_parameter("9.weight").shape == (open_units["9"], 4 * open_units["4"])
    norm = small.get_submodule("1")
    assert norm.num_features == len(norm.running_mean) == open_units["0"]


def test_addends_of_a_residual_sum_keep_their_union() -> None:
    net = network("residual", 0.4)
    small, mask = compact(net, 1), net.hard_mask(1)
    union = mask[net.units["conv1"]] | mask[net.units["blocks.0.conv2"]]
    alone = mask[net.units["blocks.0.conv1"]]
    assert mask[net.units["conv1"]].sum() < union.sum() < 6
    assert small.get_parameter("conv1.weight").shape[0] == union.sum()
    assert small.get_parameter("blocks.0.conv2.weight").shape[:2] == (union.sum(), alone.sum())
    stem = small.get_parameter("conv1.weight")
    closed = ~mask[net.units["conv1"]][union]
    assert closed.any()
    assert not stem[closed].any()
    assert stem[~closed].any()


def test_a_layer_norm_keeps_the_channels_that_it_counts() -> None:
    net = network("prenorm", 0.3)
    small = compact(net, 1)
    assert small.get_parameter("norm1.weight").shape == (8,)
    assert small.get_parameter("up.weight").shape == (used(net, 1)["up"], 8)


class Groups(nn.Module):
    """Two grouped convolutions, a GroupNorm, a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 1)
        self.first = nn.Conv2d(12, 12, 1, groups=3)
        self.norm = nn.GroupNorm(3, 12)
        self.depthwise = nn.Conv2d(12, 24, 2, groups=12)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(F.relu(self.stem(x))))
        return self.head(self.depthwise(x).mean((2, 3)))


@torch.no_grad()
def test_groups_go_as_a_whole_or_stay_even() -> None:
    net, x = network(Groups, 1.0), images(4).double()
    span = net.units["stem"], net.units["first"], net.units["depthwise"]
    # Group 1 of the first convolution is closed throughout; of 0 and 2 three and one channel stay.
    closed = torch.tensor([0, 4, 5, 6, 7, 8, 9, 10])
    net.tasks[span[0]][closed] = 0
    net.tasks[span[1]][4:8] = 0
    net.tasks[span[2]][8:16] = 0
    small = compact(net, 1)
    torch.testing.assert_close(small(x), outputs(net, 1, x), rtol=0, atol=1e-12)
    first, depthwise = small.get_submodule("first"), small.get_submodule("depthwise")
    assert (first.groups, first.in_channels, first.out_channels) == (2, 6, 8)
    assert first.weight.shape == (8, 3, 1, 1)
    assert (small.get_submodule("norm").num_groups, small.get_submodule("norm").num_channels) == (
        2,
        8,
    )
    assert (depthwise.groups, depthwise.out_channels) == (8, 16)


def test_an_operation_unknown_here_keeps_its_channels_and_only_these() -> None:
    small = compact(network("unknown", 0.4), 1)
    assert small.get_parameter("a.weight").shape == (8, 16)
    assert small.get_parameter("b.weight").shape[0] < 6
    assert small.get_parameter("b.weight").shape[1] == 8


def test_sizes_written_as_numbers_are_put_right() -> None:
    net = network("spelled", 0.5)
    small = compact(net, 1)
    open_units = used(net, 1)
    assert 0 < open_units["conv"] < 6
    assert f"view(-1, {16 * open_units['conv']})" in small.code
    assert "6 ** 0.5" in small.code or str(6**0.5) in small.code


class Heads(nn.Module):
    """Attention twice, by the fused operation and by hand, with a constant added to the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.q, self.k, self.v = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(8, 12)
        self.register_buffer("near", torch.randn(1, 3, 4, 4))
        self.proj, self.head = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.squeeze(1))
        n, rows, _ = x.shape
        parts = (layer(x).view(n, rows, 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k, v = parts
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.near)
        y = y + ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5 + self.near).softmax(-1) @ v
        return self.head(self.proj(y.transpose(1, 2).reshape(n, rows, 12)).relu().mean(1))


@torch.no_grad()
def test_closed_heads_and_dimensions_of_attention_go() -> None:
    net, x = network(Heads, 1.0), images(4).double()
    net.tasks[net.units["v"]][4:8] = 0  # the second head
    for name in ("q", "k"):
        net.tasks[net.units[name]][1::4] = 0  # of every head
    small = compact(net, 1)
    torch.testing.assert_close(small(x), outputs(net, 1, x), rtol=0, atol=1e-12)
    shapes = {name: list(small.get_parameter(f"{name}.weight").shape) for name in "qkv"}
    assert shapes == {"q": [6, 8], "k": [6, 8], "v": [8, 8]}
    assert small.get_buffer("near").shape == (1, 2, 4, 4)


@torch.no_grad()
def test_a_hook_keeps_its_modules_channels() -> None:
    net, x = network("mlp", 0.4), images(4).double()
    net.model[2].original.register_forward_hook(lambda module, args, out: out + 1)
    plain, small = to_plain(net, 1), compact(net, 1)
    torch.testing.assert_close(small(x), plain(x), rtol=0, atol=1e-12)
    assert small.get_parameter("1.weight").shape == (12, 16)
