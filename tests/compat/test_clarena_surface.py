"""Every public name, argument and attribute of CLArena's modules is here, or listed as different.

The table is of the documents' generation of names and of the newest. The comparison reads the
source of the ``clarena`` that is installed, or below $MASKCL_CLARENA_SOURCE (a checkout of any
version); nothing of it is imported.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from maskcl.compat.clarena import backbones, cl_algorithms, heads
from maskcl.compat.clarena.backbones import hat_mask_resnet, resnet
from maskcl.compat.clarena.cl_algorithms.regularizers import HATMaskSparsityReg
from tests.compat.clarena_tiny import CLASSES, dil, hat, mlp

ROOMS = ("backbones", "cl_algorithms", "heads", "cl_heads")
DOCUMENT = Path(__file__).parents[2] / "docs" / "compat-clarena.md"
BLOCK = {"outer_layer_name": "conv2x", "block_idx": 0, "preceding_output_channels": 4}
BLOCK |= {"input_channels": 4, "overall_stride": 1}

BUILDING = (
    "input_channels building_block_type building_block_nums"
    " building_block_preceding_output_channels building_block_input_channels output_dim"
)
SIZES = "outer_layer_name block_idx preceding_output_channels input_channels overall_stride"
HAT_ARGS = (
    "mask_sparsity_reg_factor mask_sparsity_reg_mode='original' task_embedding_init_mode='N01'"
)
MASKS = "s_max=None batch_idx=None num_batches=None"
NORM = "activation_layer=nn.ReLU batch_normalization"
# Of today, and behind | of the documents where these have another order.
SIGNATURES = f"""
backbones.Backbone: output_dim
backbones.Backbone.forward: input stage
backbones.Backbone.get_layer_by_name: layer_name
backbones.Backbone.preceding_layer_name: layer_name
backbones.Backbone.next_layer_name: layer_name
backbones.CLBackbone.forward: input stage task_id=None
backbones.CLBackbone.setup_task_id: task_id
backbones.HATMaskBackbone.register_hat_mask_module_explicitly: gate
backbones.HATMaskBackbone.initialise_task_embedding: mode
backbones.HATMaskBackbone.initialize_task_embedding: mode
backbones.HATMaskBackbone.sanity_check:
backbones.HATMaskBackbone.get_mask: stage {MASKS} test_task_id=None | stage {MASKS} test_mask
backbones.HATMaskBackbone.te_to_binary_mask:
backbones.HATMaskBackbone.store_mask:
backbones.HATMaskBackbone.combine_masks: masks mode
backbones.HATMaskBackbone.get_cumulative_mask:
backbones.HATMaskBackbone.get_summative_mask:
backbones.HATMaskBackbone.get_layer_measure_parameter_wise: neuron_wise_measure layer_name aggregation_mode
backbones.HATMaskBackbone.forward: input stage {MASKS} test_task_id=None | input stage {MASKS} test_mask
backbones.MLP: input_dim hidden_dims output_dim {NORM}=False bias=True dropout=None
backbones.MLP.forward: input stage=None task_id=None
backbones.HATMaskMLP: input_dim hidden_dims output_dim gate {NORM}=None bias=True dropout=None | input_dim hidden_dims output_dim gate activation_layer bias dropout
backbones.HATMaskMLP.get_bn: stage test_task_id
backbones.HATMaskMLP.forward: input stage {MASKS} test_task_id=None | input stage {MASKS} test_mask
backbones.ResNet18: input_channels output_dim {NORM}=True bias=False pretrained_weights=None
backbones.HATMaskResNet50: input_channels output_dim gate {NORM}=None bias=False pretrained_weights=None | input_channels output_dim gate activation_layer bias pretrained_weights
backbones.resnet.ResNetBase: {BUILDING} {NORM}=True bias=False
backbones.resnet.ResNetBlockSmall: {SIZES} {NORM}=True bias=False
backbones.resnet.ResNetBlockLarge.forward: input
backbones.hat_mask_resnet.HATMaskResNetBase: {BUILDING} gate {NORM}=None bias=False | {BUILDING} gate activation_layer bias
backbones.hat_mask_resnet.HATMaskResNetBase.update_multiple_blocks_task_embedding:
backbones.hat_mask_resnet.HATMaskResNetBlockLarge: {SIZES} gate {NORM}=None bias=False | {SIZES} gate activation_layer bias
backbones.hat_mask_resnet.HATMaskResNetBlockSmall.forward: input stage {MASKS} test_task_id=None | input stage {MASKS} test_mask
cl_algorithms.CLAlgorithm: backbone heads non_algorithmic_hparams
cl_algorithms.CLAlgorithm.forward: input stage task_id=None
cl_algorithms.CLAlgorithm.sanity_check:
cl_algorithms.CLAlgorithm.setup_task_id: task_id num_classes optimizer lr_scheduler
cl_algorithms.HAT: backbone heads adjustment_mode s_max clamp_threshold {HAT_ARGS} alpha=None
cl_algorithms.HAT.forward: input stage task_id=None {MASKS[11:]} | input stage {MASKS[11:]} task_id
cl_algorithms.HAT.training_step: batch batch_idx
cl_algorithms.HAT.validation_step: batch
cl_algorithms.HAT.test_step: batch batch_idx dataloader_idx=0
cl_algorithms.HAT.compensate_task_embedding_gradients: batch_idx num_batches
cl_algorithms.HAT.clip_grad_by_mask: mask aggregation_mode
cl_algorithms.AdaHAT: backbone heads adjustment_mode adjustment_intensity s_max clamp_threshold {HAT_ARGS} epsilon=0.1
cl_algorithms.AdaHAT.clip_grad_by_adjustment: network_sparsity=None
cl_algorithms.regularizers.HATMaskSparsityReg: factor mode='original'
cl_algorithms.regularisers.HATMaskSparsityReg.original_reg: mask previous_cumulative_mask
cl_algorithms.regularisers.hat_mask_sparsity.HATMaskSparsityReg.cross_reg: mask previous_cumulative_mask
cl_heads.HeadsTIL.setup_task_id: task_id num_classes_t
heads.HeadsTIL.forward: feature task_id
cl_heads.heads_cil.HeadsCIL.forward: feature task_id=None
heads.HeadDIL.get_head: task_id=None
"""  # noqa: E501


@pytest.mark.parametrize("line", SIGNATURES.strip().splitlines())
def test_arguments_have_the_documents_names_and_order(line: str) -> None:
    name, _, orders = line.partition(":")
    path = name.split(".")
    place = next(i for i, part in enumerate(path) if part[0].isupper())
    found: Any = importlib.import_module("maskcl.compat.clarena." + ".".join(path[:place]))
    for part in path[place:]:
        found = getattr(found, part)
    function = found.__init__ if isinstance(found, type) else found
    for order in orders.split("|"):
        args = [(arg, default or None) for arg, _, default in map(split, order.split())]
        assert list(differences(function, args)) == []


def split(word: str) -> tuple[str, str, str]:
    return word.partition("=")


def source() -> Path:
    """The folder of CLArena's package."""
    if folder := os.environ.get("MASKCL_CLARENA_SOURCE"):
        return next(path.parent for path in Path(folder).glob("**/clarena/__init__.py"))
    spec = importlib.util.find_spec("clarena")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("clarena is not installed here, and MASKCL_CLARENA_SOURCE is not set")
    return Path(spec.submodule_search_locations[0])


