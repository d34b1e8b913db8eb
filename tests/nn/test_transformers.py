"""Models of transformers, built from small configurations, and torch's own attention."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskcl.export import compact, report
from maskcl.nn import (
    ConversionError,
    HATEmbedding,
    HATNetwork,
    to_hat,
    to_importance,
    to_piggyback,
    to_plain,
)
from maskcl.optim import protect

hf = pytest.importorskip("transformers")

IDS = torch.randint(1, 60, (3, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 5:] = 0
PADDED = {"input_ids": IDS, "attention_mask": MASK}
HEADS = {"classes": [3, 2, 4]}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def llama(kind: str = "LlamaForCausalLM", **options: Any) -> nn.Module:
    """Rotary positions, RMSNorm, SwiGLU, two heads of keys and values for four of queries."""
    config = hf.LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        **ENDS,
        **{"use_cache": False, **options},
    )
    return getattr(hf, kind)(config)


def gpt2(kind: str = "GPT2LMHeadModel", **options: Any) -> nn.Module:
    """Conv1D layers, and an output layer whose weight is the table of tokens."""
    sizes = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return getattr(hf, kind)(hf.GPT2Config(**sizes, **ENDS, **{"use_cache": False, **options}))


def bert(kind: str = "BertForSequenceClassification", **options: Any) -> nn.Module:
    config = hf.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=24,
        max_position_embeddings=16,
        **options,
    )
    return getattr(hf, kind)(config)


Case = tuple[Callable[[], nn.Module], Any, dict[str, Any]]
CASES: dict[str, Case] = {
    "llama": (llama, IDS, {}),
    "llama with a mask": (llama, PADDED, {}),
    "llama with a cache": (lambda: llama(use_cache=True), IDS, {}),
    "llama, eager attention": (lambda: llama(attn_implementation="eager"), IDS, {}),
    "llama, frozen table": (llama, IDS, {"embeddings": "frozen"}),
    "llama, classes": (
        lambda: llama("LlamaForSequenceClassification"),
        PADDED,
        HEADS,
    ),
    "gpt2": (gpt2, PADDED, {}),
    "gpt2, scores in float32": (
        lambda: gpt2(attn_implementation="eager", reorder_and_upcast_attn=True),
        IDS,
        {},
    ),
    "gpt2, frozen tables": (gpt2, IDS, {"embeddings": "frozen"}),
    "gpt2, classes": (lambda: gpt2("GPT2ForSequenceClassification"), IDS, HEADS),
    "bert": (bert, PADDED, HEADS),
    "bert, eager attention": (
        lambda: bert(attn_implementation="eager"),
        PADDED,
        HEADS,
    ),
    "bert, tokens": (lambda: bert("BertForMaskedLM"), PADDED, {}),
}
cases = pytest.mark.parametrize("case", list(CASES))


def network(case: str) -> tuple[HATNetwork, nn.Module, Any]:
    make, inputs, options = CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    return to_hat(model, 3, inputs, **options), model, inputs


def call(model: nn.Module, inputs: Any) -> Tensor:
    return (model(**inputs) if isinstance(inputs, dict) else model(inputs)).logits


@torch.no_grad()
def logits(net: nn.Module, task: int, inputs: Any) -> Tensor:
    net.eval()
    with net.task(task):  # type: ignore[operator]
        return call(net, inputs)


def train(net: Any, task: int, inputs: Any, protected: bool = True) -> None:
    """Three steps of AdamW with weight decay; their loss is no better than another."""
    net.begin_task(task)
    optimizer = torch.optim.AdamW(net.task_parameters(task), lr=1e-2, weight_decay=0.1)
    held = protect(optimizer, net) if protected else None
    net.train()
    for scale in (1.0, 10.0, 100.0):
        optimizer.zero_grad()
        with net.task(task, scale) if protected else net.task(task):
            y = call(net, inputs)
            (y.logsumexp(-1).mean() + (task + 1) * y[..., 0].mean()).backward()
        optimizer.step()
    if held is not None:
        held.remove()
    net.finish_task(task)


@cases
def test_earlier_tasks_logits_keep_their_bits(case: str) -> None:
    net, _, inputs = network(case)
    with torch.no_grad():  # mostly open: half closed silences the deep ones
        for embedding in net.embeddings:
            embedding.add_(0.5)
    known: list[Tensor] = []
    for task in range(3):
        before = [p.detach().clone() for p in net.protection().parameters]
        train(net, task, inputs)
        after = net.protection().parameters
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert sum(moved) > len(moved) / 3
        assert all(torch.equal(logits(net, k, inputs), y) for k, y in enumerate(known))
        known.append(logits(net, task, inputs))
        assert bool(known[task].isfinite().all()) and float(known[task].std()) > 0
    # AdamW could be kind: whatever else may move.
    protection = net.protection()
    saved = protection.snapshot()
    with torch.no_grad():
        for parameter in protection.parameters:
            parameter.normal_()
    assert not torch.equal(logits(net, 0, inputs), known[0])
    protection.restore_(saved)
    assert torch.equal(logits(net, 0, inputs), known[0])


@cases
def test_all_gates_open_give_the_plain_models_outputs(case: str) -> None:
    make, inputs, options = CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    options = {name: option for name, option in options.items() if name != "classes"}
    net = to_hat(model, 1, inputs, init="dense", **options).eval()
    net.finish_task(0)
    with torch.no_grad():
        wanted = call(model, inputs)
        torch.testing.assert_close(logits(net, 0, inputs), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(call(to_plain(net, 0), inputs), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["llama", "gpt2", "bert"])
def test_a_tasks_plain_model_gives_its_logits(case: str) -> None:
    net, _, inputs = network(case)
    net.finish_task(0)
    with torch.no_grad():
        found = call(to_plain(net, 0), inputs)
    torch.testing.assert_close(found, logits(net, 0, inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ["llama", "gpt2", "bert"])
def test_a_tasks_compact_model_gives_its_logits_with_fewer_weights(case: str) -> None:
    net, _, inputs = network(case)
    net.finish_task(0)
    small, plain = compact(net, 0), to_plain(net, 0)
    with torch.no_grad():
        found = small(**inputs) if isinstance(inputs, dict) else small(inputs)
    torch.testing.assert_close(found["logits"], logits(net, 0, inputs), rtol=1e-5, atol=1e-6)
    counts = [sum(p.numel() for p in model.parameters()) for model in (small, plain)]
    assert counts[0] < counts[1]
    measured = report(net, 0, inputs, repeats=1)
    assert [measured.compact.parameters, measured.full.parameters] == counts
    assert measured.difference < 1e-5


def test_sequences_of_other_lengths_are_followed_once_each() -> None:
    net, _, _ = network("gpt2")
    net.finish_task(0)
    full = logits(net, 0, PADDED)
    short = {name: x[:, :4] for name, x in PADDED.items()}
    assert logits(net, 0, short).shape == (3, 4, 64) and len(net.topology.like) == 1
    torch.testing.assert_close(logits(net, 0, short), full[:, :4])
    with pytest.raises(ValueError, match=r"are input_ids, .*with input_ids, attention_mask"):
        logits(net, 0, IDS)


def test_other_threads_run_while_a_model_is_followed() -> None:
    net, _, inputs = network("llama")
    net.finish_task(0)
    wanted, failures = logits(net, 0, inputs), []
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                assert torch.equal(logits(net, 0, inputs), wanted)
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(3):
            to_hat(llama(), 1, IDS)
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_tied_weights_stay_tied_and_are_protected_for_both_layers() -> None:
    net, model, _ = network("gpt2")
    inner: Any = net.model
    table, output = inner.transformer.wte, inner.lm_head
    assert isinstance(table, HATEmbedding) and table.weight is output.weight
    assert table.weight is not model.lm_head.weight  # type: ignore[union-attr]
    parameters = net.task_parameters(0)
    assert len({id(p) for p in parameters}) == len(parameters)
    net.finish_task(0)
    share = net.protection().fraction()["model.transformer.wte.weight"]
    used = net.hard_mask(0)[net.units["transformer.wte"]].float().mean()
    assert share > float(used)  # what reaches the output layer is more than the table's own
    net.begin_task(1)
    protection = net.protection()
    output.weight = nn.Parameter(output.weight.detach().clone())
    with pytest.raises(RuntimeError, match="no longer the parameter"):
        protection.check_parameters("step")


def test_a_tied_layer_that_has_units_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
            self.layer.weight = self.table.weight
            self.last = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(self.table(x)))

    with pytest.raises(ConversionError, match="tied parameters would have two sets of units"):
        to_hat(Twice(), 1, torch.zeros(2, dtype=torch.int64))


def test_tables_that_cannot_be_protected_are_refused() -> None:
    x = torch.zeros(2, dtype=torch.int64)
    for option, message in ({"max_norm": 1.0}, "max_norm"), ({"sparse": True}, "sparse=True"):
        model = nn.Sequential(nn.Embedding(8, 4, **option), nn.Linear(4, 2))
        with pytest.raises(ConversionError, match=f"'0' .*{message}"):
            to_hat(model, 1, x)
        assert to_hat(model, 1, x, embeddings="frozen").units == {}
    with pytest.raises(ValueError, match="embeddings is 'no'"):
        to_hat(llama(), 1, IDS, embeddings="no")


def test_a_table_grows_with_the_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.arange(8)
    net = to_hat(model, 2, x).eval()
    net.finish_task(0)
    with torch.no_grad(), net.task(0):
        before = net(x)
    net.grow(3)
    table: Any = net.model[0]  # type: ignore[index]
    assert table.weight.shape == (8, 7) and table.embedding_dim == 7
    with torch.no_grad():
        with net.task(0):
            assert torch.equal(net(x), before)
        torch.testing.assert_close(to_plain(net, 0)(x), before)
        with net.task(1):
            assert net(x).shape == (8, 2)
    record = net.forget_task(0, reset=True)
    assert record is not None and record.tensors["model.0.weight"].numbers == 56
    tied, _, _ = network("gpt2")
    with pytest.raises(ConversionError, match="share a weight, and cannot grow"):
        tied.grow(4)


@pytest.mark.parametrize("case", ["llama", "gpt2", "bert"])
def test_piggyback_and_importance_take_the_same_models(case: str) -> None:
    make, inputs, _ = CASES[case]
    torch.manual_seed(0)
    model = make().eval()
    net = to_piggyback(model, 2)
    assert net.masked_share > 0.9
    train(net, 0, inputs, protected=False)
    known = logits(net, 0, inputs)
    train(net, 1, inputs, protected=False)
    assert torch.equal(logits(net, 0, inputs), known)
    assert not torch.equal(logits(net, 1, inputs), known)
    shared = to_importance(model, 2).eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(shared, 1, inputs), call(model, inputs))


class Encoder(nn.Module):
    """torch's own layers, an RMSNorm behind them."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, **options)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.table(x))).mean(1))


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(4, 8)
        self.both = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.both(self.first(x), self.second(y))).mean(1)


