"""Products that leave closed units out: every backend against float64, and proof that they do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from maskcl import backends, ops
from tests.helpers import assert_close, assert_sum_close, variants

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# N, I, O: fewer rows than tiles are for, ragged tiles, several blocks of rows, terms and columns.
LINEAR = [(0, 5, 4), (3, 0, 4), (4, 33, 17), (37, 50, 41), (130, 97, 70), (200, 1100, 65)]
# N, I, O, (H, W), kernel, stride, padding, dilation.
CONV = [
    (2, 16, 18, (9, 7), (3, 2), (1, 1), (0, 0), (1, 1)),
    (3, 20, 33, (8, 11), (3, 3), (2, 1), (1, 2), (1, 2)),
    (5, 3, 16, (5, 5), (2, 2), (1, 2), (0, 0), (1, 1)),
    (1, 17, 16, (1, 30), (1, 1), (1, 3), (0, 0), (1, 1)),
    (9, 16, 40, (4, 4), (3, 3), (3, 3), (2, 2), (1, 1)),
]
SMALL = 1e-14


def closed(columns: int, share: float, device: str) -> torch.Tensor:
    """``share`` of these columns exactly 0, and a tenth of the others small, which are open."""
    factors = torch.ones(columns, device=device)
    count = int(share * columns)
    order = torch.randperm(columns, device=device)
    factors[order[:count]] = 0.0
    factors[order[count::10]] = SMALL
    return factors


def linear_inputs(shape, share, dtype, device):
    rows, ins, outs = shape
    x = torch.randn(rows, ins, device=device) * closed(ins, share, device)
    g = torch.randn(rows, outs, device=device) * closed(outs, share, device)
    w, b = torch.randn(outs, ins, device=device), torch.randn(outs, device=device)
    return [t.to(dtype) for t in (x, g, w, b)]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", LINEAR, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_matches_float64(backend, device, dtype, shape, share):
    if backends.not_supported_reasons(backend, "open_linear", device, dtype):
        pytest.skip(f"{backend} does not take {dtype}")
    x, g, w, b = linear_inputs(shape, share, dtype, device)
    run, back = backends.select("open_linear", x), backends.select("open_linear_backward", x)
    views = [variants(t).values() for t in (x, g, w)]
    for view, grad, weight in zip(*views, strict=True):
        terms = view.double()[:, None] * weight.double()
        if shape[1]:
            assert_sum_close(run(view, weight, b) - b, terms, [2], dtype, scale=4)
            assert_sum_close(run(view, weight, None), terms, [2], dtype, scale=4)
            assert_sum_close(run(view, weight, b, True) - b, terms, [2], dtype, scale=4)
        dx, dw = back(grad, view, weight, True, True)
        assert_sum_close(dx, grad.double()[:, :, None] * weight.double(), [1], dtype, scale=4)
        assert_sum_close(
            dw, grad.double()[:, :, None] * view.double()[:, None], [0], dtype, scale=4
        )
        for want in ((True, False), (False, True)):
            found = back(grad, view, weight, *want)
            assert [t.numel() for t in found] == [
                t.numel() * wanted for t, wanted in zip((dx, dw), want, strict=True)
            ]


def conv_inputs(case, share, dtype, device):
    n, ins, outs, size, kernel, stride, padding, dilation = case
    options = [list(stride), list(padding), list(dilation)]
    x = torch.randn(n, ins, *size, device=device) * closed(ins, share, device).view(-1, 1, 1)
    w, b = torch.randn(outs, ins, *kernel, device=device), torch.randn(outs, device=device)
    y = F.conv2d(x, w, b, *options)
    g = torch.randn_like(y) * closed(outs, share, device).view(-1, 1, 1)
    x, w, b, g = (t.to(dtype) for t in (x, w, b, g))
    return x.contiguous(memory_format=torch.channels_last), w, b, g, options


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("case", CONV, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("images", [torch.contiguous_format, torch.channels_last], ids=str)
def test_convolution_matches_float64(backend, device, dtype, case, share, images):
    if backends.not_supported_reasons(backend, "open_conv", device, dtype):
        pytest.skip(f"{backend} does not take {dtype}")
    x, w, b, g, options = conv_inputs(case, share, dtype, device)
    x = x.contiguous(memory_format=images)
    run, back = backends.select("open_conv", x), backends.select("open_conv_backward", x)
    wide = [t.double().requires_grad_() for t in (x, w, b)]
    right = F.conv2d(*wide, *options)
    slack = 8 * w[0].numel() ** 0.5  # of sums of standard normals
    for order in (torch.contiguous_format, torch.channels_last):
        weight = w.contiguous(memory_format=order)
        for bias, wanted in ((b, right), (None, right - wide[2].view(-1, 1, 1))):
            y = run(x, weight, bias, *options)
            assert y.is_contiguous(memory_format=images)
            assert_close(y, wanted.detach(), dtype, scale=slack)
        grads = torch.autograd.grad(right, wide, g.double(), retain_graph=True)
        found = back(g.contiguous(memory_format=order), x, weight, *options, True, True, True)
        assert found[1].stride() == weight.stride()
        for f, wanted in zip(found, grads, strict=True):
            assert_close(f, wanted, dtype, scale=slack * right[0, 0].numel() ** 0.5)
        for i, one in enumerate(([True, False, False], [False, True, False], [False, False, True])):
            only = back(g, x, weight, *options, *one)
            assert_close(only[i], grads[i], dtype, scale=slack * right[0, 0].numel() ** 0.5)
            assert all(t.numel() == 0 for j, t in enumerate(only) if j != i)


def half_closed(columns: int) -> torch.Tensor:
    return torch.arange(columns) % 2 == 0


def test_closed_units_are_not_multiplied():
    """Their weights may be NaN: nothing that they touch is."""
    x, w = torch.rand(64, 40), torch.randn(50, 40)
    shut, out_shut = half_closed(40), half_closed(50)
    x[:, shut] *= -0.0
    w[:, shut] = float("nan")
    run = backends.select("open_linear", x)
    assert run(x, w, None).isfinite().all()
    w = torch.randn(50, 40)
    w[out_shut] = float("nan")
    g = torch.rand(64, 50)
    g[:, out_shut] *= -0.0
    dx, dw = backends.select("open_linear_backward", x)(g, x, w, True, True)
    assert dx.isfinite().all()
    assert (dw[out_shut] == 0).all() and (dw[:, shut] == 0).all()
    assert (dw[~out_shut][:, ~shut] > 0).all()


ORDERS = pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)


@ORDERS
def test_closed_channels_are_not_multiplied(order):
    x = torch.rand(4, 16, 6, 6).contiguous(memory_format=order)
    shut, out_shut = half_closed(16), half_closed(18)
    x[:, shut] *= -0.0
    w = torch.randn(18, 16, 3, 3)
    w[:, shut] = float("nan")
    y = ops.open_conv(x, w, None)
    assert y.isfinite().all()
    w = torch.randn(18, 16, 3, 3)
    w[out_shut] = float("nan")
    assert y.is_contiguous(memory_format=order)
    g = torch.rand_like(y)
    g[:, out_shut] *= -0.0
    options = [1, 1], [0, 0], [1, 1]
    run = backends.select("open_conv_backward", x)
    dx, dw, db = run(g, x, w, *options, True, True, True)
    assert dx.isfinite().all() and (db[~out_shut] > 0).all()
    assert (dw[out_shut] == 0).all() and (dw[:, shut] == 0).all()
    assert (dw[~out_shut][:, ~shut] > 0).all()


@ORDERS
def test_where_no_channel_is_open_the_bias_is_left(order):
    x, w, b = torch.zeros(2, 16, 6, 6), torch.full((18, 16, 3, 3), torch.nan), torch.randn(18)
    x = x.contiguous(memory_format=order)
    assert torch.equal(ops.open_conv(x, w, b), b.view(-1, 1, 1).expand(2, 18, 4, 4))
    assert (ops.open_conv(x, w, None) == 0).all()
    back = backends.select("open_conv_backward", x)
    options = [1, 1], [0, 0], [1, 1]
    for grad in (torch.zeros(2, 18, 4, 4), torch.rand(2, 18, 4, 4)):
        dx, dw, _ = back(grad, x, w, *options, not grad.any(), True, False)
        assert (dx == 0).all() and (dw == 0).all() and dw.shape == w.shape


def test_only_exact_zeros_are_left_out():
    """However small a column is beside the others: what it meets may be as large."""
    x, w = torch.rand(64, 40), torch.ones(50, 40)
    for least in (1e-18, 1e-30, 2.0**-126):
        x[:, half_closed(40)] = 0.0
        x[:, 4] = least
        for big, bad in ((1.0, torch.nan), (1 / least, 1 / least)):
            w[:, 4] = bad
            y = backends.select("open_linear", x)(x, w, None)
            torch.testing.assert_close(y, F.linear(x, w), rtol=1e-5, atol=1e-5, equal_nan=True)
            assert bool(y.isnan().all()) == (big == 1.0)


def powers(*shape: int, device: str) -> torch.Tensor:
    return 2.0 ** torch.randint(-50, 51, shape, device=device)


@pytest.mark.parametrize("rows", [40, 200])
def test_every_column_has_the_digits_of_float32(backend, device, rows):
    """Columns of any size, among others that are 0, with weights as large as they are small."""
    ins, outs = 60, 70
    of_x, of_g = powers(ins, device=device), powers(outs, device=device)
    x = torch.randn(rows, ins, device=device) * of_x * (torch.arange(ins, device=device) % 2)
    g = torch.randn(rows, outs, device=device) * of_g * (torch.arange(outs, device=device) % 2)
    w = torch.randn(outs, ins, device=device)
    run, back = backends.select("open_linear", x), backends.select("open_linear_backward", x)
    for found, terms, dim in (
        (run(x, w / of_x, None), x.double()[:, None] * (w / of_x).double(), 2),
        (
            back(g, x, w / of_g[:, None], True, False)[0],
            g.double()[:, :, None] * (w / of_g[:, None]).double(),
            1,
        ),
        (back(g, x, w, False, True)[1], g.double()[:, :, None] * x.double()[:, None], 0),
    ):
        error = (found.double() - terms.sum(dim)).abs()
        assert (error <= 4e-6 * terms.abs().sum(dim)).all()


@ORDERS
def test_every_channel_has_the_digits_of_float32(order):
    of_x, of_g = powers(16, device="cpu"), powers(18, device="cpu")
    x = torch.rand(4, 16, 6, 6) * (of_x * half_closed(16)).view(-1, 1, 1)
    x = x.contiguous(memory_format=order)
    g = torch.rand(4, 18, 4, 4) * (of_g * half_closed(18)).view(-1, 1, 1)
    w = torch.rand(18, 16, 3, 3) + 0.5
    rest = [1, 1], [0, 0], [1, 1]
    y = ops.open_conv(x, w / of_x.view(-1, 1, 1), None)
    dx = torch.ops.maskcl.open_conv_backward(
        g, x, w / of_g.view(-1, 1, 1, 1), *rest, True, False, False
    )[0]
    dw = torch.ops.maskcl.open_conv_backward(g, x, w, *rest, False, True, False)[1]
    wide, zeros = [t.double() for t in (x, w, g, of_x, of_g)], [0, 0]
    right = F.conv2d(wide[0], wide[1] / wide[3].view(-1, 1, 1))
    backward = torch.ops.aten.convolution_backward
    options = [None, *rest, False, zeros, 1]
    right_dx = backward(
        wide[2], wide[0], wide[1] / wide[4].view(-1, 1, 1, 1), *options, [True, False, False]
    )[0]
    right_dw = backward(wide[2], wide[0], wide[1], *options, [False, True, False])[1]
    for found, wanted in ((y, right), (dx, right_dx), (dw, right_dw)):  # sums of positive terms
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rows", [40, 200])
def test_what_is_not_finite_goes_where_torch_has_it(rows):
    """With finite weights; zeros beside NaN and infinity are left out all the same."""
    for bad in (torch.inf, -torch.inf, torch.nan):
        x, w = torch.rand(rows, 40) * half_closed(40), torch.randn(50, 40)
        x[3, 2] = bad
        y = backends.select("open_linear", x)(x, w, None)
        torch.testing.assert_close(y, F.linear(x, w), rtol=1e-4, atol=1e-4, equal_nan=True)
        assert not y[3].isfinite().any() and y[4].isfinite().all()


def test_zero_times_nan_by_the_share_of_zeros():
    """As documented: NaN where the zeros are too few to be left out, as in F.linear."""
    for rows in (40, 200):
        x, w = torch.rand(rows, 40), torch.randn(50, 40)
        x[:, 0], w[:, 0] = 0.0, torch.nan
        assert backends.select("open_linear", x)(x, w, None).isnan().all()
        x[:, half_closed(40)] = 0.0
        assert backends.select("open_linear", x)(x, w, None).isfinite().all()
        assert backends.select("open_linear", x)(x, w, None, True).isnan().all()


def test_open_layers_have_the_bits_of_ordinary_ones():
    x, w, b = torch.randn(64, 40), torch.randn(50, 40), torch.randn(50)
    assert torch.equal(backends.select("open_linear", x)(x, w, b, True), F.linear(x, w, b))
    for mask in (torch.ones(50), torch.ones(50, requires_grad=True)):
        y = ops.masked_linear(x, w, mask, b)
        torch.testing.assert_close(y.detach(), F.linear(x, w, b))
        assert mask.requires_grad or torch.equal(y, F.linear(x, w, b))
    w, b = torch.randn(18, 16, 3, 3), torch.randn(18)
    for order in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(4, 16, 6, 6).contiguous(memory_format=order)
        assert torch.equal(ops.open_conv(x, w, b), F.conv2d(x, w, b))


def test_fixed_masks_leave_an_ordinary_network_s_bits():
    """Closed units or not: a task's outputs are those of its plain network."""
    shut = ~half_closed(40)
    x, w, mask = torch.rand(64, 40) * shut, torch.randn(50, 40), (~half_closed(50)).float()
    assert torch.equal(ops.masked_linear(x, w, mask), F.linear(x, w) * mask)
    x = torch.rand(4, 40, 6, 6) * shut.view(-1, 1, 1)
    w = torch.randn(50, 40, 3, 3)
    for order in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=order)
        assert torch.equal(ops.masked_conv(x, w, mask), F.conv2d(x, w) * mask.view(-1, 1, 1))


