"""Graph scenarios from files: tiny ones made here, damaged ones, the real ones of MASKCL_DATA."""

import os
import pickle
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from maskcl import scenarios
from maskcl.extras import install
from maskcl.scenarios import ScenarioError
from tests.scenarios.graphs.tensors_of import unordered

pytest.importorskip("torch_geometric")
sparse = pytest.importorskip("scipy.sparse")


def write_planetoid(root, variant="cora", test=(505, 504, 507, 506)):
    """508 papers of two subjects in a ring: 4 to train on, 500 to validate, 4 to test."""
    folder = root / {"cora": "Cora", "citeseer": "CiteSeer"}[variant] / "raw"
    folder.mkdir(parents=True)
    labels = np.eye(2)[np.arange(508) % 2]
    words = sparse.eye(508, 510, format="csr")
    order = list(test)
    parts = {
        "x": words[:4],
        "allx": words[:504],
        "tx": words[order],
        "y": labels[:4],
        "ally": labels[:504],
        "ty": labels[order],
        "graph": defaultdict(list, {i: [(i + 1) % 508, (i - 1) % 508] for i in range(508)}),
    }
    for part, content in parts.items():
        content = sparse.csr_matrix(content) if part.endswith("x") else content
        (folder / f"ind.{variant}.{part}").write_bytes(pickle.dumps(content, protocol=3))
    (folder / f"ind.{variant}.test.index").write_text("\n".join(map(str, test)) + "\n")
    return folder


def write_coauthor(root, **changed):
    folder = root / "CS" / "raw"
    folder.mkdir(parents=True)
    words = sparse.random(40, 12, 0.3, "csr", np.float32, 0)
    links = sparse.csr_matrix(np.eye(40, k=1, dtype=np.float32))
    arrays = {"labels": np.arange(40) % 4}
    for name, matrix in (("attr", words), ("adj", links)):
        arrays |= {f"{name}_{key}": getattr(matrix, key) for key in ("data", "indices", "indptr")}
        arrays[f"{name}_shape"] = np.array(matrix.shape)
    arrays |= changed
    np.savez_compressed(folder / "ms_academic_cs.npz", **arrays)
    return words, folder / "ms_academic_cs.npz"


def write_bitcoin(root, rows=300):
    (root / "raw").mkdir(parents=True)
    random = np.random.RandomState(0)
    pairs = sorted({(int(u), int(v)) for u, v in random.randint(1, 40, (rows, 2)) if u != v})
    lines = [
        f"{u},{v},{[-10, -3, 1, 3, 4, 5, 8][i % 7]},{10**9 + i}.25"
        for i, (u, v) in enumerate(pairs)
    ]
    path = root / "raw" / "soc-sign-bitcoinotc.csv"
    path.write_text("\n".join(lines) + "\n")
    return path, pairs


def write_mutag(root, graphs=30):
    """Paths of 3 to 6 nodes; the class is whether the number of nodes is odd."""
    folder = root / "MUTAG" / "raw"
    folder.mkdir(parents=True)
    edges, indicator, kinds, labels, first = [], [], [], [], 1
    for graph in range(graphs):
        size = 3 + graph % 4
        for i in range(size):
            indicator.append(graph + 1)
            kinds.append(i % 3)
            if i:
                edges += [f"{first + i - 1}, {first + i}", f"{first + i}, {first + i - 1}"]
        labels.append(1 if size % 2 else -1)
        first += size
    for part, lines in {
        "A": edges,
        "graph_indicator": indicator,
        "node_labels": kinds,
        "graph_labels": labels,
    }.items():
        (folder / f"MUTAG_{part}.txt").write_text("\n".join(map(str, lines)) + "\n")
    return folder


