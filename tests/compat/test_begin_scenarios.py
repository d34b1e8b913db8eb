from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torch_geometric")

from maskcl.compat.begin.data import DataGraph, batch
from maskcl.compat.begin.scenarios.graphs import GCScenarioLoader
from maskcl.compat.begin.scenarios.links import LCScenarioLoader, LPScenarioLoader
from maskcl.compat.begin.scenarios.nodes import NCScenarioLoader
from maskcl.scenarios import ScenarioError
from tests.compat.begin_tiny import CLASSES, FEATURES, TASKS, links, nodes, scenario

DATA = os.environ.get("MASKCL_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MASKCL_DATA names no folder with real data")
SPLITS = ("train_mask", "val_mask", "test_mask")


def walk(found: Any) -> list[Any]:
    """The current dataset of each task."""
    datasets = []
    while (dataset := found.get_current_dataset()) is not None:
        datasets.append(dataset)
        found._curr_task += 1
        if found._curr_task < found.num_tasks:
            found._update_target_dataset()
    return datasets


@pytest.mark.parametrize("setting", ["task", "class", "domain", "time"])
def test_a_node_dataset_shows_the_current_tasks_labels_alone(setting: str) -> None:
    found = scenario("NC", setting)
    assert (found.num_feats, found.num_classes, found.num_tasks) == (FEATURES, CLASSES, TASKS)
    assert found.incr_type == setting and len(found) == TASKS and found._curr_task == 0
    truth = nodes(None)["graph"].ndata["label"]
    for task, graph in enumerate(walk(found)):
        train, val, test = (graph.ndata[name] for name in SPLITS)
        assert not bool((train & val | train & test | val & test).any())
        labels = graph.ndata["label"]
        assert bool((labels[train | val] >= 0).all()) and bool((labels[~(train | val)] == -1).all())
        count = graph.num_nodes()
        assert torch.equal(labels[train], truth[:count][train])  # classes keep their numbers
        if setting == "time":
            assert count == 30 * (task + 1) and len(graph.ndata["feat"]) == count
        else:
            assert count == 90
        if setting in ("task", "class"):
            assert sorted(labels[train].unique().tolist()) == [2 * task, 2 * task + 1]
        assert ("task_specific_mask" in graph.ndata) == (setting == "task")
        if setting == "task":
            masks = graph.ndata["task_specific_mask"][test]
            assert masks.shape[1] == CLASSES and bool((masks.sum(1) == 2).all())
            assert bool((masks[:, 0] == masks[:, 1]).all())


def test_the_accumulated_dataset_has_all_tasks_so_far() -> None:
    found = scenario("NC", "class")
    sizes = []
    while found.get_current_dataset() is not None:
        labels = found.get_accumulated_dataset().ndata["label"]
        sizes.append(int((labels >= 0).sum()))
        assert set(labels.unique().tolist()) == {-1, *range(2 * found._curr_task + 2)}
        test = found.get_current_dataset().ndata["test_mask"]
        found.next_task(torch.zeros(int(test.sum()), dtype=torch.int64))
    assert found.get_accumulated_dataset() is None
    assert sizes == [sizes[0] * (task + 1) for task in range(TASKS)]


def test_scores_have_a_column_a_task_and_one_over_all() -> None:
    found = scenario("NC", "class")
    truth = nodes(None)["graph"].ndata["label"]
    graph = found.get_current_dataset()
    test = graph.ndata["test_mask"]
    assert found.get_eval_result(truth[test]).tolist() == [1.0] * (TASKS + 1)
    guesses = torch.where(truth[test] < 2, truth[test], 0)  # only the first task's are right
    assert found.get_eval_result(guesses).tolist() == pytest.approx([1, 0, 0, 1 / 3])
    val = found.get_eval_result(truth[graph.ndata["val_mask"]], target_split="val")
    assert val[0] == val[-1] == 1 and bool(val[1:-1].isnan().all())
    assert found.get_simple_eval_result(torch.tensor([1, 2]), torch.tensor([1, 3])) == 0.5
    with pytest.raises(ValueError, match=f"preds has 2 rows, wanted {int(test.sum())}"):
        found.get_eval_result(torch.zeros(2))


def test_the_last_task_gives_the_metrics() -> None:
    """A hand-made matrix: [[1, 0, 0], [0, 1, 0], [0, 0, 1]]."""
    found = scenario("NC", "task")
    truth = nodes(None)["graph"].ndata["label"]
    for task in range(TASKS):
        test = found.get_current_dataset().ndata["test_mask"]
        mine = truth[test] // 2 == task
        wrong = truth[test] ^ 1  # the task's other class
        result = found.next_task(torch.where(mine, truth[test], wrong))
        assert (result is None) == (task < TASKS - 1)
    assert torch.equal(result["exp_results"][:, :-1], torch.eye(TASKS))
    assert result["AP"] == pytest.approx(1 / 3) and result["AF"] == 1 and result["FWT"] is None


def test_task_orders_and_shuffling_by_seed() -> None:
    given = scenario("NC", "task", task_orders=[[5, 0], [1, 4]])
    assert given.num_tasks == 2
    first = given.get_current_dataset().ndata
    assert sorted(first["label"][first["train_mask"]].unique().tolist()) == [0, 5]
    orders = [
        scenario("NC", "class", task_shuffle=1, seed=seed)._scenario.classes for seed in (3, 3, 4)
    ]
    assert orders[0] == orders[1] != orders[2]
    torch.manual_seed(7)
    drawn = [scenario("NC", "class", task_shuffle=1, seed=None).seed for _ in range(2)]
    torch.manual_seed(7)
    assert scenario("NC", "class", task_shuffle=1, seed=None).seed == drawn[0] != drawn[1]


