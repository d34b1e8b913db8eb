"""Every script of examples/ runs and learns; what they write goes into a temporary folder."""

import importlib.util
import os
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def run(name, capsys, *numbers):
    """What a script's main prints, as rows of numbers."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(*numbers)
    lines = capsys.readouterr().out.splitlines()
    return [[float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:e-\d+)?", line)] for line in lines[1:]]


@pytest.fixture
def _data():
    if "MASKCL_DATA" not in os.environ:
        pytest.skip("MASKCL_DATA is not set: no real data to read")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_and_says_how_to_run_it(name):
    text = (EXAMPLES / f"{name}.py").read_text()
    assert len(text.splitlines()) <= 60
    assert f"python examples/{name}.py" in text


def test_hat_in_a_loop_of_ones_own(capsys):
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    rows = run("hat_own_loop", capsys, 3)
    last = rows[-1][1:]
    assert [row[-1] for row in rows] == last  # what was learned is what is left
    assert min(last) > 0.6


def test_mas_class_by_class(capsys):
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    rows = run("mas_class_by_class", capsys, 4)
    one_head, inferred = rows[-1][1], rows[-1][3]
    assert inferred > 0.8 and one_head < 0.3


def test_ten_tasks_to_onnx(capsys, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="ONNX needs maskcl[export]")
    monkeypatch.chdir(tmp_path)
    rows = run("ten_tasks_to_onnx", capsys, 2, 2)
    assert len(rows) == 2 and all(row[1] > 0.5 for row in rows)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("_data")
def test_a_citation_graph(capsys):
    pytest.importorskip("torch_geometric", reason="graph models need maskcl[graph]")
    rows = run("citation_graph", capsys, 60)
    assert all(row[2] == row[3] > 0.5 for row in rows)


@pytest.mark.usefixtures("_data")
def test_piggyback_on_a_backbone(capsys):
    pytest.importorskip("timm", reason="the backbone needs maskcl[vision]")
    rows = run("piggyback_backbone", capsys, 1)
    assert all(row[1] == row[2] for row in rows)
    assert sum(row[1] for row in rows) / len(rows) > 0.6


@pytest.mark.parametrize("name", ["citation_graph", "piggyback_backbone"])
def test_a_missing_folder_is_said(name, capsys, monkeypatch):
    needed = {"citation_graph": "torch_geometric", "piggyback_backbone": "timm"}
    pytest.importorskip(needed[name], reason=f"{needed[name]} is not installed")
    monkeypatch.delenv("MASKCL_DATA", raising=False)
    with pytest.raises(SystemExit, match="MASKCL_DATA is not set"):
        run(name, capsys, 1)
