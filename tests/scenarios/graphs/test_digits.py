"""Graphs of digits: what they are made of, what a task may see, what the seed fixes."""

import json

import pytest
import torch

from maskcl import scenarios
from maskcl.scenarios import ScenarioError, sources
from maskcl.scenarios.graphs import digits as graph_digits
from tests.scenarios.graphs.tensors_of import tensors, unordered

NAMES = ("nodes-digits", "links-digits", "missing-links-digits", "graphs-digits")
ALL = [(name, setting) for name in NAMES for setting in scenarios.settings_of(name)]


def rows_of(part):
    """What a set is of: nodes, pairs or graphs."""
    if part.__class__.__name__ == "GraphSet":
        return {id(graph) for graph in part.graphs}
    return unordered(part.pairs) if hasattr(part, "pairs") else set(part.nodes.tolist())


@pytest.mark.parametrize(("name", "setting"), ALL)
def test_sets_are_disjoint_and_test_labels_are_out_of_reach(name, setting):
    scenario = scenarios.load(name, setting=setting)
    trained, tested = set(), set()
    for task in range(scenario.num_tasks):
        train, inputs = scenario.train_set(task), scenario.test_inputs(task)
        assert inputs.labels is None
        assert len(train) == scenario.sizes[task][0]
        trained |= rows_of(train)
        tested |= rows_of(inputs)
        if not scenario.prediction:
            assert len(train.labels) == len(train)
            assert int(train.labels.max()) < scenario.classes_per_task[task]
        # Only features, edges, rows and the training labels can be had from the sets.
        graphs = train.graphs if hasattr(train, "graphs") else [train.graph]
        known = [t for graph in graphs for t in (graph.x, graph.edge_index)]
        known += [
            getattr(train, key)
            for key in ("nodes", "pairs", "labels", "known")
            if getattr(train, key, None) is not None
        ]
        assert {id(t) for t in tensors(train)} == {id(t) for t in known}
    assert not trained & tested


@pytest.mark.parametrize("name", ["nodes-digits", "graphs-digits"])
def test_scores_are_of_the_digits_that_the_images_show(name):
    digits = sources.digits(seed=0)
    scenario = scenarios.load(name)
    for task in range(5):
        shown = digits.labels[digits.test]
        shown = shown[(shown == 2 * task) | (shown == 2 * task + 1)]
        assert scenario.score(task, shown - 2 * task) == 1.0
        assert scenario.score(task, 1 - (shown - 2 * task)) == 0.0


def test_neighbours_are_the_nearest_others_in_both_directions():
    digits = sources.digits(seed=0)
    edges = graph_digits.neighbours(digits.pixels)
    pairs = set(map(tuple, edges.t().tolist()))
    assert len(pairs) == edges.shape[1]
    assert pairs == {(v, u) for u, v in pairs}
    assert all(u != v for u, v in pairs)
    flat = digits.pixels.flatten(1).double()
    for node in (0, 777, 1796):
        distances = ((flat - flat[node]) ** 2).sum(1)
        distances[node] = torch.inf
        nearest = distances.sort(stable=True).indices[:5].tolist()
        assert {(u, node) for u in nearest} <= pairs


def test_links_classify_what_both_ends_show_and_no_test_link_passes_messages():
    digits = sources.digits(seed=0).labels
    scenario = scenarios.load("links-digits", setting="class")
    for task in range(5):
        train, inputs = scenario.train_set(task), scenario.test_inputs(task)
        assert torch.equal(digits[train.pairs], train.labels[:, None].expand(-1, 2))
        assert scenario.score(task, digits[inputs.pairs[:, 0]]) == 1.0
        assert not unordered(inputs.pairs) & unordered(train.graph.edge_index.t())
        assert unordered(train.pairs) <= unordered(train.graph.edge_index.t())
    mixed = [
        pair
        for pair in unordered(train.graph.edge_index.t())
        if digits[list(pair)].unique().numel() == 2
    ]
    assert f"{len(mixed)} of" in scenario.detail["left_out"]


