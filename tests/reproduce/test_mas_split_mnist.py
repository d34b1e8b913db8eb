"""``maskcl reproduce``: a published table run again, on idx files made here."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from maskcl import cli
from maskcl.reproduce import mas_split_mnist, runs
from maskcl.reproduce.table import Run, mean_and_spread
from tests.scenarios.test_mnist import idx, write

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("torchvision", reason="the MNIST scenarios read idx files with torchvision")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """40 training and 20 test images of 4x4 pixels."""
    folder, random, content = tmp_path_factory.mktemp("idx") / "data", np.random.RandomState(0), {}
    for part, count in (("train", 40), ("t10k", 20)):
        pixels = random.randint(0, 256, (count, 4, 4)).astype(np.uint8)
        content[f"{part}-images-idx3-ubyte"] = idx(pixels)
        content[f"{part}-labels-idx1-ubyte"] = idx((np.arange(count) % 10).astype(np.uint8))
    write(folder, content, compress=False)
    return folder


def reproduce(*arguments):
    return cli.main(["reproduce", "mas-split-mnist", *map(str, arguments)])


@pytest.fixture
def quick(monkeypatch):
    """The real command with a training that only notes what it was asked for."""
    asked = []

    def train(scenario, row, seed, device):
        asked.append((row.key, seed))
        value = 90.0 + seed + (5.0 if "exact" in row.label else 0.0)
        return Run([value] * 5, 0.25, 2.0)

    table = dataclasses.replace(mas_split_mnist.TABLE, train=train)
    monkeypatch.setattr(mas_split_mnist, "TABLE", table)
    return asked


def test_a_real_run_of_every_row(data, tmp_path, capsys):
    assert reproduce("--data", data, "--seeds", 1, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["environment"]["torch"] == torch.__version__
    for part in content["rows"]:
        (run,) = part["runs"]
        assert run["seed"] == 0
        assert len(run["accuracies"]) == 5
        assert run["average"] == part["mean"] == pytest.approx(np.mean(run["accuracies"]))
        assert run["importance"] > 0
    assert said.count("seed 0, task: ") == said.count("seed 0, domain: ") == 4
    assert len(content["rows"]) == 8
    # The last thing said is the table, which is kept as it was said.
    assert said.endswith((tmp_path / "out" / "results.txt").read_text())


def test_the_table_has_ours_beside_theirs_with_definition_and_strength(data, quick, capsys):
    assert reproduce("--data", data, "--seeds", 3) == 0
    said = capsys.readouterr().out
    assert "classes 0 1, 2 3, 4 5, 6 7, 8 9; images framed by 2 to 32x32" in said
    assert "epochs 4; batch size 128; seeds 0 to 2, 48.0 s" in said
    lines = [" ".join(line.split()) for line in said.splitlines()]
    exact = {s: f"{mas_split_mnist.EXACT_STRENGTH[s]:g}" for s in ("task", "domain")}
    for line in (
        "task Adam, no penalty - - - 91.00 ± 0.82 93.46 ± 2.01",
        "task EWC fisher, sample, predicted 100 2.50e-01 91.00 ± 0.82 97.70 ± 0.81",
        "task MAS, published batch, mean 1 2.50e-01 91.00 ± 0.82 99.22 ± 0.21",
        f"task MAS, exact sample, sum {exact['task']} 2.50e-01 96.00 ± 0.82 99.22 ± 0.21",
        "domain Adam, no penalty - - - 91.00 ± 0.82 55.16 ± 1.38",
        "domain EWC fisher, sample, predicted 100 2.50e-01 91.00 ± 0.82 58.85 ± 2.59",
        "domain MAS, published batch, mean 10000 2.50e-01 91.00 ± 0.82 68.57 ± 6.85",
        f"domain MAS, exact sample, sum {exact['domain']} 2.50e-01 96.00 ± 0.82 68.57 ± 6.85",
    ):
        assert line in lines
    assert "A strength belongs to its importance" in said


def test_an_interrupted_run_goes_on_from_what_is_finished(data, quick, tmp_path, monkeypatch):
    table, count = mas_split_mnist.TABLE, 0

    def stop(*arguments):
        nonlocal count
        count += 1
        if count == 11:
            raise KeyboardInterrupt
        return table.train(*arguments)

    stopping = dataclasses.replace(table, train=stop)
    monkeypatch.setattr(mas_split_mnist, "TABLE", stopping)
    command = ["--data", data, "--seeds", 2, "--out", tmp_path / "out"]
    assert reproduce(*command) == 130
    assert not (tmp_path / "out" / "results.txt").exists()
    monkeypatch.setattr(mas_split_mnist, "TABLE", table)
    assert reproduce(*command) == 0
    # Ten before, six after, none twice.
    assert len(quick) == len(set(quick)) == 16
    # More seeds later: only those are run. Fewer: the table is of those asked for.
    assert reproduce(*command[:2], "--seeds", 3, *command[4:]) == 0
    assert quick[16:] == [(row.key, 2) for row in table.rows]
    assert reproduce(*command[:2], "--seeds", 1, *command[4:]) == 0
    assert len(quick) == 24
    assert "90.00 ± 0.00" in (tmp_path / "out" / "results.txt").read_text()
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [run["seed"] for run in content["rows"][0]["runs"]] == [0, 1, 2]


def test_results_of_another_protocol_are_left_alone(data, quick, tmp_path, capsys):
    out = tmp_path / "out"
    assert reproduce("--data", data, "--seeds", 1, "--out", out) == 0
    path = out / "results.json"
    content = json.loads(path.read_text())
    content["rows"][3]["method"]["strength"] = 7.0
    path.write_text(json.dumps(content))
    for found in (path.read_bytes(), b"{}", b"no json"):
        path.write_bytes(found)
        assert reproduce("--data", data, "--seeds", 2, "--out", out) == 2
        assert path.read_bytes() == found
    said = capsys.readouterr().err
    assert "results of another protocol; choose a new folder" in said
    assert "cannot be read" in said
    path.unlink()
    assert reproduce("--data", data, "--out", out) == 2
    assert "exists already and holds no results.json" in capsys.readouterr().err
    assert len(quick) == 8


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--data is missing"),
        (["--data", "/no/such"], "--data /no/such is not a folder"),
        (["--data", "{empty}"], "no MNIST file found: wanted "),
        (["--data", "{data}", "--seeds", "0"], "seeds must be at least 1, got 0"),
    ],
)
def test_missing_data_is_one_sentence_and_nothing_is_written(
    data, quick, tmp_path, capsys, arguments, sentence
):
    (tmp_path / "empty").mkdir()
    filled = [part.format(empty=tmp_path / "empty", data=data) for part in arguments]
    assert reproduce(*filled, "--out", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert said.startswith("maskcl: ")
    assert sentence in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert quick == []


# The protocol


def test_one_optimizer_keeps_its_moments_and_takes_up_new_heads():
    shared, first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    factory = mas_split_mnist.one_optimizer(lambda groups: torch.optim.Adam(groups, lr=0.1))
    optimizer = factory([{"params": [shared, first]}])
    shared.grad = torch.ones(2)
    optimizer.step()
    again = factory([{"params": [shared, second]}])
    assert again is optimizer
    assert again.state[shared]["step"] == 1
    held = [p for group in again.param_groups for p in group["params"]]
    assert [any(p is q for q in held) for p in (shared, first, second)] == [True] * 3
    assert len(held) == 3
    assert factory([{"params": [shared, first]}]).param_groups == again.param_groups


def test_the_rows_are_the_published_coefficients_and_definitions():
    found = {
        (row.setting, row.label): dataclasses.asdict(row.method)
        for row in mas_split_mnist.TABLE.rows
    }
    for setting, coefficient in (("task", 1.0), ("domain", 1e4)):
        method = found[setting, "MAS, published"]
        assert method["strength"] == coefficient
        assert (method["reduction"], method["norm"]) == ("batch", "mean")
        assert found[setting, "MAS, exact"]["reduction"] == "sample"
        assert found[setting, "Adam, no penalty"]["strength"] == 0
        ewc = found[setting, "EWC"]
        assert (ewc["strength"], ewc["labels"], ewc["anchors"]) == (100.0, "predicted", "each")
    # A head that all domains share is a parameter like any other.
    assert all(method["heads"] for method in found.values())


def test_spread_is_over_n():
    mean, spread = mean_and_spread([Run([1.0, 3.0], 0.0, 0.0), Run([4.0, 4.0], 0.0, 0.0)])
    assert (mean, spread) == (3.0, 1.0)


def test_results_are_whole_or_not_there(tmp_path, monkeypatch):
    table, run = mas_split_mnist.TABLE, Run([50.0] * 5, 0.1, 1.0)
    done = {row.key: {0: run} for row in table.rows}
    runs.write(table, done, tmp_path)
    kept = (tmp_path / "results.json").read_bytes()
    assert runs.read(table, tmp_path) == done
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            runs.write(table, {row.key: {} for row in table.rows}, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == kept