def listed() -> set[str]:
    """Names that the document has in backticks under its differences."""
    text = DOCUMENT.read_text().split("## Differences")[1]
    return {name for span in re.findall(r"`([^`]+)`", text) for name in re.findall(r"[\w.]+", span)}


def instances() -> dict[str, Any]:
    """One of each class of ours, with everything that it can have, in its first task."""
    norms = {"batch_normalization": "independent"}
    small, large = "ResNetBlockSmall", "ResNetBlockLarge"
    full = {"batch_normalization": True, "dropout": 0.5}
    found = {
        "Backbone": backbones.Backbone(3),
        "CLBackbone": backbones.CLBackbone(3),
        "HATMaskBackbone": backbones.HATMaskBackbone(3, "sigmoid"),
        "MLP": backbones.MLP(3, [4], 2, **full),
        "HATMaskMLP": mlp(**norms, dropout=0.5),
        "ResNetBase": backbones.ResNet18(3, 512),
        "HATMaskResNetBase": backbones.HATMaskResNet18(3, 512, "sigmoid", **norms),
        "HeadsTIL": heads.HeadsTIL(3),
        "HeadsCIL": heads.HeadsCIL(3),
        "HeadDIL": dil(),
        "HAT": hat(),
        "AdaHAT": hat("adahat"),
        "CLAlgorithm": cl_algorithms.CLAlgorithm(backbones.MLP(3, [4], 2), heads.HeadsTIL(2)),
        "HATMaskSparsityReg": HATMaskSparsityReg(1.0),
    }
    for name in (small, large):
        found[name] = getattr(resnet, name)(**BLOCK)
        hat_block = getattr(hat_mask_resnet, f"HATMask{name}")
        found[f"HATMask{name}"] = hat_block(**BLOCK, gate="sigmoid", **norms)
    for name in ("HeadsTIL", "HeadsCIL"):
        found[name].setup_task_id(1, CLASSES)
    return found