@pytest.mark.parametrize("setting", ["domain", "time"])
def test_missing_links_are_asked_for_among_pairs_that_were_never_links(setting):
    images = sources.digits(seed=0)
    links = unordered(graph_digits.neighbours(images.pixels).t())
    scenario = scenarios.load("missing-links-digits", setting=setting)
    # In the time setting nodes are numbered by when they appear: pixels tell which is which.
    place = {tuple(row): i for i, row in enumerate((images.pixels.flatten(1) / 16).tolist())}
    every = set()
    for task in range(scenario.num_tasks):
        train, inputs = scenario.train_set(task), scenario.test_inputs(task)
        assert train.labels is None
        node = torch.tensor([place[tuple(row)] for row in train.graph.x.tolist()])
        asked = [tuple(sorted(pair)) for pair in node[inputs.pairs].tolist()]
        truth = torch.tensor([float(pair in links) for pair in asked])
        assert len(set(asked)) == len(asked)
        assert truth.mean() == 0.5
        assert scenario.score(task, truth) == 1.0
        # Neither the order of the pairs nor the order within one tells links from others.
        assert 0.3 < truth[: len(truth) // 2].mean() < 0.7
        assert bool((inputs.pairs[:, 0] < inputs.pairs[:, 1]).all())
        held_out = {pair for pair in asked if pair in links}
        assert not held_out & unordered(node[train.graph.edge_index.t()])
        assert not held_out & unordered(node[train.known.t()])
        assert not held_out & unordered(node[train.pairs])
        every |= held_out | unordered(node[train.pairs])
    assert every == links


def test_negatives_do_not_change_between_loads_but_with_the_seed():
    first, again, other = (
        scenarios.load("missing-links-digits", seed=seed).test_inputs(1).pairs for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_hits_can_be_asked_for_and_k_is_checked_against_the_negatives():
    scenario = scenarios.load("missing-links-digits", metric="hits@50")
    assert scenario.metric == "hits@50"
    assert scenario.outputs == [1, 1, 1]
    with pytest.raises(ScenarioError, match="hits@5000 needs at least 5000 negatives"):
        scenarios.load("missing-links-digits", metric="hits@5000")


def test_pixel_graphs_link_the_lit_pixels_that_touch():
    pixels = torch.zeros(2, 1, 3, 3)
    pixels[0, 0, 0, 0], pixels[0, 0, 1, 1], pixels[0, 0, 2, 2] = 16, 8, 4
    pixels[1, 0, 0, 0], pixels[1, 0, 0, 2], pixels[1, 0, 1, 2] = 2, 4, 8
    first, second = graph_digits.pixel_graphs(pixels, 16.0)
    one = torch.eye(3)
    assert torch.equal(first.x, torch.cat([torch.tensor([[1], [0.5], [0.25]]), one, one], dim=1))
    assert sorted(first.edge_index.t().tolist()) == [[0, 1], [1, 0], [1, 2], [2, 1]]
    # (0, 0) touches nothing; (0, 2) and (1, 2) touch.
    assert sorted(second.edge_index.t().tolist()) == [[1, 2], [2, 1]]


def test_graphs_of_the_time_setting_hold_nothing_of_later_windows():
    images = sources.digits(seed=0)
    place = {tuple(row): i for i, row in enumerate((images.pixels.flatten(1) / 16).tolist())}
    scenario = scenarios.load("nodes-digits", setting="time")
    before = -1
    for task in range(5):
        part = scenario.train_set(task)
        stamps = torch.tensor([place[tuple(row)] for row in part.graph.x.tolist()])
        assert sorted(stamps.tolist()) == list(range(len(stamps)))
        chosen = stamps[torch.cat([part.nodes, scenario.test_inputs(task).nodes])]
        assert chosen.min() == before + 1
        assert chosen.max() == len(stamps) - 1
        before = len(stamps) - 1
    assert before == 1796
    links = scenarios.load("links-digits", setting="time")
    for task in range(5):
        graph = links.train_set(task).graph
        stamps = torch.tensor([place[tuple(row)] for row in graph.x.tolist()])
        pairs = torch.cat([links.train_set(task).pairs, links.test_inputs(task).pairs])
        assert stamps.max() <= stamps[pairs].max()
        earlier = [links.train_set(i).graph.edge_index.shape[1] for i in range(task + 1)]
        assert earlier == sorted(earlier)


def test_domains_are_of_increasing_ink_and_windows_of_about_equal_size():
    scenario = scenarios.load("graphs-digits", setting="domain")
    ink = [
        [float(graph.x[:, 0].sum()) for graph in scenario.train_set(task).graphs]
        for task in range(3)
    ]
    assert max(ink[0]) < min(ink[1])
    assert max(ink[1]) < min(ink[2])
    sizes = [sum(size) for size in scenario.sizes]
    assert sum(sizes) == 1797
    assert max(sizes) - min(sizes) < 60


def test_the_order_of_tasks_is_the_seeds_where_asked_for():
    def classes(**options):
        return scenarios.load("nodes-digits", shuffle=True, **options).classes

    assert classes(seed=1) == classes(seed=1)
    assert classes(seed=1) != classes(seed=2)
    assert sorted(label for group in classes(seed=1) for label in group) == list(range(10))
    assert scenarios.load("nodes-digits", seed=1).classes[0] == [0, 1]
    # Local labels follow the order that is printed.
    scenario = scenarios.load("nodes-digits", shuffle=True, seed=1)
    digits = sources.digits(seed=1).labels
    for task, group in enumerate(scenario.classes):
        part = scenario.train_set(task)
        assert torch.equal(torch.tensor(group)[part.labels], digits[part.nodes])
    plain, mixed = (
        scenarios.load("nodes-digits", setting="domain", tasks=4, shuffle=flag, seed=3)
        for flag in (False, True)
    )
    order = [int(word) for word in mixed.detail["order"].split()[-4:]]
    assert sorted(order) == list(range(4)) != order
    for task, domain in enumerate(order):
        assert torch.equal(mixed.train_set(task).nodes, plain.train_set(domain).nodes)


def test_groups_fix_the_classes_of_each_task_and_say_what_is_left_out():
    scenario = scenarios.load("graphs-digits", groups=[[3, 8], [9, 1, 4]])
    assert scenario.classes == [[3, 8], [9, 1, 4]]
    assert scenario.outputs == [2, 3]
    assert scenario.detail["order"] == "classes as given; in no task 0 2 5 6 7"


def test_description_says_problem_metric_edges_and_classes():
    scenario = scenarios.load("nodes-digits")
    description = scenario.describe()
    assert json.loads(json.dumps(description)) == description
    assert (description["problem"], description["metric"]) == ("node", "accuracy")
    assert description["input_shape"] == [64]
    line = scenarios.summary(description)
    assert line.startswith("nodes-digits, task setting, seed 0: 5 tasks, classes 0 1 | 2 3 | ")
    assert ", node problem, accuracy, edges: all 12,618; " in line
    assert "link or none" in str(scenarios.load("missing-links-digits"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "missing-links-digits", "setting": "task"}, "no classes to cut by, so no task"),
        ({"name": "missing-links-digits", "setting": "class"}, "wanted domain or time"),
        ({"name": "mutag", "setting": "time"}, "mutag has the settings domain, not 'time'"),
        ({"name": "nodes-digits", "tasks": 11}, "10 classes, which cannot be cut into 11 tasks"),
        ({"name": "links-digits", "tasks": 6}, "leave a task with one class"),
        ({"name": "graphs-digits", "setting": "time", "shuffle": True}, "time has its own order"),
        ({"name": "nodes-digits", "setting": "domain", "groups": [[0, 1]]}, "belong to the task"),
        ({"name": "nodes-digits", "groups": [[0, 1], [1, 2]]}, "each class at most once"),
        ({"name": "nodes-digits", "groups": [[0, 12]]}, "out of [0, 1, 2"),
        ({"name": "nodes-digits", "groups": [[0, 1]], "tasks": 2}, "groups fix the tasks"),
        ({"name": "nodes-digits", "padding": 2}, "padding and normalise are for images"),
        ({"name": "nodes-digits", "variant": "cora"}, "nodes-digits has no variants"),
        ({"name": "nodes-digits", "metric": "auroc", "setting": "domain"}, "ranks two classes"),
        ({"name": "nodes-digits", "data": "/tmp"}, "reads no --data"),
        ({"name": "split-digits", "metric": "auroc"}, "variant and metric are for graphs"),
        ({"name": "planetoid"}, "planetoid-cora reads files: say where they are with --data DIR"),
        ({"name": "planetoid", "variant": "pubmed"}, "unknown variant 'pubmed': known are cora"),
    ],
)
def test_bad_requests_get_one_sentence(arguments, sentence):
    with pytest.raises(ScenarioError) as caught:
        scenarios.load(**arguments)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_facts_about_names():
    assert set(NAMES) < set(scenarios.NAMES)
    assert [scenarios.problem_of(name) for name in ("split-digits", *NAMES)] == [
        "vision",
        "node",
        "link",
        "link",
        "graph",
    ]
    assert scenarios.default_setting("missing-links-digits") == "domain"
    reading = [name for name in scenarios.NAMES if scenarios.reads_data(name)]
    assert {"split-mnist", "permuted-mnist", "images", "sequence"} < set(reading)
    assert not any("digits" in name for name in reading)
    assert reading[-5:] == [
        "planetoid",
        "coauthor-cs",
        "bitcoin-otc",
        "enzymes",
        "mutag",
    ]
    assert scenarios.variants_of("planetoid") == ("cora", "citeseer")
    assert scenarios.variants_of("enzymes") == scenarios.variants_of("split-digits") == ()
    assert scenarios.images_of("nodes-digits") is None
    with pytest.raises(ScenarioError, match="a backbone learns from images"):
        scenarios.load_pretraining("nodes-digits")