def test_what_closed_units_weigh_changes_no_bit():
    """The promise: later tasks move weights between units that this one does not use."""
    x = torch.rand(64, 40) * ~half_closed(40)
    w = torch.randn(50, 40)
    other = torch.where(half_closed(40), torch.randn(50, 40), w)
    run = backends.select("open_linear", x)
    assert torch.equal(run(x, w, None), run(x, other, None))


@pytest.mark.parametrize("rows", [40, 64, 200])
def test_leaving_out_exact_zeros_changes_no_bit(rows):
    """Sums are chains over ascending units: more zeros in some batch do not show in another."""
    x = torch.rand(rows, 600) * (torch.arange(600) % 2 == 0)
    more = x * (torch.arange(600) % 3 == 0)
    w = torch.randn(50, 600)
    run = backends.select("open_linear", x)
    beside = torch.cat([x, more])  # its open units are x's
    assert torch.equal(run(beside, w, None)[rows:], run(more, w, None))


@pytest.mark.parametrize("rows", [1, 3, 31])
@pytest.mark.parametrize(("ins", "outs"), [(8, 8), (784, 100), (2000, 130)])
def test_few_rows_have_the_bits_of_an_ordinary_layer(rows, ins, outs):
    x, weight, bias = torch.randn(rows, ins), torch.randn(outs, ins), torch.randn(2 * outs)[::2]
    y = torch.ops.maskcl.open_linear(x, weight, bias)
    assert torch.equal(y, F.linear(x, weight, bias))


