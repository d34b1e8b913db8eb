"""Scenarios from torch_geometric's data: what training sees does not depend on test labels."""

import pytest
import torch

from maskcl import scenarios
from maskcl.scenarios import ScenarioError
from tests.scenarios.graphs.tensors_of import tensors, unordered

pytest.importorskip("torch_geometric")
from torch_geometric.data import Data, HeteroData


def made(nodes=60, links=300, seed=0):
    random = torch.Generator().manual_seed(seed)
    return Data(
        x=torch.randn(nodes, 4, generator=random),
        edge_index=torch.randint(0, nodes, (2, links), generator=random),
        y=torch.arange(nodes) % 4,
        when=torch.arange(nodes) * 7 % nodes // 5,
        place=torch.arange(nodes) % 3,
        height=torch.arange(nodes) / 7,
        edge_label=torch.arange(links) % 4,
        edge_when=torch.arange(links) / 3,
    )


def small_graphs(count=80):
    edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    return [
        Data(
            x=torch.full((3, 2), float(i)),
            edge_index=edges,
            y=torch.tensor([i % 4]),
            when=torch.tensor([i // 20]),
        )
        for i in range(count)
    ]


def seen(scenario):
    """All tensors that training and prediction can reach."""
    sets = [(scenario.train_set(t), scenario.test_inputs(t)) for t in range(scenario.num_tasks)]
    return tensors(sets)


@pytest.mark.parametrize(
    "options",
    [
        {"problem": "node", "setting": "domain", "domain": "place"},
        {"problem": "node", "setting": "time", "time": "when", "tasks": 3},
        {"problem": "link", "setting": "domain", "domain": "height", "tasks": 2},
        {"problem": "link", "setting": "time", "time": "edge_when", "tasks": 3},
        {"problem": "graph", "setting": "time", "time": "when", "tasks": 2},
    ],
    ids=lambda options: f"{options['problem']}-{options['setting']}",
)
def test_other_test_labels_change_nothing_that_training_sees(options):
    kind = options["problem"]
    data = small_graphs() if kind == "graph" else made()
    labels = (
        data.edge_label
        if kind == "link"
        else torch.arange(len(data) if kind == "graph" else 60) % 4
    )
    # A fifth is held out, and of links whatever has the same two ends.
    test = torch.arange(len(labels)) % 5 == 0
    if kind == "link":
        ends = data.edge_index.sort(dim=0).values
        keys = ends[0] * 60 + ends[1]
        test = torch.isin(keys, keys[test])
    lied = torch.where(test, 0, labels)
    first, second = (
        scenarios.from_pyg(data, label=values, split=(~test, test), **options)
        for values in (labels, lied)
    )
    found = list(zip(seen(first), seen(second), strict=True))
    assert len(found) > 5
    assert all(torch.equal(a, b) for a, b in found)
    guess = torch.zeros(first.sizes[0][1], dtype=torch.int64)
    assert first.score(0, guess) < second.score(0, guess) == 1.0


def test_nodes_use_the_masks_of_the_data_where_they_have_both():
    data = made()
    data.train_mask = torch.arange(60) < 30
    data.test_mask = torch.arange(60) >= 48
    scenario = scenarios.from_pyg(data, problem="node", setting="task")
    assert scenario.classes == [[0, 1], [2, 3]]
    assert scenario.train_set(0).nodes.tolist() == [i for i in range(30) if i % 4 < 2]
    assert scenario.test_inputs(1).nodes.tolist() == [i for i in range(48, 60) if i % 4 >= 2]
    assert scenario.detail["split"] == "the data's own"
    del data.test_mask
    drawn = scenarios.from_pyg([data], problem="node", setting="task")
    assert drawn.sizes == [(24, 6), (24, 6)]


def test_nodes_with_a_label_below_zero_only_pass_messages():
    labels = torch.arange(60) % 4
    labels[::7] = -1
    data = made()
    scenario = scenarios.from_pyg(data, problem="node", setting="class", label=labels)
    used = torch.cat(
        [part(t).nodes for t in range(2) for part in (scenario.train_set, scenario.test_inputs)]
    )
    assert sorted(used.tolist()) == torch.nonzero(labels >= 0).flatten().tolist()
    assert torch.equal(scenario.train_set(0).graph.edge_index, data.edge_index)


@pytest.mark.parametrize("sparse", [False, True])
def test_time_of_nodes_keeps_features_and_edges_of_what_is_there(sparse):
    data = made()
    dense = data.x
    data.x = dense.to_sparse_coo() if sparse else dense
    scenario = scenarios.from_pyg(data, problem="node", setting="time", time="when", tasks=4)
    where = {tuple(row): i for i, row in enumerate(dense.tolist())}
    for task in range(4):
        part = scenario.train_set(task)
        x = part.graph.x.to_dense()
        node = torch.tensor([where[tuple(row)] for row in x.tolist()])
        # Windows of three of the twelve stamps.
        assert set(data.when[node].tolist()) == set(range(3 * task + 3))
        assert set(data.when[node[part.nodes]].tolist()) == set(range(3 * task, 3 * task + 3))
        assert torch.equal(data.y[node[part.nodes]], part.labels)
        kept = (data.when[data.edge_index] < 3 * task + 3).all(0)
        assert sorted(node[part.graph.edge_index].t().tolist()) == sorted(
            data.edge_index[:, kept].t().tolist()
        )


def test_a_link_has_the_domain_and_time_of_its_ends():
    data = made()
    scenario = scenarios.from_pyg(data, problem="link", setting="domain", domain="place")
    for task in range(3):
        assert (data.place[scenario.train_set(task).pairs] == task).all()
        assert scenario.train_set(task).graph.num_nodes == 60
    apart = data.place[data.edge_index[0]] != data.place[data.edge_index[1]]
    assert sum(sum(size) for size in scenario.sizes) == int((~apart).sum())
    later = data.when[data.edge_index].amax(0)
    scenario = scenarios.from_pyg(data, problem="link", setting="time", time="when", tasks=2)
    where = {tuple(row): i for i, row in enumerate(data.x.tolist())}
    graph = scenario.train_set(0).graph
    node = torch.tensor([where[tuple(row)] for row in graph.x.tolist()])
    stamps = data.when[node[scenario.train_set(0).pairs]].amax(1)
    assert stamps.max() <= data.when[node].max() < later.max()


def test_missing_links_are_asked_once_and_not_of_loops():
    data = made()
    scenario = scenarios.from_pyg(
        data, problem="link", setting="time", time="edge_when", tasks=2, prediction=True
    )
    assert (scenario.prediction, scenario.metric, scenario.outputs) == (True, "auroc", [1, 1])
    links = {pair for pair in unordered(data.edge_index.t()) if pair[0] != pair[1]}
    # A network to which direction matters must not tell links from drawn pairs by it.
    for task in range(2):
        for part in (scenario.train_set(task), scenario.test_inputs(task)):
            assert bool((part.pairs[:, 0] < part.pairs[:, 1]).all())
    trained = sum(train for train, _ in scenario.sizes)
    assert trained + sum(test for _, test in scenario.sizes) // 2 == len(links)


def test_graphs_are_cut_by_class_and_by_time():
    data = small_graphs()
    scenario = scenarios.from_pyg(data, problem="graph", setting="task", shuffle=True, seed=2)
    for task, group in enumerate(scenario.classes):
        train = scenario.train_set(task)
        numbers = [int(graph.x[0, 0]) for graph in train.graphs]
        assert [group[label] for label in train.labels] == [i % 4 for i in numbers]
    scenario = scenarios.from_pyg(data, problem="graph", setting="time", time="when")
    assert scenario.num_tasks == 4
    assert {int(graph.x[0, 0]) // 20 for graph in scenario.train_set(2).graphs} == {2}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"problem": "nodes"}, "problem is 'nodes', wanted node, link, graph"),
        ({"prediction": True}, "prediction is of links, and takes no label"),
        ({"problem": "link", "prediction": True}, "link prediction has no classes to cut by"),
        ({"setting": "time"}, "pyg has the settings task, class, not 'time'"),
        ({"setting": "domain", "domain": "nowhere"}, "no tensor 'nowhere' to be the domain"),
        ({"setting": "domain", "domain": "height"}, "say how many tasks to cut"),
        ({"setting": "domain", "domain": "place", "tasks": 2}, "3 domains, which are 3 tasks, not"),
        ({"setting": "time", "time": "when", "tasks": 20}, "the stamps make 12 windows, not 20"),
        ({"setting": "time", "time": "edge_when"}, "time has shape (300,), wanted 60 numbers"),
        ({"label": "height"}, "label is torch.float32, wanted whole numbers"),
        ({"tasks": 3}, "leave a task with one class"),
        ({"tasks": 0}, "tasks is 0, wanted at least 1"),
        ({"test_share": 1.0}, "test_share is 1.0, wanted between 0 and 1"),
        ({"seed": -1}, "seed must be 0 to"),
        ({"split": (torch.ones(60), torch.ones(60))}, "wanted two bool tensors of 60"),
        ({"split": (torch.ones(60).bool(),) * 2}, "training and test share 60"),
        ({"metric": "hits@5"}, "task 0: hits@5 needs at least 5 negatives, and there are 3"),
    ],
)
def test_bad_requests_get_one_sentence(options, sentence):
    with pytest.raises(ScenarioError) as caught:
        scenarios.from_pyg(made(), **{"problem": "node", "setting": "task", **options})
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("pyg")
    assert "\n" not in str(caught.value)


def test_what_is_no_graph_or_does_not_fit_is_refused():
    for wrong in (HeteroData(), [made(), made()], 3):
        with pytest.raises(ScenarioError, match="wanted one graph of one kind"):
            scenarios.from_pyg(wrong, problem="node", setting="task")
    with pytest.raises(ScenarioError, match="wanted a dataset of graphs"):
        scenarios.from_pyg(made(), problem="graph", setting="task")
    data = made()
    data.edge_index = data.edge_index + 1
    with pytest.raises(ScenarioError, match="edge_index names nodes"):
        scenarios.from_pyg(data, problem="node", setting="task")
    del data.x
    with pytest.raises(ScenarioError, match="no tensor 'x'"):
        scenarios.from_pyg(data, problem="node", setting="task")
    # Of links it may lack: their degrees do.
    data.num_nodes = 61
    scenario = scenarios.from_pyg(data, problem="link", setting="task")
    assert scenario.input_shape == (22,)
