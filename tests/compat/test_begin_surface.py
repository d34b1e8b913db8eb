"""Names, arguments, their order and defaults, as BeGin 0.4.0 has them; read off its source."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

pytest.importorskip("torch_geometric")

from maskcl.compat.begin import utils
from maskcl.compat.begin.spelling import OTHER_NAMES
from tests.compat.begin_tiny import make, scenario

# Class: its functions with their arguments; * is what every class of that page has.
FUNCTIONS = """
trainers.common.BaseTrainer: __init__(model scenario optimizer_fn loss_fn device=None **kwargs)
 _reset_model(target_model) _reset_optimizer(target_optimizer) run(epoch_per_task=1)
 add_parameters(target_model target_optimizer) initTrainingStates(scenario model optimizer)
 preparePretrainLoader(curr_dataset curr_training_states) predictionFormat(results)
 prepareLoader(curr_dataset curr_training_states)
 processPretraining(pretrain_loader curr_model curr_training_states)
 processBeforeTraining(task_id curr_dataset curr_model curr_optimizer curr_training_states)
 beforeInference(model optimizer curr_batch curr_training_states)
 inference(model curr_batch curr_training_states)
 afterInference(results model optimizer curr_batch curr_training_states)
 processTrainIteration(model optimizer curr_batch curr_training_states)
 _trainWrapper(model optimizer curr_batch curr_training_states curr_stats)
 _reduceTrainingStats(curr_stats) processEvalIteration(model curr_batch)
 _evalWrapper(model curr_batch curr_stats) _reduceEvalStats(curr_stats)
 processTrainingLogs(task_id epoch_cnt val_metric_result train_stats val_stats)
 processAfterEachIteration(curr_model curr_optimizer curr_training_states curr_iter_results)
 processAfterTraining(task_id curr_dataset curr_model curr_optimizer curr_training_states)
utils.models.AdaptiveLinear: __init__(in_channels out_channels bias=True accum=True)
 reset_parameters() observe_outputs(new_outputs verbose=True) get_output_mask(task_ids=None)
 forward(x task_masks=None)
utils.models.GCNNode: __init__(in_feats n_classes n_hidden activation=relu dropout=0.0 n_layers=3
 incr_type='class' use_classifier=True) reset_parameters() forward(graph feat task_masks=None)
 forward_hat(graph feat hat_masks task_masks=None) bforward(blocks feat task_masks=None)
 forward_without_classifier(graph feat task_masks=None) get_observed_labels(tid=None)
 bforward_without_classifier(blocks feat task_masks=None) observe_labels(new_labels verbose=True)
utils.models.GCNLink: __init__(in_feats n_classes n_hidden activation=relu dropout=0.0 n_layers=3
 incr_type='class') forward(graph feat srcs dsts task_masks=None) get_observed_labels(tid=None)
 forward_hat(graph feat srcs dsts hat_masks=None task_masks=None)
 forward_without_classifier(graph feat srcs dsts task_masks=None)
 observe_labels(new_labels verbose=True)
utils.models.GCNConv: __init__(in_feats out_feats norm='both' weight=True bias=True activation=None
 allow_zero_in_degree=False edge_encoder_fn=None) reset_parameters() extra_repr()
 set_allow_zero_in_degree(set_value) forward(graph feat weight=None edge_weight=None edge_attr=None)
utils.models.GCNGraph: __init__(in_feats n_classes n_hidden activation=relu dropout=0.0 n_layers=4
 n_mlp_layers=2 incr_type='class' readout='mean' node_encoder_fn=None edge_encoder_fn=None)
 forward(graph feat task_masks=None edge_weight=None edge_attr=None get_intermediate_outputs=False)
 forward_hat(graph feat hat_masks task_masks=None edge_weight=None edge_attr=None)
 forward_without_classifier(graph feat task_masks=None edge_weight=None edge_attr=None)
 observe_labels(new_labels verbose=True) get_observed_labels(tid=None)
utils.pretraining.PretrainingMethod: __init__(encoder) iterator(inputs device) inference(inputs)
 update() processAfterTraining(original_model)
utils.pretraining.PretrainingMethod.PretrainIterator: __init__(inputs device) __iter__() __next__()
utils.pretraining.DGI: __init__(encoder link_level=True) inference(inputs)
utils.pretraining.DGI.Discriminator: __init__(n_hidden) uniform(size tensor) reset_parameters()
 forward(features summary)
utils.pretraining.DGISubgraphCL: __init__(encoder link_level=True) do_augmentation(graph)
 inference(inputs)
