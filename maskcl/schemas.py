"""Every schema on one screen.

A low-level op exists twice: ``maskcl::<name>``, with the kernels of the reference, C++ and CUDA,
and ``maskcl::triton_<name>``, which shares the CUDA key's devices and therefore needs a name of its
own. Both are opaque to ``torch.compile`` and share one fake, so that choosing a backend never
breaks a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Which mask a score gives: see reference.weight_mask.
SELECT = "Tensor? kth, str levels, float threshold, bool inclusive, float scale"
# Which weights of a list are protected: see reference.grad_clamp.
SIDES = "Tensor[] out_tasks, Tensor[] in_tasks, int[] groups, bool exact"
# How far an optimizer's step goes: see reference.update.
PACE = "float[] lr, float[] weight_decay, float[] bounds"
SCALE = "Tensor? rate, Tensor? scale, Tensor? found_inf, Tensor? norm, float max_norm"
# How bfloat16 is rounded, to nearest without a draw: see reference.update.
ROUNDING = "Tensor? draw=None, int seed=0, int[] places=[]"
# All gates of a network and the weighted term of its loss: see reference.gate.hat_gates.
GATES = "Tensor embedding, Tensor scale, Tensor share, int[] sizes, float weight"
SIGNATURES = {
    "gate": (
        "hat_gate(Tensor embedding, Tensor scale, float floor=0.0) -> Tensor",
        "hat_gate_backward(Tensor grad, Tensor embedding, Tensor mask, Tensor scale,"
        " float max_scale, float cosh_clamp, bool recipe) -> Tensor",
        "hat_gates(Tensor embedding, Tensor scale, Tensor share, float floor, float weight)"
        " -> (Tensor, Tensor)",
        "hat_gates_backward(Tensor[] grads, Tensor grad_term, Tensor embedding, Tensor scale,"
        " Tensor share, int[] sizes, float weight, float max_scale, float cosh_clamp, bool recipe)"
        " -> Tensor",
        "hat_sparsity(Tensor mask, Tensor used) -> Tensor",
        "hat_sparsity_backward(Tensor grad, Tensor mask, Tensor used) -> Tensor",
    ),
    "masked_forward": (
        "masked_activation(Tensor x, Tensor mask, Tensor? bias, str activation, float slope,"
        " int channel_dim) -> Tensor",
        "masked_activation_(Tensor(a!) x, Tensor mask, Tensor? bias, str activation, float slope,"
        " int channel_dim) -> ()",
        "masked_activation_backward(Tensor grad, Tensor saved, Tensor mask, Tensor? bias,"
        " str activation, float slope, int channel_dim, bool from_output, bool mask_grad,"
        " bool bias_grad) -> (Tensor, Tensor, Tensor)",
    ),
    "open_products": (
        "open_linear(Tensor x, Tensor weight, Tensor? bias, bool ordinary=False) -> Tensor",
        "open_linear_backward(Tensor grad, Tensor x, Tensor weight, bool want_x, bool want_weight)"
        " -> (Tensor, Tensor)",
        "open_conv(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding,"
        " int[] dilation) -> Tensor",
        "open_conv_backward(Tensor grad, Tensor x, Tensor weight, int[] stride, int[] padding,"
        " int[] dilation, bool want_x, bool want_weight, bool want_bias)"
        " -> (Tensor, Tensor, Tensor)",
    ),
    "masked_products": (
        "masked_linears(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] masks,"
        " str activation, float slope) -> Tensor[]",
        "masked_linears_backward(Tensor grad, Tensor x, Tensor[] ys, Tensor[] weights,"
        " Tensor[] masks, str activation, float slope, bool want_x, int[] wanted) -> Tensor[]",
        f"gated_linears(Tensor x, Tensor[] weights, Tensor[] biases, {GATES}, float floor,"
        " str activation, float slope) -> Tensor[]",
        "gated_linears_backward(Tensor grad, Tensor grad_term, Tensor x,"
        f" Tensor[] ys, Tensor[] weights, Tensor mask, {GATES}, float max_scale, float cosh_clamp,"
        " bool recipe, str activation, float slope, bool want_x, int[] wanted) -> Tensor[]",
    ),
    "grad_clamp": (
        "clamp_grads_(Tensor(a!)[] grads, Tensor[] out_tasks, Tensor[] in_tasks, int[] groups,"
        " bool exact, str rule, float[] values, int seed) -> ()",
        "restore_protected_(Tensor(a!)[] params, Tensor[] saved, Tensor[] out_tasks,"
        " Tensor[] in_tasks, int[] groups, bool exact) -> ()",
        "clamp_grads_soft_(Tensor(a!)[] grads, Tensor[] out_masks, Tensor[] in_masks, int[] groups,"
        " str aggregation) -> ()",
    ),
    "update": (
        "sgd_update_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momenta,"
        f" {SIDES}, {PACE}, float momentum, float dampening, bool nesterov, bool maximize,"
        f" bool first, {SCALE}, {ROUNDING}) -> ()",
        "adam_update_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs,"
        f" Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, {SIDES}, {PACE}, float beta1, float beta2,"
        f" float eps, bool decoupled, bool maximize, {SCALE}, {ROUNDING}) -> ()",
        f"unprotected_norm(Tensor[] grads, {SIDES}, Tensor? scale) -> Tensor",
    ),
    "weight_mask": (
        f"weight_mask(Tensor scores, {SELECT}) -> Tensor",
        f"masked_weight(Tensor weight, Tensor scores, {SELECT}) -> Tensor",
        f"masked_weight_backward(Tensor grad, Tensor? weight, Tensor scores, {SELECT},"
        " bool want_weight, bool want_scores) -> (Tensor, Tensor)",
        "kth_largest(Tensor values, int k, bool magnitude) -> Tensor",
        f"piggyback_linear(Tensor x, Tensor weight, Tensor scores, Tensor? bias, {SELECT})"
        " -> Tensor",
        "piggyback_linear_backward(Tensor grad, Tensor x, Tensor weight, Tensor scores,"
        f" {SELECT}, bool want_x, bool want_weight, bool want_scores)"
        " -> (Tensor, Tensor, Tensor)",
    ),
    "bitmask": (
        "pack_mask(Tensor mask, bool ternary) -> Tensor",
        "pack_scores(Tensor scores, Tensor? kth, str levels, float threshold, bool inclusive)"
        " -> Tensor",
        "unpack_mask(Tensor words, int[] shape, ScalarType dtype) -> Tensor",
        "combine_words(Tensor a, Tensor b, str how) -> Tensor",
        "popcount_words(Tensor words) -> Tensor",
        "packed_weight(Tensor weight, Tensor words) -> Tensor",
        "packed_linear(Tensor x, Tensor weight, Tensor words, Tensor? bias) -> Tensor",
        "packed_embedding(Tensor index, Tensor weight, Tensor words) -> Tensor",
    ),
    "importance": (
        "mas_accumulate_(Tensor(a!)[] importances, Tensor[] grads, float weight, float decay,"
        " bool square) -> ()",
        "mas_penalty(Tensor[] params, Tensor[] anchors, Tensor[] importances) -> Tensor",
        "mas_penalty_grads_(Tensor(a!)[] grads, Tensor[] params, Tensor[] anchors,"
        " Tensor[] importances, Tensor? scale, float strength, bool add) -> Tensor",
        "linear_importance_(Tensor(a!) importance, Tensor x, Tensor grad_out, float weight,"
        " bool square) -> ()",
    ),
}
# Made of ops above, for code that torch.compile traces. Dynamo guards every function and constant
# that it looks into, and checks some hundred guards at each call, in memory that is cold by then:
# of these it sees one node, which autograd and inductor take apart.
GRAPH_KEY = "str? backend, str version"
TRACED = (
    f"traced_gated_linears(Tensor x, Tensor[] weights, Tensor?[] biases, {GATES}, float floor,"
    f" float max_scale, float cosh_clamp, bool recipe, str activation, float slope, {GRAPH_KEY})"
    " -> (Tensor, Tensor)",
    "traced_piggyback_linears(Tensor x, Tensor[] weights, Tensor[] scores, Tensor?[] biases,"
    f" bool[] relus, str levels, float threshold, bool inclusive, {GRAPH_KEY}) -> Tensor",
)
STEM_OF = {line.split("(")[0]: stem for stem, lines in SIGNATURES.items() for line in lines}

library = torch.library.Library("maskcl", "DEF")
for _lines in SIGNATURES.values():
    for _line in _lines:
        library.define(_line)
        library.define("triton_" + _line)
for _line in TRACED:
    library.define(_line)


def fake(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: the shapes of ``maskcl::<name>`` and ``maskcl::triton_<name>``."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for prefix in ("", "triton_"):
            torch.library.register_fake(f"maskcl::{prefix}{name}", function, lib=library)
        return function

    return register
