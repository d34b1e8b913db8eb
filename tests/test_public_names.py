"""Names that users import stay where they are: those that README, docs and the surfaces promise.

Names may be added here, never moved or taken away.
"""

from __future__ import annotations

import ast
import importlib
import itertools

import pytest

from tests.pages import README, ROOT, blocks

PUBLIC = {
    "maskcl": "EWC HAT MAS Piggyback TaskInference Trainer Validation __version__ backends"
    " checkpoint export importance masks methods models nn ops optim problems scenarios",
    "maskcl.backends": "BACKENDS BackendError not_supported_reasons select use_backend",
    "maskcl.callback": "Callback",
    "maskcl.loggers": "CSVLogger TensorBoardLogger",
    "maskcl.checkpoint": "Checkpoint CheckpointError Resumed load_checkpoint load_network"
    " load_training network_state save_checkpoint save_training",
    "maskcl.export": "Cost Report compact report save",
    "maskcl.graph": "Graph",
    "maskcl.importance": "estimate",
    "maskcl.integrations.avalanche": "MaskPlugin MaskedModel",
    "maskcl.integrations.lightning": "MaskCallback",
    "maskcl.lock": "LockedError locked",
    "maskcl.masks": "MaskFile MaskFileError export_masks import_masks read_masks",
    "maskcl.methods": "EWC Finetune HAT HATState Independent Joint MAS Method Piggyback"
    " PiggybackState PlanWarning QuadraticState TaskData derive_seed",
    "maskcl.metrics": "Metric all_metrics average_accuracy_curve average_forgetting"
    " average_incremental average_performance backward_transfer forgetting forgetting_ratio"
    " forward_transfer intransigence transfer_from_scratch",
    "maskcl.models": "ENCODERS GRAPH_PROBLEMS NAMES READOUTS build build_graph conv example_inputs"
    " mlp resnet101 resnet152 resnet18 resnet34 resnet50 vit_small vit_tiny",
    "maskcl.nn": "Capacity ConversionError ConversionWarning Forgotten GrowingHead"
    " HATConv1d HATConv2d HATConv3d HATEmbedding HATLinear HATNetwork"
    " ImportanceNetwork PiggybackConv1d PiggybackConv2d PiggybackConv3d PiggybackEmbedding"
    " PiggybackLinear PiggybackNetwork Protection TaskBatchNorm1d TaskBatchNorm2d TaskBatchNorm3d"
    " TaskGroupNorm TaskHeads TaskLayerNorm TaskNetwork TaskRMSNorm mask_logits to_hat"
    " to_importance to_piggyback to_plain",
    "maskcl.ops": "adam_update_ and_words andnot_words binarize clamp_grads_ clamp_grads_soft_"
    " epoch_progress hat_gate hat_scale hat_sparsity kth_largest linear_importance"
    " linear_importance_ mas_accumulate_ mas_penalty mas_penalty_grads_ masked_activation"
    " masked_conv masked_linear"
    " open_conv or_words pack_mask pack_scores packed_embedding packed_linear packed_weight"
    " piggyback_linear piggyback_weight popcount protected_fraction restore_protected_ sgd_update_"
    " soft_mask task_progress ternarize topk_mask unpack_mask unprotected_norm xor_words",
    "maskcl.optim": "Adam AdamW FusedStep Guard SGD fuse guard protect",
    "maskcl.problems": "Graphs Link MultiLabel Node Problem Regression Vision",
    "maskcl.report": "ReportError check_drawing compare decode_masks encode_masks facts read_result"
    " write_page write_report write_result write_run",
    "maskcl.scenarios": "ItemError NAMES Pretraining Scenario ScenarioError Task default_setting"
    " from_datasets from_pyg images_of load load_pretraining problem_of reads_data settings_of"
    " split_datasets summary variants_of",
    "maskcl.settings": "Setting get_setting",
    "maskcl.training.schedules": "named_schedule",
    "maskcl.compat.begin.algorithms.hat.graphs": "GCTaskILHATTrainer",
    "maskcl.compat.begin.algorithms.hat.links": "LCTaskILHATTrainer",
    "maskcl.compat.begin.algorithms.hat.nodes": "NCTaskILHATTrainer",
    "maskcl.compat.begin.algorithms.mas.graphs": "GCClassILMASTrainer GCDomainILMASTrainer"
    " GCTaskILMASTrainer GCTimeILMASTrainer",
    "maskcl.compat.begin.algorithms.mas.links": "LCClassILMASTrainer LCTaskILMASTrainer"
    " LCTimeILMASTrainer LPDomainILMASTrainer LPTimeILMASTrainer",
    "maskcl.compat.begin.algorithms.mas.nodes": "NCClassILMASMinibatchTrainer NCClassILMASTrainer"
    " NCDomainILMASTrainer NCTaskILMASTrainer NCTimeILMASTrainer",
    "maskcl.compat.begin.algorithms.piggyback.graphs": "GCTaskILPiggybackTrainer",
    "maskcl.compat.begin.algorithms.piggyback.links": "LCTaskILPiggybackTrainer",
    "maskcl.compat.begin.algorithms.piggyback.nodes": "NCTaskILPiggybackTrainer",
    "maskcl.compat.begin.scenarios.graphs": "GCScenarioLoader",
    "maskcl.compat.begin.scenarios.links": "LCScenarioLoader LPScenarioLoader",
    "maskcl.compat.begin.scenarios.nodes": "NCScenarioLoader",
    "maskcl.compat.begin.utils": "AdaptiveLinear GCNGraph GCNLink GCNNode",
    "maskcl.compat.clarena.backbones": "Backbone CLBackbone CLMLP CLResNet101 CLResNet152"
    " CLResNet18 CLResNet34 CLResNet50 HATMaskBackbone HATMaskMLP HATMaskResNet101"
    " HATMaskResNet152 HATMaskResNet18 HATMaskResNet34 HATMaskResNet50 MLP ResNet101 ResNet152"
    " ResNet18 ResNet34 ResNet50",
    "maskcl.compat.clarena.cl_algorithms": "AdaHAT CLAlgorithm HAT",
    "maskcl.compat.clarena.cl_algorithms.regularizers": "HATMaskSparsityReg",
    "maskcl.compat.clarena.cl_heads": "HeadsTIL",
    "maskcl.compat.clarena.heads": "HeadDIL HeadsTIL",
    "maskcl.compat.hat_cl": "HATConfig HATPayload TaskIndexedParameter modules utils",
    "maskcl.compat.hat_cl.modules": "AttentionMasker ConstantMasker HATConv1d HATConv2d HATConv3d"
    " HATLinear HATMasker TaskIndexedBatchNorm1d TaskIndexedBatchNorm2d TaskIndexedBatchNorm3d"
    " TaskIndexedLayerNorm",
    "maskcl.compat.hat_cl.timm_models": "HATAttention HATBasicBlock HATBlock HATResNet"
    " HATVisionTransformer ResNet_ TaskIndexedLayerScale hat_resnet18 hat_resnet18s hat_resnet34"
    " hat_resnet34s hat_vit_base_patch16_224 hat_vit_tiny_patch16_224"
    " hat_vit_tiny_patch16_224_in21k resnet18s resnet34s",
    "maskcl.compat.hat_cl.utils": "convert_to_base_module convert_to_task_dependent_module"
    " forget_task forward_hat_payload get_hat_mask_scale get_hat_reg_term get_hat_util"
    " prune_hat_module",
}