def parameters(function: ast.FunctionDef) -> list[tuple[str, str | None]]:
    """Names and defaults of the positional arguments, without self."""
    args, given = function.args.args[1:], function.args.defaults
    defaults = [None] * (len(args) - len(given)) + [ast.unparse(default) for default in given]
    return [(arg.arg, default) for arg, default in zip(args, defaults)]


def attributes(cls: ast.ClassDef) -> set[str]:
    """Public attributes of self that any of the class's methods assigns or declares."""
    stored = (n for n in ast.walk(cls) if isinstance(n, ast.Attribute))
    names = {
        n.attr
        for n in stored
        if isinstance(n.ctx, ast.Store) and isinstance(n.value, ast.Name) and n.value.id == "self"
    }
    return {name for name in names if not name.startswith("_")}


def differences(ours: Any, theirs: list[tuple[str, str | None]]) -> Iterator[str]:
    """Arguments of theirs, by name and default, that ours has not in their order."""
    names = getattr(ours, "older_names", {})
    known = {n: p.default for n, p in inspect.signature(ours).parameters.items() if n != "self"}
    theirs = [(names.get(name, name), default) for name, default in theirs]
    order = [name for name, _ in theirs]
    ways = [list(known), getattr(ours, "older_order", [])]
    if not any(order == way[: len(order)] for way in ways):
        yield f"wanted {', '.join(order)}"
    for name, default in theirs:
        found = known.get(name)
        text = f"nn.{found.__name__}" if found is nn.ReLU else repr(found)
        # An empty dictionary that no call may change is None here.
        if default not in (None, "{}", text):
            yield f"wanted {name}={default}, found {text}"


def compare(module: str, tree: ast.Module, made: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, what of it is missing or different) of a module of theirs."""
    try:
        ours = importlib.import_module(f"maskcl.compat.clarena.{module}")
    except ImportError:
        yield module.rpartition(".")[2], f"module {module}"
        return
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            missing = set(ast.literal_eval(node.value)) - set(ours.__all__)
            yield from ((name, f"{module}.__all__") for name in missing)
        elif isinstance(node, ast.ClassDef) and not hasattr(ours, node.name):
            yield node.name, f"{module}.{node.name}"
        elif isinstance(node, ast.ClassDef):
            yield from compare_class(getattr(ours, node.name), node, made.get(node.name))


def compare_class(ours: type, theirs: ast.ClassDef, made: Any) -> Iterator[tuple[str, str]]:
    """As `compare`, of a class; ``made`` is one of it, or None."""
    for method in theirs.body:
        if isinstance(method, ast.FunctionDef) and method.name.strip("_") in ("init", method.name):
            name = f"{theirs.name}.{method.name}"
            found = getattr(ours, method.name, None)
            if found is None:
                yield name, f"{name} is missing"
            else:
                yield from ((name, f"{name}: {d}") for d in differences(found, parameters(method)))
    for name in attributes(theirs) if made is not None else ():
        if not hasattr(made, name):
            yield f"{theirs.name}.{name}", f"{theirs.name}.{name} is missing"


def test_every_public_name_is_here_or_listed() -> None:
    folder, made, known = source(), instances(), listed()
    found: list[tuple[str, str]] = []
    for path in sorted(path for room in ROOMS for path in (folder / room).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            found += compare(module, ast.parse(path.read_text()), made)
        except SyntaxError:  # one file of the release 1.1.0
            found.append((parts[-1], f"module {module}"))
    assert found, "other algorithms are not here: something has to be missing"
    assert [what for name, what in found if name not in known] == []