def test_threads_change_no_bit():
    x = torch.rand(130, 300) * closed(300, 0.5, "cpu")
    w, g = torch.randn(200, 300), torch.rand(130, 200) * closed(200, 0.5, "cpu")
    images = torch.rand(6, 32, 12, 12) * closed(32, 0.5, "cpu").view(-1, 1, 1)
    images = images.contiguous(memory_format=torch.channels_last)
    filters, dy = torch.randn(40, 32, 3, 3), torch.rand(6, 40, 10, 10)
    dy = dy * closed(40, 0.5, "cpu").view(-1, 1, 1)

    def results():
        pairs = [1, 1], [0, 0], [1, 1]
        grads = torch.ops.maskcl.open_conv_backward(dy, images, filters, *pairs, True, True, True)
        linear = torch.ops.maskcl.open_linear_backward(g, x, w, True, True)
        return [
            torch.ops.maskcl.open_linear(x, w, None), *linear,
            ops.open_conv(images, filters, None), *grads,
        ]  # fmt: skip

    two = results()
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(two, results(), strict=True))


def test_subnormals_are_flushed_inside_the_kernels_alone():
    mask = torch.tensor([1e-40, 1.0] * 20).requires_grad_()
    x = torch.rand(64, 40)
    y = ops.masked_activation(x, mask)
    assert (y[:, ::2] == 0).all() and (y[:, 1::2] == x[:, 1::2]).all()
    run = backends.select("open_linear", x)
    run(x * half_closed(40), torch.randn(50, 40), None)
    images = torch.rand(64, 16, 12, 12) * half_closed(16).view(-1, 1, 1)
    leaves = [t.requires_grad_() for t in (images, torch.randn(18, 16, 3, 3))]
    torch.autograd.grad(ops.open_conv(*leaves, None).sum(), leaves)
    small = torch.full((1 << 20,), 1e-40)  # on every thread
    assert (small * 0.5 != 0).all()