utils.pretraining.DGISubgraphCL.Discriminator: __init__(n_hidden) forward(features summary)
utils.pretraining.SubgraphCL: __init__(encoder) do_augmentation(graph) inference(inputs)
utils.pretraining.LightGCL: __init__(encoder link_level=True bipartite=False) inference(inputs)
 exact_forward(graph feats) approx_conv(conv graph feat) approx_forward(graph feats)
 iterator(inputs device)
utils.pretraining.LightGCL.PretrainIterator: __init__(inputs batch_size samples device)
utils.pretraining.InfoGraph: __init__(encoder) inference(inputs)
 get_positive_expectation(p_samples average=True) get_negative_expectation(q_samples average=True)
 local_global_loss_(l_enc g_enc graph_id)
utils.pretraining.InfoGraph.FeedforwardNetwork: __init__(in_dim hid_dim out_dim) forward(feat)
scenarios.common.BaseScenarioLoader: __init__(dataset_name save_path num_tasks incr_type metric
 **kwargs) _init_continual_scenario() _update_target_dataset() _update_accumulated_dataset()
 __len__() next_task(preds) get_current_dataset() get_accumulated_dataset()
 get_current_dataset_for_export(_global=False) export_dataset(full=True)
 get_eval_result(preds target_split='test') get_accum_eval_result(preds target_split='test')
 get_simple_eval_result(curr_batch_preds curr_batch_gts)
scenarios.nodes.NCScenarioLoader: _get_eval_result_inner(preds target_split)
scenarios.links.LCScenarioLoader: _get_eval_result_inner(preds target_split)
scenarios.links.LPScenarioLoader: _get_eval_result_inner(preds target_split)
scenarios.graphs.GCScenarioLoader: _get_eval_result_inner(preds target_split)
evaluators.BaseEvaluator: __init__(num_tasks task_ids) __call__(prediction answer indices)
 simple_eval(prediction answer)
evaluators.MAEEvaluator: __call__(_prediction _answer indices) simple_eval(prediction answer)
evaluators.AccuracyEvaluator: __call__(_prediction _answer indices) simple_eval(prediction answer)
evaluators.ROCAUCEvaluator: __call__(_prediction answer indices) simple_eval(prediction answer)
evaluators.HitsEvaluator: __init__(num_tasks k) __call__(_prediction _answer task_ids)
 simple_eval(prediction answer)
algorithms.hat.nodes.NCTaskILHATTrainer: criterion(outputs targets masks)
 get_mask(task_id model s m e) get_view_for(name parameter masks)
algorithms.hat.links.LCTaskILHATTrainer: criterion(outputs targets masks)
 get_mask(task_id model s m e) get_view_for(name curr_model parameter masks)
algorithms.hat.graphs.GCTaskILHATTrainer: criterion(outputs targets masks)
 get_mask(model task_id s m e) get_view_for(name curr_model parameter masks)