NEEDS = {
    "maskcl.integrations.avalanche": "avalanche",
    "maskcl.integrations.lightning": "lightning",
}


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_name_imports_from_where_it_did(module: str) -> None:
    if (needed := NEEDS.get(module)) is not None:
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    found = importlib.import_module(module)
    assert [name for name in PUBLIC[module].split() if not hasattr(found, name)] == []


@pytest.mark.parametrize("module", ["maskcl", "maskcl.nn", "maskcl.ops", "maskcl.masks"])
def test_every_promised_name_is_in_the_list(module: str) -> None:
    assert set(importlib.import_module(module).__all__) <= set(PUBLIC[module].split())


def test_names_that_pages_take_from_the_package_are_there_whatever_is_imported() -> None:
    """``import maskcl`` alone has no submodule that it does not look up itself."""
    pages = [README, *(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))]
    code = itertools.chain.from_iterable(blocks("python", text) for text in pages)
    scripts = (path.read_text() for path in sorted((ROOT / "examples").glob("*.py")))
    parsed = [ast.parse(text) for text in (*code, *scripts)]
    found = {
        node.attr
        for node in itertools.chain.from_iterable(map(ast.walk, parsed))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "maskcl"
    }
    assert len(found) > 5
    assert found <= set(importlib.import_module("maskcl").__all__)
