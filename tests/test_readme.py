"""README: its blocks run and print what it shows; its figures are those of the results."""

import csv
import importlib.util
import re
from types import SimpleNamespace

import pytest

from tests.pages import README, ROOT, blocks, run_in_order


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """What README's blocks leave: their names, and the folder in which they ran."""
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    pytest.importorskip("lightning_fabric", reason="the trainer needs maskcl[train]")
    names, folder = {}, tmp_path_factory.mktemp("readme")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_in_order(blocks("python", README), names, folder)
    return SimpleNamespace(names=names, folder=folder)


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_first_example_has_ten_lines_and_learns_without_forgetting(session):
    lines = [line for line in blocks("python", README)[0].splitlines() if line.strip()]
    assert len(lines) == 10
    matrix = session.names["result"].matrix
    assert matrix[-1].mean() > 0.97
    assert (matrix.diagonal() == matrix[-1]).all()


def numbers(text):
    return [float(word) for word in re.findall(r"nan|\d+\.\d*", text)]


def test_its_outputs_are_those_of_its_commands_up_to_two_samples(session):
    """Another processor or torch rounds otherwise; a task has 72 samples."""
    matrix = session.names["result"].matrix
    demo, ten_lines = blocks("text", README)
    assert numbers(ten_lines) == pytest.approx(matrix.ravel().tolist(), abs=0.03, nan_ok=True)
    last, summary = (line for line in demo.splitlines() if line.startswith(("after", "ACC")))
    assert numbers(last) == pytest.approx(matrix[-1].tolist(), abs=0.03)
    accuracy, _, *forgetting = numbers(summary)
    assert accuracy == pytest.approx(matrix[-1].mean(), abs=0.01)
    assert forgetting == [0.0, 0.0, 0.0]


# A row of the table of speed: its group in cpu.csv, and the names there of its columns.
SPEED = {
    "`clamp_grads_`, 2048x2048": (
        "clamp_grads_ hard, 30 % used, [2048, 2048], float32", ["memcpy", "torch.compile", "eager"],
    ),
    "`masked_linear` and its backward, 2048x2048, batch 2048": (
        "masked_linear relu forward + backward, N 2048, I 2048, O 2048, float32",
        ["F.linear + relu, no mask", "torch.compile", "eager"],
    ),
    "`piggyback_weight` and its backward, 4096x4096": (
        "piggyback_weight forward + backward, [4096, 4096], float32, float32 scores",
        ["memcpy", "torch.compile", "eager"],
    ),
    "`packed_linear`, 4096x4096, one sample": (
        "packed_linear, N 1, 4096x4096, float32",
        ["F.linear, no mask", None, "unpack, multiply, linear"],
    ),
    "MAS penalty and its gradient, ResNet-18": (
        "penalty and its gradient, ResNet-18, float32",
        ["memcpy", "torch.compile", "BeGin's formula"],
    ),
    "`linear_importance`, 2000x2000, 256 samples": (
        "linear_importance, N 256, I = O = 2000, float32", [None, "torch.compile", "eager"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", SPEED)
def test_figures_of_ops_are_those_of_the_table_of_results(row):
    group, names = SPEED[row]
    with (ROOT / "benchmarks/results/cpu.csv").open(newline="") as file:
        known = {r["name"]: float(r["ratio"]) for r in csv.DictReader(file) if r["group"] == group}
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {row} |")]
    for name, cell in zip(names, line.split("|")[2:5], strict=True):
        if name is None:
            assert not cell.strip()
        else:
            assert float(cell) == pytest.approx(known[name], rel=0.05)


# Those of steps: what steps.csv has of them, on one thread.
STEPS = {
    "HAT step, small net: MLP 64-200-200-2, batch 16, AdamW": ("64-200-200-2", "16", "HAT"),
    "Piggyback step, the same": ("64-200-200-2", "16", "Piggyback"),
    "MAS step, the same": ("64-200-200-2", "16", "MAS"),
    "HAT step, MLP 784-2000-2000-10, batch 64, AdamW": ("784-2000-2000-10", "64", "HAT"),
}


@pytest.mark.parametrize("row", STEPS)
def test_figures_of_steps_are_those_of_the_table_of_results(row):
    network, batch, method = STEPS[row]
    setting = {"network": network, "batch": batch, "optimizer": "adamw", "threads": "1"}
    setting |= {"compiled": "False", "schedule": "False", "method": method}
    with (ROOT / "benchmarks/results/steps.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if setting.items() <= r.items()]
    ratios = {r["whose"]: float(r["of_unmasked"]) for r in rows}
    (line,) = [line for line in README.splitlines() if line.startswith(f"| {row} |")]
    unmasked, compiled, eager = (cell.strip() for cell in line.split("|")[2:5])
    assert float(unmasked) == pytest.approx(1 / ratios["maskcl"], rel=0.02)
    assert not compiled
    assert float(eager) == pytest.approx(ratios["careful eager"] / ratios["maskcl"], rel=0.02)


def test_what_it_says_to_run_is_there():
    for module in re.findall(r"python -m ([\w.]+)", README):
        assert importlib.util.find_spec(module), module
    for file in re.findall(r"(?:benchmarks|docs)/\w+\.py", README):
        assert (ROOT / file).is_file(), file
    for target in re.findall(r"`make (\w+)`|\$ make (\w+)", README):
        assert re.search(rf"^{''.join(target)}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_it_ends_with_a_report(session):
    assert "</html>" in (session.folder / "report" / "report.html").read_text()
