"""Under a fixed mask a masked product is the ordinary layer's own, to the bit, for every input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import maskcl
from maskcl import ops
from tests.ops.conftest import with_reference

backend = with_reference()
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ROWS = {
    "[N, I]": lambda i: torch.randn(16, i),
    "[N, I] transposed": lambda i: torch.randn(i, 16).t(),
    "every other column": lambda i: torch.randn(16, 2 * i)[:, ::2],
    "one row": lambda i: torch.randn(1, i),
    "[I]": lambda i: torch.randn(i),
    "[N, P, I]": lambda i: torch.randn(8, 16, i),
    "without the class token": lambda i: torch.randn(8, 17, i)[:, 1:],
    "positions first": lambda i: torch.randn(16, 8, i).transpose(0, 1),
    "channels behind": lambda i: torch.randn(4, i, 3, 5).permute(0, 2, 3, 1),
    "expanded": lambda i: torch.randn(1, 6, i).expand(3, 6, i),
    "no rows": lambda i: torch.randn(0, 5, i),
}
IMAGES = {
    "contiguous": lambda: torch.randn(3, 6, 9, 8),
    "channels_last": lambda: torch.randn(3, 6, 9, 8).contiguous(memory_format=torch.channels_last),
    "cropped": lambda: torch.randn(3, 6, 11, 10)[:, :, 1:-1, 1:-1],
    "channels of more": lambda: torch.randn(3, 12, 9, 8)[:, ::2],
    "transposed": lambda: torch.randn(3, 6, 8, 9).transpose(2, 3),
    "one image": lambda: torch.randn(6, 9, 8),
}


def takes(backend: str, dtype: torch.dtype) -> None:
    if dtype not in maskcl.backends.BACKENDS[backend].dtypes:
        pytest.skip(f"{backend} does not take {dtype}")


def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return found.dtype == wanted.dtype and torch.equal(found, wanted)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_linear_is_linear(backend, device, dtype, rows, bias):
    takes(backend, dtype)
    for outs, ins in ((48, 64), (5, 7), (130, 200)):
        x = ROWS[rows](ins).to(device, dtype)
        weight = torch.randn(outs, ins).to(device, dtype)
        b = torch.randn(outs).to(device, dtype) if bias else None
        for mask in (torch.ones(outs), (torch.rand(outs) > 0.5).float()):
            mask = mask.to(device)
            for learns in (False, True):  # the layer; on that F.linear's own bits hang
                w = weight.clone().requires_grad_(learns)
                z = F.linear(x, w, b).detach()
                found = ops.masked_linear(x, w, mask, b).detach()
                assert same(found, z * mask.to(dtype))
                found = ops.masked_linear(x, w, mask, b, activation="relu").detach()
                assert same(found, z.relu() * mask.to(dtype))
                with torch.no_grad():
                    wanted = F.linear(x, w, b) * mask.to(dtype)
                    assert same(ops.masked_linear(x, w, mask, b), wanted)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_conv_is_conv2d(backend, device, dtype, images):
    takes(backend, dtype)
    x = IMAGES[images]().to(device, dtype)
    weight, b = torch.randn(16, 6, 3, 3).to(device, dtype), torch.randn(16).to(device, dtype)
    mask = (torch.rand(16) > 0.4).to(device).float()
    for stride, padding in (((1, 1), (0, 0)), ((2, 1), (1, 2))):
        wanted = F.conv2d(x, weight, b, stride, padding) * mask.to(dtype).view(-1, 1, 1)
        with torch.no_grad():
            assert same(ops.masked_conv(x, weight, mask, b, stride, padding), wanted)
        w = weight.clone().requires_grad_()
        found = ops.masked_conv(x, w, mask, b, stride, padding)
        assert same(found.detach(), wanted)


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", ["[N, I]", "without the class token", "positions first"])
def test_under_autocast_too(dtype, rows, to):
    """Which leaves float64 alone, as F.linear does."""
    x, weight, b = (
        ROWS[rows](64).to(dtype),
        torch.randn(48, 64).to(dtype),
        torch.randn(48).to(dtype),
    )
    mask = (torch.rand(48) > 0.5).float()
    with torch.autocast("cpu", to):
        wanted = F.linear(x, weight, b)
        assert wanted.dtype == (torch.float64 if dtype == torch.float64 else to)
        assert same(ops.masked_linear(x, weight, mask, b), wanted * mask.to(wanted.dtype))
        learning = ops.masked_linear(x, weight, mask.requires_grad_(), b)
        assert learning.dtype == wanted.dtype
        words = ops.pack_mask(torch.ones(48, 64))
        assert ops.packed_linear(x, weight, words, b).dtype == wanted.dtype
        scores = torch.ones(48, 64, dtype=dtype)
        assert ops.piggyback_linear(x, weight, scores, 0.1, b).dtype == wanted.dtype
        images, filters = torch.randn(2, 3, 6, 6).to(dtype), torch.randn(48, 3, 3, 3).to(dtype)
        for found in (
            ops.masked_conv(images, filters, mask.detach(), b),
            ops.masked_conv(images, filters, mask, b),
            ops.open_conv(images, filters, b),
        ):
            assert found.dtype == wanted.dtype


def test_autocast_gradients_come_in_the_arguments_dtypes():
    x = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.masked_linear(x, weight, torch.ones(5), activation="tanh")
    found = torch.autograd.grad(y.sum(), (x, weight))
    wanted = torch.autograd.grad(torch.tanh(x @ weight.t()).sum(), (x, weight))
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w)


@pytest.mark.parametrize(
    "kind", ["masked_linear", "packed_linear", "piggyback_linear", "open_conv"]
)
def test_float64_and_another_do_not_mix_under_autocast(kind):
    x, weight = torch.randn(4, 8, dtype=torch.float64), torch.randn(5, 8)
    call = {
        "masked_linear": lambda: ops.masked_linear(x, weight, torch.ones(5)),
        "packed_linear": lambda: ops.packed_linear(x, weight, torch.zeros(2, dtype=torch.int32)),
        "piggyback_linear": lambda: ops.piggyback_linear(x, weight, weight),
        "open_conv": lambda: ops.open_conv(
            torch.randn(1, 2, 4, 4).double(), torch.randn(3, 2, 1, 1), None
        ),
    }[kind]
    says = f"{kind}: weight is .*, wanted x's dtype, torch.float64"
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(TypeError, match=says):
        call()


class Tokens(nn.Module):
    """The first of the tokens is dropped, the rest is transposed and back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.a(x))
        h = torch.relu(self.b(h[:, 1:]))
        return self.head(h.mean(1))


@pytest.mark.parametrize("tokens", [2, 9, 17])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_to_plain_has_the_bits_of_the_hard_mask(dtype, tokens):
    net = maskcl.nn.to_hat(Tokens(), 2, torch.zeros(2, tokens, 16), classes=[2, 2])
    net.finish_task(0)
    plain = maskcl.nn.to_plain(net, 0).eval()
    net.eval()
    x = torch.randn(5, tokens, 16)
    halves = dtype in (torch.bfloat16, torch.float16)
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype if halves else torch.bfloat16, enabled=halves),
    ):
        if dtype == torch.float64:
            net, plain, x = net.double(), plain.double(), x.double()
        with net.task(0):
            logits = net(x)
        assert same(plain(x), logits)
