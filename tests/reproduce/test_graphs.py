"""``maskcl reproduce graphs``, and the promise behind it: every legal combination learns."""

import dataclasses
import functools
import json

import pytest

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("torch_geometric", reason="graphs need maskcl[graph]")

from maskcl import cli, scenarios
from maskcl.cli import reproduce as command
from maskcl.cli.app import METHODS
from maskcl.cli.options import combine
from maskcl.reproduce import graph_runs
from maskcl.reproduce.graphs import CELLS, Cell, Figures, ReproduceError, refused, select

# Two tasks and a few epochs. By problem, setting and method, half of what the least of seeds 0 to 4
# had over chance.
TASKS, EPOCHS = 2, {"node": 20, "link": 3, "prediction": 3, "graph": 3}
_MARGINS = {
    ("node", "task"): {"hat": 0.359, "piggyback": 0.365, "mas": 0.323, "ewc": 0.281},
    ("node", "class"): {"mas": 0.151, "ewc": 0.017},
    ("node", "domain"): {"hat": 0.317, "piggyback": 0.331, "mas": 0.41, "ewc": 0.202},
    ("node", "time"): {"mas": 0.4, "ewc": 0.229},
    ("link", "task"): {"hat": 0.381, "piggyback": 0.372, "mas": 0.331, "ewc": 0.188},
    ("link", "class"): {"mas": 0.177, "ewc": 0.036},
    ("link", "domain"): {"hat": 0.364, "piggyback": 0.321, "mas": 0.428, "ewc": 0.135},
    ("link", "time"): {"mas": 0.431, "ewc": 0.3},
    ("prediction", "domain"): {"hat": 0.131, "piggyback": 0.104, "mas": 0.207, "ewc": 0.171},
    ("prediction", "time"): {"mas": 0.216, "ewc": 0.166},
    ("graph", "task"): {"hat": 0.125, "piggyback": 0.123, "mas": 0.199, "ewc": 0.185},
    ("graph", "class"): {"mas": 0.061, "ewc": 0.043},
    ("graph", "domain"): {"hat": 0.092, "piggyback": 0.056, "mas": 0.201, "ewc": 0.21},
    ("graph", "time"): {"mas": 0.219, "ewc": 0.213},
}
MARGINS = {
    Cell(method, *of).key: margin for of, row in _MARGINS.items() for method, margin in row.items()
}