def refused(name, data, **options):
    """The one sentence that a person gets."""
    with pytest.raises(ScenarioError) as caught:
        scenarios.load(name, data=data, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_planetoid_is_read_by_geometrics_own_reader_and_nothing_is_written_beside(tmp_path):
    write_planetoid(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ScenarioError, match="cannot be cut into 3 tasks"):
        scenarios.load("planetoid", data=tmp_path)
    scenario = scenarios.load("planetoid", data=tmp_path, tasks=1)
    assert sorted(tmp_path.rglob("*")) == before
    train, inputs = scenario.train_set(0), scenario.test_inputs(0)
    assert scenario.name == "planetoid-cora"
    assert train.nodes.tolist() == [0, 1, 2, 3]
    assert inputs.nodes.tolist() == [504, 505, 506, 507]
    assert train.graph.x.layout == torch.sparse_csr
    # The test rows stand in the order of test.index; the reader puts each in its place.
    assert torch.equal(train.graph.x.to_dense(), torch.eye(508, 510))
    assert unordered(train.graph.edge_index.t()) == {(i, i + 1) for i in range(507)} | {(0, 507)}
    assert scenario.score(0, torch.tensor([0, 1, 0, 1])) == 1.0


def test_citeseers_papers_without_links_keep_their_numbers(tmp_path):
    write_planetoid(tmp_path, "citeseer", (505, 507, 504))
    scenario = scenarios.load("planetoid", data=tmp_path, variant="citeseer", tasks=1)
    assert scenario.name == "planetoid-citeseer"
    assert scenario.test_inputs(0).nodes.tolist() == [504, 505, 507]
    assert scenario.train_set(0).graph.num_nodes == 508


class MakesFolder:
    """Its pickle makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path):
    folder = write_planetoid(tmp_path)
    trace = tmp_path / "ran"
    for part in ("graph", "y", "allx"):
        content = pickle.dumps({0: [MakesFolder(trace)]}, protocol=3)
        (folder / f"ind.cora.{part}").write_bytes(content)
    sentence = refused("planetoid", tmp_path)
    assert f"ind.cora.allx cannot be read: it asks for {os.mkdir.__module__}.mkdir" in sentence
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()


@pytest.mark.parametrize(
    ("part", "damage", "sentence"),
    [
        ("allx", lambda raw: raw[:100], "ind.cora.allx cannot be read"),
        ("graph", lambda raw: pickle.dumps([1, 2]), "ind.cora.graph holds no dictionary of lists"),
        ("ally", lambda raw: pickle.dumps({}), "ind.cora.ally holds no table of numbers"),
        ("ty", lambda raw: pickle.dumps(np.eye(2)), "ind.cora.* do not fit together"),
        ("graph", lambda raw: pickle.dumps({0: [999]}), "ind.cora.graph names node 999 of 508"),
        ("test.index", lambda raw: b"ten\n", "ind.cora.* do not fit together"),
        ("test.index", lambda raw: raw[:-1], "ind.cora.test.index ends within a line"),
        ("tx", None, "missing file: wanted"),
    ],
)
def test_damaged_planetoid_files_get_a_sentence(tmp_path, part, damage, sentence):
    path = write_planetoid(tmp_path) / f"ind.cora.{part}"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    found = refused("planetoid", tmp_path)
    assert sentence in found
    assert str(path.parent) in found


def test_a_sparse_matrix_whose_parts_do_not_fit_is_refused_before_it_is_used(tmp_path):
    path = write_planetoid(tmp_path) / "ind.cora.x"
    matrix = pickle.loads(path.read_bytes())
    matrix.indices = matrix.indices + 1000
    path.write_bytes(pickle.dumps(matrix))
    assert "whose parts do not fit: it is damaged" in refused("planetoid", tmp_path)


def test_coauthors_features_stay_sparse(tmp_path):
    words, _ = write_coauthor(tmp_path)
    scenario = scenarios.load("coauthor-cs", data=tmp_path, tasks=2, seed=1)
    graph = scenario.train_set(1).graph
    assert graph.x.layout == torch.sparse_csr
    assert torch.equal(graph.x.to_dense(), torch.from_numpy(words.toarray() > 0).float())
    assert unordered(graph.edge_index.t()) == {(i, i + 1) for i in range(39)}
    assert graph.edge_index.shape[1] == 78
    assert scenario.sizes == [(16, 4), (16, 4)]


def test_damaged_coauthor_files_get_a_sentence(tmp_path):
    assert "missing file: wanted" in refused("coauthor-cs", tmp_path)
    _, path = write_coauthor(tmp_path / "a")
    path.write_bytes(path.read_bytes()[:500])
    assert f"{path} cannot be read" in refused("coauthor-cs", tmp_path / "a")
    write_coauthor(tmp_path / "b", labels=np.array([None] * 40, dtype=object))
    assert "cannot be read" in refused("coauthor-cs", tmp_path / "b")
    write_coauthor(tmp_path / "c", adj_indices=np.full(39, 40, dtype=np.int32))
    assert "whose parts do not fit" in refused("coauthor-cs", tmp_path / "c")
    write_coauthor(tmp_path / "d", labels=np.arange(39))
    assert "40 authors, but labels of shape (39,)" in refused("coauthor-cs", tmp_path / "d")


def test_bitcoin_classifies_ratings_and_holds_both_directions_of_a_pair_out(tmp_path):
    _, pairs = write_bitcoin(tmp_path)
    scenario = scenarios.load("bitcoin-otc", data=tmp_path)
    assert scenario.classes == [[0, 1], [2, 3], [4, 5]]
    graph = scenario.train_set(0).graph
    assert graph.num_features == 22
    every = unordered(torch.tensor(pairs) - 1)
    held_out = set().union(*(unordered(scenario.test_inputs(t).pairs) for t in range(3)))
    trained = set().union(*(unordered(scenario.train_set(t).pairs) for t in range(3)))
    assert not held_out & trained
    assert unordered(graph.edge_index.t()) == every - held_out
    # Degrees count what passes messages, in the direction of the rating.
    kept = [(u - 1, v - 1) for u, v in pairs if tuple(sorted((u - 1, v - 1))) not in held_out]
    given = torch.tensor([float(sum(u == node for u, _ in kept)) for node in range(39)])
    assert torch.equal(graph.x[:, :11].argmax(1), (given + 1).log2().floor().long())
    assert graph.x.sum(1).unique().tolist() == [2.0]
    assert scenario.detail["left_out"].startswith(f"{len(pairs[2::7])} ratings of 1 and 2")


def test_bitcoin_in_time_asks_for_the_sign_and_sees_no_later_rating(tmp_path):
    path, pairs = write_bitcoin(tmp_path)
    scenario = scenarios.load("bitcoin-otc", data=tmp_path, setting="time", tasks=3)
    assert (scenario.metric, scenario.outputs, scenario.chance) == ("auroc", [1] * 3, [0.5] * 3)
    assert sum(sum(size) for size in scenario.sizes) == len(pairs)
    stamps = [float(line.split(",")[3]) for line in path.read_text().splitlines()]
    seen = 0
    for task in range(3):
        seen += sum(scenario.sizes[task])
        graph = scenario.train_set(task).graph
        users = {user for pair, _ in zip(pairs, sorted(stamps)[:seen]) for user in pair}
        assert graph.num_nodes == len(users)
        assert graph.edge_index.shape[1] <= 2 * seen
    rated = [[-10, -3, 1, 3, 4, 5, 8][i % 7] < 0 for i in range(len(pairs))]
    positives = [scenario.train_set(task).labels.sum().item() for task in range(3)]
    assert 0 < sum(positives) < sum(rated)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda text: text[:-8] + "\n1,2", "cannot be read, it is cut off or damaged"),
        (lambda text: "", "is no table of who, whom, rating and time"),
        (lambda text: "1,2,3\n2,3,4\n", "is no table of who, whom, rating and time"),
        (lambda text: text.replace(",8,", ",80,"), "holds ratings other than -10 to -1"),
        (lambda text: text.replace(",8,", ",x,"), "cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_damaged_bitcoin_files_get_a_sentence(tmp_path, damage, sentence):
    path, _ = write_bitcoin(tmp_path)
    path.write_text(damage(path.read_text()))
    found = refused("bitcoin-otc", tmp_path)
    assert sentence in found
    assert str(path) in found


def test_molecules_keep_their_own_edges_and_domains_go_by_size(tmp_path):
    write_mutag(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    scenario = scenarios.load("mutag", data=tmp_path, tasks=4)
    assert sorted(tmp_path.rglob("*")) == before
    for task in range(4):
        train = scenario.train_set(task)
        assert {graph.num_nodes for graph in train.graphs} == {3 + task}
        ends = {(i, i + 1) for i in range(2 + task)}
        assert all(unordered(graph.edge_index.t()) == ends for graph in train.graphs)
        assert train.labels.unique().tolist() == [1 - task % 2]
    assert scenario.input_shape == (3,)


@pytest.mark.parametrize(
    ("part", "damage", "sentence"),
    [
        ("A", lambda text: text[:-9], "MUTAG_A.txt: edges of graph 30"),
        ("A", lambda text: text[:-2], "MUTAG_A.txt ends within a line"),
        ("A", lambda text: text + "1, 9999\n", "MUTAG_A.txt: edges of graph 1 leave it"),
        ("A", lambda text: text + "9999, 1\n", "do not fit together"),
        ("A", lambda text: text + "1, 100\n100, 1\n", "MUTAG_A.txt: edges of graph"),
        ("node_labels", lambda text: text[:100], "MUTAG_graph_indicator.txt tells of"),
        ("graph_labels", lambda text: text[:20], "MUTAG_graph_indicator.txt tells of"),
        ("graph_labels", lambda text: "x\n", "do not fit together"),
        ("graph_indicator", None, "missing file: wanted"),
    ],
)
def test_damaged_molecule_files_get_a_sentence(tmp_path, part, damage, sentence):
    path = write_mutag(tmp_path) / f"MUTAG_{part}.txt"
    if damage is None:
        path.unlink()
    else:
        path.write_text(damage(path.read_text()))
    found = refused("mutag", tmp_path)
    assert sentence in found
    assert str(path.parent) in found


def test_the_wanted_path_is_said_where_nothing_is_found(tmp_path):
    assert refused("enzymes", tmp_path).endswith(
        str(tmp_path / "ENZYMES" / "raw" / "ENZYMES_A.txt")
    )
    assert "is not a folder" in refused("mutag", tmp_path / "none")


def test_a_missing_torch_geometric_gets_the_command_that_installs_it(tmp_path, monkeypatch):
    write_mutag(tmp_path)
    write_planetoid(tmp_path)
    monkeypatch.setitem(sys.modules, "torch_geometric", None)
    for name in ("mutag", "planetoid"):
        assert f"needs torch_geometric: {install('graph')}" in refused(name, tmp_path)


REAL = {
    "planetoid": ("Planetoid", 2708, 1433, 10556, 7),
    "coauthor-cs": ("Coauthor", 18333, 6805, 163788, 15),
    "bitcoin-otc": ("Bitcoin", 5881, 22, None, 6),
    "enzymes": ("TUDataset", 600, 21, None, 6),
    "mutag": ("TUDataset", 188, 7, None, 2),
}


@pytest.mark.skipif("MASKCL_DATA" not in os.environ, reason="MASKCL_DATA names no data folder")
@pytest.mark.parametrize("name", list(REAL))
def test_real_data_have_the_numbers_that_are_published(name):
    folder, count, features, edges, classes = REAL[name]
    data = Path(os.environ["MASKCL_DATA"])
    scenario = scenarios.load(name, data=data / folder)
    # The folder that holds them does as well.
    assert str(scenarios.load(name, data=data)) == str(scenario)
    assert len({label for group in scenario.classes for label in group}) == classes
    assert scenario.input_shape == (features,)
    if scenario.problem == "graph":
        assert sum(sum(size) for size in scenario.sizes) == count
        return
    graph = scenario.train_set(0).graph
    assert graph.num_nodes == count
    assert edges is None or graph.edge_index.shape[1] == edges
    if name == "planetoid":
        assert [sum(size) for size in zip(*scenario.sizes)] == [140, 1000]
        assert graph.x.values().numel() == 49216