@pytest.mark.parametrize("channels_last", [False, True])
def test_open_conv_has_the_gradients_of_conv2d(channels_last):
    x = torch.rand(2, 16, 6, 5) * closed(16, 0.5, "cpu").view(-1, 1, 1)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    leaves = [t.requires_grad_() for t in (x, torch.randn(18, 16, 3, 3), torch.randn(18))]
    found = torch.autograd.grad(ops.open_conv(*leaves, padding=(1, 0)).sin().sum(), leaves)
    wanted = torch.autograd.grad(F.conv2d(*leaves, padding=(1, 0)).sin().sum(), leaves)
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_masked_conv_matches_float64(backend, device, channels_last, activation):
    x = torch.randn(3, 16, 6, 5, device=device) * closed(16, 0.5, device).view(-1, 1, 1)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    mask = torch.rand(18, device=device) + 0.5
    leaves = [x, torch.randn(18, 16, 3, 3, device=device), mask, torch.randn(18, device=device)]
    y = ops.masked_conv(*map(torch.Tensor.requires_grad_, leaves), (2, 1), activation=activation)
    assert y.is_contiguous(memory_format=torch.channels_last) == channels_last
    wide = [t.detach().double().requires_grad_() for t in leaves]
    z = F.conv2d(wide[0], wide[1], wide[3], (2, 1))
    right = getattr(torch, activation, F.gelu)(z) * wide[2].view(-1, 1, 1)
    assert_close(y.detach(), right.detach(), torch.float32, scale=20)
    g = torch.randn_like(y)
    grads = zip(torch.autograd.grad(y, leaves, g), torch.autograd.grad(right, wide, g.double()))
    for found, wanted in grads:
        assert_close(found, wanted, torch.float32, scale=200)