@pytest.fixture(scope="module", autouse=True)
def _scenarios_once():
    """Scenarios are the same for all methods: each is made once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(scenarios, "load", functools.cache(scenarios.load))
        yield


@pytest.mark.slow
@pytest.mark.parametrize("cell", select(None), ids=lambda cell: cell.key)
def test_every_legal_combination_beats_chance(cell):
    options = METHODS[cell.method].options
    few = {"epochs": EPOCHS[cell.problem], "tasks": TASKS, "device": "cpu", "out": ""}
    found, described = command.train_cell(
        METHODS[cell.method], combine(options, {**cell.options(0), **few}, {}, None)
    )
    assert described["setting"] == cell.setting
    assert described["num_tasks"] == len(found.scores) == TASKS
    assert found.advantage > MARGINS[cell.key], found


def test_what_is_illegal_says_why():
    assert len(CELLS) == 64
    legal = {cell.key for cell in select(None)}
    assert legal == set(MARGINS)
    by_reason = refused()
    assert {cell.key for cells in by_reason.values() for cell in cells} | legal == {
        cell.key for cell in CELLS
    }
    for method in ("HAT", "Piggyback"):
        for setting in ("class", "time"):
            (reason,) = [r for r in by_reason if method in r and f"the {setting} setting" in r]
            assert len(by_reason[reason]) == 4
    assert not Cell("mas", "node", "class").reasons
    assert Cell("hat", "prediction", "class").reasons == [
        reason for reason, cells in by_reason.items() if Cell("hat", "prediction", "class") in cells
    ]


def test_words_choose_cells():
    assert [cell.key for cell in select("hat, node")] == ["hat node task", "hat node domain"]
    assert len(select("mas,ewc,link,graph,time,class")) == 8
    with pytest.raises(ReproduceError, match="'nodes' is unknown, wanted some of hat, piggyback"):
        select("hat,nodes")
    with pytest.raises(ReproduceError, match="hat,time: HAT chooses the mask by the task"):
        select("hat,time")


# The table, by a training that only notes what it was asked for


@pytest.fixture
def asked(monkeypatch):
    noted = []

    def train(method, options):
        noted.append((options.NAME, options.scenario, options.setting, options.seed))
        scenario = scenarios.load(options.scenario, setting=options.setting, tasks=options.tasks)
        forgetting = 0.25 if options.NAME == "mas" else 0.0
        return Figures([0.5, 0.7 + 0.1 * options.seed], 0.1, forgetting, 1.5), scenario.describe()

    monkeypatch.setattr(command, "train_cell", train)
    return noted


def reproduce(*arguments):
    return cli.main(["reproduce", "graphs", "--only", "hat,mas,node,domain", *map(str, arguments)])


def test_the_page_has_the_table_its_scenarios_and_what_cannot_be(asked, tmp_path, capsys):
    assert reproduce("--seeds", 3, "--tasks", 2, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    page = (tmp_path / "out" / "results.md").read_text()
    assert page in said
    assert said.count("seed 1, ") == 2
    assert "`maskcl reproduce graphs --seeds 3 --only hat,mas,node,domain --tasks 2 --out" in page
    assert (
        "| node classification | domain | hat | 65.00 ± 5.00 | 10.0 | 0.00 ± 0.00 | 1.5 |" in page
    )
    assert (
        "| node classification | domain | mas | 65.00 ± 5.00 | 10.0 | 25.00 ± 0.00 | 1.5 |" in page
    )
    assert "- `nodes-digits`, node classification: scikit-learn digits" in page
    assert "  - nodes-digits, domain setting, seed 0: 2 tasks, " in page
    assert "- hat, every problem, class setting: HAT chooses" in page
    assert "- every method, link prediction, task setting: link prediction asks" in page
    facts = json.loads((tmp_path / "out" / "results.json").read_text())["environment"]
    assert f"torch {facts['torch']}, torch_geometric {facts['torch_geometric']}" in page
    assert facts["date"] in page


def test_an_interrupted_table_goes_on_from_what_is_finished(asked, tmp_path, monkeypatch):
    train, count = command.train_cell, 0

    def stop(*arguments):
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return train(*arguments)

    out = ["--seeds", 2, "--out", tmp_path / "out"]
    with monkeypatch.context() as patched:
        patched.setattr(command, "train_cell", stop)
        assert reproduce(*out) == 130
    assert not (tmp_path / "out" / "results.md").exists()
    assert reproduce(*out) == 0
    assert len(asked) == len(set(asked)) == 4
    assert "seeds 0 to 1" in (tmp_path / "out" / "results.md").read_text()
    # More seeds later: only those are run. Fewer: the table is of those asked for.
    assert reproduce("--seeds", 3, "--out", tmp_path / "out") == 0
    assert [seed for *_, seed in asked[4:]] == [2, 2]
    assert reproduce("--seeds", 1, "--out", tmp_path / "out") == 0
    assert len(asked) == 6
    assert "| 60.00 |" in (tmp_path / "out" / "results.md").read_text()


def test_what_a_folder_holds_already_is_left_alone(asked, tmp_path, capsys):
    out = tmp_path / "out"
    assert reproduce("--seeds", 1, "--out", out) == 0
    path = out / "results.json"
    kept = path.read_bytes()
    assert reproduce("--seeds", 1, "--epochs", 3, "--out", out) == 2
    assert (
        "holds results of hat node domain with other options; choose a new folder"
        in capsys.readouterr().err
    )
    assert path.read_bytes() == kept
    path.write_bytes(b"{}")
    assert reproduce("--seeds", 1, "--out", out) == 2
    assert "has no runs" in capsys.readouterr().err
    path.unlink()
    assert reproduce("--seeds", 1, "--out", out) == 2
    assert "exists already and holds no results.json" in capsys.readouterr().err
    assert len(asked) == 2


def test_a_run_is_kept_as_it_was(tmp_path):
    found = Figures([0.5, 0.25], 0.1, -0.125, 2.0)
    options = {"hat node task": {"epochs": 2}}
    kept = graph_runs.Kept(options, {"hat node task": {3: found}}, {"node task": {}}, {})
    graph_runs.write(kept, tmp_path)
    assert graph_runs.read(tmp_path, options) == kept
    assert "mas node task" in graph_runs.read(tmp_path, {"mas node task": {}}).options
    assert (found.average, found.advantage) == (0.375, pytest.approx(0.275))
    assert dataclasses.astuple(found)[0] == [0.5, 0.25]
