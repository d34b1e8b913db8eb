"""docs/scaling-arithmetic.md has what the formulas give, and they what real tensors are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.scaling import Decoder, mask_bits, tables, unit_bits
from maskcl.nn import to_hat, to_importance, to_piggyback

PAGE = (Path(__file__).parents[1] / "docs" / "scaling-arithmetic.md").read_text()
SMALL = Decoder(layers=2, width=32, hidden=48, heads=4, kv_heads=2, vocabulary=64)
TASKS = 70


def test_the_page_has_the_tables_that_the_command_prints():
    for lines in tables(Decoder()):
        assert "\n".join(lines) in PAGE


@pytest.fixture(scope="module")
def model():
    transformers = pytest.importorskip("transformers", reason="makes the model")
    config = transformers.LlamaConfig(
        vocab_size=SMALL.vocabulary,
        hidden_size=SMALL.width,
        intermediate_size=SMALL.hidden,
        num_hidden_layers=SMALL.layers,
        num_attention_heads=SMALL.heads,
        num_key_value_heads=SMALL.kv_heads,
        max_position_embeddings=16,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def test_the_shape_is_that_of_a_model(model):
    sizes = [p.numel() for p in model.parameters() if p.dim() > 1]
    assert sum(sizes) == SMALL.weights
    assert sum(p.numel() for p in model.parameters()) == SMALL.weights + SMALL.norms


def test_hats_bits_and_embeddings_are_as_large_as_the_formulas_say(model):
    net = to_hat(model, TASKS, {"input_ids": torch.randint(SMALL.vocabulary, (2, 5))})
    assert net.tasks.nbytes == unit_bits(SMALL.units, TASKS)
    assert [e.nbytes for e in net.embeddings] == [4 * SMALL.units] * TASKS


def test_masks_importances_and_anchors_are_too(model):
    masks = to_piggyback(model, TASKS)
    for layer in masks.layers.values():
        assert layer.words.nbytes == mask_bits(layer.weight.numel(), TASKS)
    assert sum(layer.weight.numel() for layer in masks.layers.values()) == SMALL.weights
    net = to_importance(model, TASKS)
    for held in (net.importances, net.anchors):
        assert sum(t.nbytes for t in held.values()) == 4 * (SMALL.weights + SMALL.norms)