def test_masked_conv_says_what_is_wrong():
    x, w = torch.rand(2, 16, 6, 5), torch.randn(18, 16, 3, 3)
    with pytest.raises(ValueError, match="masked_conv: mask has 17 elements, wanted 18 channels"):
        ops.masked_conv(x, w, torch.rand(17))
    with pytest.raises(ValueError, match=r"masked_conv: weight has shape \[18, 144\], wanted 4"):
        ops.masked_conv(x, w.flatten(1), torch.rand(18))


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 16, 1, 1), (2, 16, 8, 8)], ids=str)
def test_open_conv_has_the_strides_of_conv2d(shape):
    """A view behind it must work as behind conv2d."""
    w = torch.randn(18, shape[1], 1, 1)
    for order in (torch.contiguous_format, torch.channels_last):
        x = torch.rand(shape).contiguous(memory_format=order)
        assert ops.open_conv(x, w, None).stride() == F.conv2d(x, w).stride()


def test_open_conv_compiles_to_one_graph():
    x = torch.rand(2, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    leaves = [x.requires_grad_(), torch.randn(18, 16, 3, 3, requires_grad=True)]

    def step(x, w):
        return ops.open_conv(x, w, None, stride=(2, 1)).relu().sum()

    compiled = torch.compile(step, fullgraph=True)
    found = torch.autograd.grad(compiled(*leaves), leaves)
    for f, w in zip(found, torch.autograd.grad(step(*leaves), leaves), strict=True):
        torch.testing.assert_close(f, w)


def test_open_conv_says_what_is_wrong():
    x = torch.rand(2, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    w = torch.randn(18, 16, 3, 3)
    with pytest.raises(ValueError, match=r"weight has shape \[18, 15, 3, 3\], wanted \[O, 16"):
        ops.open_conv(x, w[:, 1:], None)
    with pytest.raises(ValueError, match=r"bias has shape \[17\], wanted \[18\]"):
        ops.open_conv(x, w, torch.rand(17))
    with pytest.raises(ValueError, match="stride is \\(0, 1\\), wanted two numbers, 1 or more"):
        ops.open_conv(x, w, None, stride=(0, 1))
    with pytest.raises(ValueError, match="smaller than the window"):
        ops.open_conv(x, w, None, dilation=(3, 1))


def test_open_conv_takes_part_in_autocast():
    x = torch.rand(2, 16, 6, 5).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.open_conv(x, torch.randn(18, 16, 3, 3), None).dtype == torch.bfloat16