"""
SCENARIO = "_accumulated_dataset _curr_task _target_dataset dataset_load_func dataset_name"
SCENARIO += " export_mode incr_type initial_test_result kwargs metric num_classes num_feats"
SCENARIO += " num_tasks save_path"
TRAINER = "_dataloader_seed_worker binary curr_task device eval_fn full_mode incr_type init_lrs"
TRAINER += " loss_fn num_tasks optimizer_fn pretraining result_path save_file_name scheduler_fn"
TRAINER += " tmp_path verbose"
HAT = "clipgrad embedding_list gate lamb mask_back mask_pre masking smax thres_cosh thres_emb"
MODEL = "activation classifier dropout n_classes n_hidden n_layers"
ATTRIBUTES = {
    "NCScenarioLoader": SCENARIO,
    "LCScenarioLoader": SCENARIO,
    "LPScenarioLoader": SCENARIO,
    "GCScenarioLoader": SCENARIO,
    "NCTaskILHATTrainer": f"{TRAINER} {HAT}",
    "LCTaskILHATTrainer": f"{TRAINER} {HAT}",
    "GCTaskILHATTrainer": f"{TRAINER} {HAT}",
    "LCTaskILPiggybackTrainer": f"{TRAINER} threshold",
    "NCClassILMASMinibatchTrainer": f"{TRAINER} lamb",
    "LPTimeILMASTrainer": f"{TRAINER} lamb",
    "LPDomainILEWCTrainer": f"{TRAINER} lamb",
    "GCTimeILBareTrainer": TRAINER,
    "GCNNode": f"{MODEL} convs norms",
    "GCNLink": f"{MODEL} gcn linears",
    "GCNGraph": f"{MODEL} convs norms enc mlp_layers n_mlp_layers readout_mode",
    "AdaptiveLinear": "accum bias lin num_outputs observed output_masks",
}
# Pages with classes whose names test_begin.py looks at, and what else imports name.
MODULES = "evaluators.evaluator scenarios trainers.nodes trainers.links trainers.graphs utils"


def entries() -> dict[str, dict[str, list[str]]]:
    """Class -> function -> arguments as they are written above."""
    text = re.sub(r"\n ", " ", FUNCTIONS.strip())
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition(": ")
        parts = re.findall(r"(\w+)\(([^)]*)\)", rest)
        found[name] = {function: arguments.split() for function, arguments in parts}
    return found


def resolved(path: str) -> Any:
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = importlib.import_module("maskcl.compat.begin." + ".".join(parts[:cut]))
        except ImportError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise AssertionError(path)


@pytest.mark.parametrize("name", entries())
def test_functions_have_begins_arguments(name: str) -> None:
    kind = resolved(name)
    for function, wanted in entries()[name].items():
        found = inspect.signature(getattr(kind, function)).parameters.values()
        ours = [p for p in found if p.name != "self"]
        assert len(ours) >= len(wanted) or not wanted, (name, function)
        for ours_, text in zip(ours, wanted, strict=False):
            called, _, default = text.partition("=")
            assert ours_.name == OTHER_NAMES.get(called, called).lstrip("*"), (name, function)
            if default:
                shown = getattr(ours_.default, "__name__", repr(ours_.default))
                assert shown == default, (name, function, text)
        # What is here beyond BeGin's has a default.
        assert all(p.default is not p.empty or p.kind > 2 for p in ours[len(wanted) :])


def instance(name: str) -> Any:
    if name.endswith("Loader"):
        return scenario(name[:2], "time" if name[:2] == "LP" else "task")
    if name.endswith("Trainer"):
        page = {"NC": "nodes", "LC": "links", "LP": "links", "GC": "graphs"}[name[:2]]
        method = next(m for m in ("HAT", "Piggyback", "MAS", "EWC", "Bare") if m in name)
        return make(resolved(f"algorithms.{method.lower()}.{page}.{name}"))
    return getattr(utils, name)(*(4, 3, 8)[: 2 if name == "AdaptiveLinear" else 3])


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_objects_have_begins_attributes(name: str) -> None:
    found = instance(name)
    assert [word for word in ATTRIBUTES[name].split() if not hasattr(found, word)] == []


@pytest.mark.parametrize("name", ["NCTrainer", "LCTrainer", "LPTrainer", "GCTrainer"])
def test_events_take_their_arguments_by_both_of_begins_names(name: str) -> None:
    kind = next(
        getattr(module, name)
        for module in (resolved(f"trainers.{page}") for page in ("nodes", "links", "graphs"))
        if hasattr(module, name)
    )
    trainer = make(type(f"My{name}", (kind,), {}), "time" if name == "LPTrainer" else "class")
    dataset, states = trainer._scenario.get_current_dataset(), {"kept": 1}
    batches = trainer.prepareLoader(_curr_dataset=dataset, curr_training_states=states)
    again = trainer.prepareLoader(curr_dataset=dataset, training_states=states)
    trainer.model.observe_labels(trainer._seen_labels(dataset))
    batch, other = next(iter(batches[1])), next(iter(again[1]))
    first = trainer.inference(model=trainer.model, _curr_batch=batch, training_states=states)
    second = trainer.inference(model=trainer.model, curr_batch=other, curr_training_states=states)
    assert first["preds"].shape == second["preds"].shape
    with pytest.raises(TypeError, match=r"inference: .* are the same argument, wanted one of them"):
        trainer.inference(trainer.model, _curr_batch=batch, curr_batch=batch, training_states={})


def test_what_is_not_here_is_listed_with_a_reason() -> None:
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "compat-begin.md").read_text()
    words = "load_node_dataset load_linkp_dataset load_linkc_dataset load_graph_dataset mae"
    words += " scenarios.datasets edge_encoder_fn task_masks done_masks mask_optimizer curr_cnt"
    words += " num_batches curr_s LwF GEM TWP ERGNN CGNN PackNet PIGNN CaT neg_edges DGLGraph"
    assert [word for word in words.split() if word not in page] == []
    for module in MODULES.split():
        importlib.import_module(f"maskcl.compat.begin.{module}")
    assert isinstance(utils.GCNNode(4, 3, 8), nn.Module)