@pytest.mark.parametrize("setting", ["task", "time"])
def test_a_link_dataset_is_about_links_and_messages_use_no_test_link(setting: str) -> None:
    found = scenario("LC", setting)
    assert found.num_classes == (1 if setting == "time" else CLASSES)
    for graph in walk(found):
        srcs, dsts = graph.edges()
        assert len(srcs) == graph.num_edges() == len(graph.edata["label"])
        messages = {tuple(pair) for pair in graph.messages.edge_index.T.tolist()}
        test = graph.edata["test_mask"]
        pairs = torch.stack([srcs, dsts], dim=1)
        assert not messages & {tuple(pair) for pair in pairs[test].tolist()}
        assert bool((graph.edata["label"][test] == -1).all())
        train = graph.edata["train_mask"] | graph.edata["val_mask"]
        assert {tuple(pair) for pair in pairs[train].tolist()} <= messages
        assert graph.edata["label"].dim() == (2 if setting == "time" else 1)


def test_a_prediction_dataset_hides_its_validation_links_from_messages() -> None:
    found = scenario("LP", "time")
    assert found.num_classes == 1
    known = links(None, twice=True)["graph"].edges()
    count = len(known[0])
    sizes = []
    for dataset in walk(found):
        graph = dataset["graph"]
        messages = {tuple(pair) for pair in graph.messages.edge_index.T.tolist()}
        for split in ("train", "val", "test"):
            pairs, labels = dataset[split]["edge"], dataset[split]["label"]
            assert len(pairs) == len(labels)
            found_in = [tuple(pair) in messages for pair in pairs.tolist()]
            assert all(found_in) if split == "train" else not any(found_in)
        assert bool((dataset["test"]["label"] == -1).all())
        assert set(dataset["val"]["label"].tolist()) == {0, 1}
        sizes.append(graph.messages.edge_index.shape[1])
    assert sizes == sorted(sizes) and sizes[-1] < count


def test_a_graph_dataset_is_lists_of_graphs() -> None:
    found = scenario("GC", "task")
    dataset = found.get_current_dataset()
    graph, label, mask = dataset["train"][0]
    assert isinstance(graph, DataGraph) and graph.ndata["feat"].shape == (4, FEATURES)
    assert int(label) in (0, 1) and mask.tolist() == [True, True] + [False] * 4
    assert all(int(item[1]) == -1 for item in dataset["test"])
    whole = batch([item[0] for item in dataset["train"][:3]])
    assert whole.batch_num_nodes().tolist() == [4, 4, 4] and whole.num_nodes() == 12


def test_a_data_graphs_clone_and_move_leave_it_alone() -> None:
    graph = scenario("NC", "task").get_current_dataset()
    copy = graph.clone()
    copy.ndata.pop("feat")
    copy.ndata["new"] = torch.zeros(90)
    assert "feat" in graph.ndata and "new" not in graph.ndata
    assert graph.to("cpu") is graph
    moved = graph.to("meta")
    assert moved.ndata["feat"].device.type == "meta" and graph.ndata["feat"].device.type == "cpu"
    kept = graph.adjacency("gcn")
    assert copy.adjacency("gcn") is kept  # made once


@pytest.mark.parametrize(
    ("loader", "name", "words"),
    [
        (NCScenarioLoader, "ogbn-arxiv", "unknown scenario 'ogbn-arxiv'"),
        (NCScenarioLoader, "split-digits", "of vision problems; wanted one of node problems"),
        (NCScenarioLoader, "graphs-digits", "of graph problems; wanted one of node problems"),
        (
            LCScenarioLoader,
            "missing-links-digits",
            "of link prediction problems; wanted one of link problems",
        ),
        (
            LPScenarioLoader,
            "links-digits",
            "of link problems; wanted one of link prediction problems",
        ),
        (GCScenarioLoader, "enzymes", "ENZYMES"),
        (NCScenarioLoader, "cora", "ind.cora.x"),
    ],
)
def test_what_is_not_there_is_said(loader: Any, name: str, words: str, tmp_path: Any) -> None:
    setting = "domain" if "missing" in name or loader is LPScenarioLoader else "task"
    with pytest.raises((ScenarioError, ValueError), match=words):
        loader(name, tmp_path, 3 if setting == "task" else None, setting, task_shuffle=1, seed=0)


@needs_data
@pytest.mark.parametrize(
    ("loader", "name", "setting", "tasks", "classes", "metric"),
    [
        (NCScenarioLoader, "cora", "task", 3, 7, "accuracy"),
        (LCScenarioLoader, "bitcoin", "task", 3, 6, "accuracy"),
        (LCScenarioLoader, "bitcoin", "time", 7, 1, "rocauc"),
        (GCScenarioLoader, "enzymes", "class", 3, 6, "accuracy"),
    ],
)
def test_begins_names_open_the_real_files(
    loader: Any, name: str, setting: str, tasks: int, classes: int, metric: str
) -> None:
    found = loader(
        dataset_name=name,
        num_tasks=tasks,
        metric=metric,
        save_path=DATA,
        incr_type=setting,
        task_shuffle=1,
        seed=0,
    )
    assert (found.num_tasks, found.num_classes) == (tasks, classes)
    labels: Tensor = found.task_of_class
    if setting != "time":
        assert sorted(labels.unique().tolist()) == list(range(tasks))
