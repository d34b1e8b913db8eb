"""What every op promises: opcheck, fullgraph, torch.func, no double backward, selection."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch

from maskcl import backends, ops, reference, schemas

DTYPES = [torch.float32, torch.bfloat16]


def sample_inputs(name: str, dtype: torch.dtype, device: str, strided: bool) -> tuple:
    """Arguments of low-level op ``name``, with gradients required wherever they can be."""
    torch.manual_seed(1)

    def leaf(*shape, like=dtype):
        t = torch.randn(*shape, device=device).to(like)
        t = t[..., ::2] if strided and t.dim() > 1 else t
        return t.detach().requires_grad_()

    def bits(n):
        return torch.randint(0, 4, (n, 1), device=device)

    columns = 10 if strided else 5
    scale = torch.tensor(2.0, device=device)
    unit = torch.rand(5, device=device)
    x, g = leaf(3, columns), leaf(3, columns).detach()
    lists = ([leaf(3, columns).detach()], [bits(3)], [bits(5)], [1])
    sides, pace = (*lists[1:], True), ([0.1], [0.1], [float("inf")])
    scalars = (scale, scale, torch.zeros((), device=device), scale, 1.0)
    weight, scores, rows = leaf(3, columns), leaf(3, columns, like=torch.float32), leaf(2, columns)
    select = (None, "binary", 0.1, False, 1.0)
    soft = (None, "soft", 0.1, False, 2.0)
    words = ops.pack_mask(scores.detach(), ternary=True)
    images, filters = leaf(2, 5, 4, 8 if strided else 4), leaf(3, 5, 2, 4 if strided else 2)
    images = images.contiguous(memory_format=torch.channels_last)
    window = [1, 1], [0, 0], [1, 1]
    shape = list(scores.shape)
    return {
        "weight_mask": (scores, *soft),
        "masked_weight": (weight, scores, *select),
        "masked_weight_backward": (g, weight, scores, *soft, True, True),
        "kth_largest": (scores, 2, True),
        "piggyback_linear": (rows, weight, scores, leaf(3), *select),
        "piggyback_linear_backward": (
            leaf(2, 6)[:, :3].detach(),
            rows,
            weight,
            scores,
            *select,
            True,
            True,
            True,
        ),
        "pack_mask": (scores, True),
        "pack_scores": (scores, torch.tensor(0.5, device=device), "topk", 0.0, False),
        "unpack_mask": (words, shape, torch.float32),
        "combine_words": (words, words.flip(0), "andnot"),
        "popcount_words": (words,),
        "packed_weight": (weight, words),
        "packed_linear": (rows, weight, words[0], leaf(3)),
        "packed_embedding": (torch.tensor([[2, 0]], device=device), weight, words),
        "mas_accumulate_": ([scores.detach()], [g], 0.5, 0.9, True),
        "mas_penalty": ([weight], [g], [scores.detach()]),
        "mas_penalty_grads_": ([g], [weight], [g.clone()], [scores.detach()], scale, 0.5, True),
        "linear_importance_": (torch.zeros(5, 5, device=device), x, g, 1.0, False),
        "hat_gate": (leaf(5), scale),
        "hat_gate_backward": (
            leaf(5, like=torch.float32),
            leaf(5),
            unit,
            scale,
            400.0,
            50.0,
            False,
        ),
        "hat_gates": (leaf(5), scale, unit, 1e-9, 0.75),
        "hat_gates_backward": (
            [unit[:3], unit[:0]],
            scale,
            leaf(5).detach(),
            scale,
            unit,
            [3, 2],
            0.75,
            400.0,
            50.0,
            True,
        ),
        "masked_linears": (
            rows,
            [weight, leaf(4, 6 if strided else 3)],
            [leaf(3), leaf(0)],
            [unit[:3], unit[:4]],
            "relu",
            0.0,
        ),
        "masked_linears_backward": (
            leaf(2, 8 if strided else 4).detach(),
            rows,
            [
                leaf(2, 6 if strided else 3).detach(),
                leaf(2, 8 if strided else 4).detach(),
            ],
            [weight, leaf(4, 6 if strided else 3)],
            [unit[:3], unit[:4]],
            "tanh",
            0.0,
            True,
            [7, 5],
        ),
        "gated_linears": (
            rows,
            [weight, leaf(4, 6 if strided else 3)],
            [leaf(3), leaf(4)],
            leaf(3),
            scale,
            unit[:3],
            [3],
            0.75,
            1e-9,
            "relu",
            0.0,
        ),
        "gated_linears_backward": (
            leaf(2, 8 if strided else 4).detach(),
            scale,
            rows,
            [
                leaf(2, 6 if strided else 3).detach(),
                leaf(2, 8 if strided else 4).detach(),
            ],
            [weight, leaf(4, 6 if strided else 3)],
            unit[:3],
            leaf(3).detach(),
            scale,
            unit[:3],
            [3],
            0.75,
            400.0,
            50.0,
            False,
            "relu",
            0.0,
            True,
            [7, 3],
        ),
        "hat_sparsity": (unit.clone().requires_grad_(), unit > 0.5),
        "hat_sparsity_backward": (scale, unit, unit > 0.5),
        "masked_activation": (x, unit, unit, "relu", 0.01, 1),
        "masked_activation_": (x.detach(), unit, unit, "gelu", 0.01, 1),
        "masked_activation_backward": (g, x, unit, unit, "relu", 0.01, 1, False, True, True),
        "open_linear": (rows, weight, leaf(3), False),
        "open_linear_backward": (leaf(2, 6)[:, :3].detach(), rows, weight, True, True),
        "open_conv": (images, filters, leaf(3), *window),
        "open_conv_backward": (
            leaf(2, 3, 3, 6 if strided else 3).detach(),
            images,
            filters,
            *window,
            True,
            True,
            True,
        ),
        "sgd_update_": (
            lists[0],
            [g.clone()],
            [torch.zeros_like(g)],
            *sides,
            *pace,
            0.9,
            0.0,
            True,
            False,
            False,
            *scalars,
        ),
        "adam_update_": (
            lists[0],
            [g.clone()],
            [torch.zeros_like(g)],
            [torch.zeros_like(g)],
            [torch.zeros((), device=device)],
            *sides,
            *pace,
            0.9,
            0.999,
            1e-8,
            True,
            False,
            *scalars,
        ),
        "unprotected_norm": ([g], *sides, scale),
        "clamp_grads_": (*lists, True, "hat", [0.0], 0),
        "restore_protected_": (lists[0], [g.clone()], *lists[1:], True),
        "clamp_grads_soft_": (lists[0], [unit[:3]], [unit], [1], "min"),
    }[name]


@pytest.mark.parametrize("strided", [False, True], ids=["dense", "strided"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", schemas.STEM_OF)
def test_opcheck(backend, device, name, dtype, strided):
    op = getattr(torch.ops.maskcl, ("triton_" if backend == "triton" else "") + name)
    # Autograd is the Functions'; these ops are below it.
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(
        op.default, sample_inputs(name, dtype, device, strided), test_utils=checks
    )


@pytest.mark.parametrize(("name", "stem"), schemas.STEM_OF.items())
def test_the_reference_has_the_schemas_arguments(name, stem):
    schema = getattr(torch.ops.maskcl, name).default._schema
    found = inspect.signature(getattr(getattr(reference, stem), name)).parameters
    assert list(found) == [argument.name for argument in schema.arguments]


def step(x, weight, bias, embedding, scale):
    mask = ops.hat_gate(embedding, scale, max_scale=400.0)
    hidden = ops.masked_linear(x, weight, mask, bias, activation="relu")
    hidden = ops.masked_activation(hidden, mask, activation="gelu")
    return hidden.square().sum() + ops.hat_sparsity(mask, mask.detach() > 0.5)


def piggyback_step(x, weight, scores, words):
    hidden = ops.piggyback_linear(x, weight, scores, levels="topk", density=0.5)
    hidden = hidden @ ops.piggyback_weight(weight, scores, levels="ternary")
    hidden = hidden * ops.soft_mask(scores.sum(0)) + ops.binarize(scores, 0.1).sum(0)
    found = ops.xor_words(ops.pack_scores(scores), words)
    hidden = ops.packed_linear(hidden, ops.packed_weight(weight, words), found)
    return hidden.square().sum() + ops.popcount(found)


def test_piggyback_compiles_to_one_graph_with_the_same_gradients(backend, device):
    leaves = [torch.randn(*s, device=device).requires_grad_() for s in ((4, 6), (5, 6), (5, 6))]
    words = ops.pack_mask(torch.rand(5, 6, device=device) > 0.5)
    compiled = torch.compile(piggyback_step, fullgraph=True)
    found = torch.autograd.grad(compiled(*leaves, words), leaves)
    wanted = torch.autograd.grad(piggyback_step(*leaves, words), leaves)
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w)


def step_inputs(device):
    leaves = [torch.randn(*s, device=device) for s in ((4, 6), (5, 6), (5,), (5,))]
    return [t.requires_grad_() for t in leaves]


def test_compiles_to_one_graph_with_the_same_gradients(backend, device):
    inputs, scale = step_inputs(device), torch.tensor(3.0, device=device)
    compiled = torch.compile(step, fullgraph=True)
    for s in (3.0, 30.0):  # annealing in place
        scale.fill_(s)
        found = torch.autograd.grad(compiled(*inputs, scale), inputs)
        wanted = torch.autograd.grad(step(*inputs, scale), inputs)
        for f, w in zip(found, wanted, strict=True):
            torch.testing.assert_close(f, w)


def test_annealing_does_not_recompile(backend, device):
    inputs, scale = step_inputs(device), torch.tensor(1.0, device=device)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for s in (1.0, 2.0, 400.0):
        compiled(*inputs, scale.fill_(s))
    assert counter.frame_count == 1


def test_compiled_graph_holds_the_chosen_backend(backend, device):
    seen: list[str] = []

    def look(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        for submodule in graph.modules():
            if isinstance(submodule, torch.fx.GraphModule):
                seen.extend(str(node.target) for node in submodule.graph.nodes)
        return graph

    e = torch.randn(4, device=device)
    torch.compile(lambda e: ops.hat_gate(e, torch.tensor(2.0)), fullgraph=True, backend=look)(e)
    wanted = "maskcl.triton_hat_gate" if backend == "triton" else "maskcl.hat_gate"
    assert any(name.startswith(wanted) for name in seen), seen


def test_torch_func_grad_and_vmap(backend, device):
    inputs, scale = step_inputs(device), torch.tensor(3.0, device=device)
    found = torch.func.grad(step, argnums=(0, 1, 2, 3))(*[t.detach() for t in inputs], scale)
    wanted = torch.autograd.grad(step(*inputs, scale), inputs)
    for f, w in zip(found, wanted, strict=True):
        torch.testing.assert_close(f, w)
    with pytest.raises(RuntimeError, match="vmap"):
        torch.func.vmap(lambda e: ops.hat_gate(e, 2.0))(torch.randn(2, 3, device=device))


FIRST_ORDER = ["hat_gate", "masked_activation", "masked_linear", "piggyback_linear", "soft_mask"]


@pytest.mark.parametrize("op", FIRST_ORDER)
def test_double_backward_raises(backend, device, op):
    x, weight, _, e = step_inputs(device)[:4]
    y = {
        "hat_gate": lambda: ops.hat_gate(e, 2.0),
        "masked_activation": lambda: ops.masked_activation(x, e.detach().repeat(2)[:6].abs()),
        "masked_linear": lambda: ops.masked_linear(x, weight, e.detach().abs()),
        "piggyback_linear": lambda: ops.piggyback_linear(x, weight, weight.detach()),
        "soft_mask": lambda: ops.soft_mask(e),
    }[op]()
    leaf = e if op in ("hat_gate", "soft_mask") else x
    (grad,) = torch.autograd.grad((y**2).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivative only"):
        grad.sum().backward()


def test_select_takes_the_first_that_can():
    x = torch.zeros(1)
    names = [n for n in ("cpp", "reference") if backends.BACKENDS[n].absent is None]
    assert backends.choose("hat_gate", "cpu", torch.float32) == names[0]
    assert backends.choose("hat_gate", "meta", torch.float32) == "reference"
    assert callable(backends.select("hat_gate", x))
    with pytest.raises(backends.BackendError, match=r"no backend takes torch.int64 on cpu"):
        backends.select("hat_gate", x.long())


def test_an_explicit_choice_never_falls_back():
    with pytest.raises(ValueError, match="found 'tpu', wanted one of reference, cpp, triton, cuda"):
        backends.use_backend("tpu").__enter__()
    for name, declared in backends.BACKENDS.items():
        if declared.absent is not None:
            with pytest.raises(backends.BackendError, match="not available"):
                backends.use_backend(name).__enter__()
        elif declared.devices == ("cuda",):
            asked = pytest.raises(backends.BackendError, match="was asked for, but")
            with backends.use_backend(name), asked:
                ops.hat_gate(torch.zeros(1), 1.0)


def test_use_backend_is_undone_on_error():
    with contextlib.suppress(KeyError), backends.use_backend("reference"):
        assert backends.choose("hat_gate", "cpu", torch.float32) == "reference"
        raise KeyError
    first = backends._order("hat_gate", "cpu")[0]
    assert backends.choose("hat_gate", "cpu", torch.float32) == first


def test_reasons_are_sentences():
    reasons = backends.not_supported_reasons("triton", "no_such_op", "xpu", torch.float64)
    assert any("no_such_op" in r for r in reasons) and any("float64" in r for r in reasons)