class Attended(nn.Module):
    """Keys and values of other sizes, both kinds of masks, the attention's weights an output."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        shape = q.shape[1], k.shape[1]
        mask = torch.ones(shape, dtype=torch.bool, device=q.device).triu(2)
        y, weights = self.attention(q, k, v, padding, attn_mask=mask)
        return self.head(y), weights


PADDING = torch.zeros(2, 4, dtype=torch.bool)
PADDING[0, 3] = True
TOKENS = torch.arange(10).reshape(2, 5)
OWN: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "encoder": (lambda: Encoder(batch_first=True), (TOKENS,)),
    "positions first": (Encoder, (TOKENS,)),
    "norm first": (lambda: Encoder(batch_first=True, norm_first=True), (TOKENS,)),
    "transformer": (Translator, (torch.randn(2, 5, 4), torch.randn(2, 3, 4))),
    "attention": (
        Attended,
        (torch.randn(2, 5, 8), torch.randn(2, 4, 6), torch.randn(2, 4, 5), PADDING),
    ),
}


@pytest.mark.parametrize("name", list(OWN))
def test_torchs_attention_has_units_and_comes_back(name: str) -> None:
    make, inputs = OWN[name]
    torch.manual_seed(0)
    model = make().eval()

    def first(net: nn.Module) -> Tensor:
        with torch.no_grad():
            y = net(*inputs)
        return torch.cat([part.flatten() for part in y]) if isinstance(y, tuple) else y

    dense = to_hat(model, 1, inputs, init="dense").eval()
    dense.finish_task(0)
    plain = to_plain(dense, 0)
    with dense.task(0):
        torch.testing.assert_close(first(dense), first(model), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first(plain), first(model), rtol=1e-5, atol=1e-6)
    assert plain.state_dict().keys() == model.state_dict().keys()
    net = to_hat(model, 2, inputs).eval()
    net.finish_task(0)
    assert any(unit.endswith(".value") for unit in net.units)
    protection = net.protection()
    saved = protection.snapshot()
    with net.task(0):
        known = first(net)
        with torch.no_grad():
            for parameter in protection.parameters:
                parameter.normal_()
        assert not torch.equal(first(net), known)
        protection.restore_(saved)
        assert torch.equal(first(net), known)


def test_attention_with_more_than_projections_is_refused() -> None:
    model = Attended()
    model.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=5, add_zero_attn=True)
    with pytest.raises(ConversionError, match="add_zero_attn"):
        to_hat(model, 1, OWN["attention"][1])
