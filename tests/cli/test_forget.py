"""``maskcl forget`` as a person uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from maskcl import cli
from maskcl.checkpoint import load_checkpoint
from maskcl.cli import forget
from maskcl.report import decode_masks

pytest.importorskip("typer", reason="the command line needs maskcl[train]")
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("matplotlib", reason="the report needs maskcl[train]")

SMALL = ["--scenario", "split-digits", "--tasks", "2", "--hidden", "16,16", "--epochs", "1"]


def maskcl(*arguments: object) -> int:
    return cli.main([str(part) for part in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    assert maskcl("train", "hat", *SMALL, "--out", folder / "hat") == 0
    assert maskcl("train", "mas", *SMALL, "--out", folder / "mas") == 0
    random = ["--base", "random", "--out", folder / "piggyback"]
    assert maskcl("train", "piggyback", *SMALL, *random) == 0
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def content(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def result_of(run: Path) -> dict[str, object]:
    return json.loads((run / "result.json").read_text())


def test_a_hat_task_goes_from_the_checkpoint_the_result_and_the_report(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / "hat"
    before, old = load_checkpoint(run / "checkpoint.safetensors").tensors, result_of(run)
    assert maskcl("forget", run, "--task", 1, "--seed", 3) == 0
    said = capsys.readouterr().out
    assert "checkpoint.safetensors: task 1 is forgotten: " in said
    assert "files exported before, copies and backups are not touched" in said
    after = load_checkpoint(run / "checkpoint.safetensors").tensors
    assert after.keys() == before.keys()
    assert after["network.finished"].tolist() == [True, False]
    assert not torch.equal(after["network.embeddings.1"], before["network.embeddings.1"])
    assert torch.equal(after["network.embeddings.0"], before["network.embeddings.0"])
    record = json.loads((run / "forgotten-1.json").read_text())
    assert record["seed"] == 3
    new = result_of(run)
    assert new["forgotten"] == [1]
    assert not decode_masks(new["masks"])[1].any()
    assert (decode_masks(new["masks"])[0] == decode_masks(old["masks"])[0]).all()
    for place, kind in enumerate(("units", "weights")):
        freed = sum(record[kind].values())
        assert new["free"][kind][0] - old["free"][kind][0] == freed > 0, place
    assert new["weights_sha256"] != old["weights_sha256"]
    assert new["accuracy"] == old["accuracy"]
    page = (run / "report.html").read_text()
    assert "task 1 is forgotten" in page
    assert "free for later tasks" in page


def test_piggyback_says_which_file_still_has_the_masks(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / "piggyback"
    assert maskcl("forget", run, "--task", 0) == 0
    said = capsys.readouterr().out
    assert f"{run / 'masks' / 'task-0.safetensors'} still holds the task's masks" in said
    after = load_checkpoint(run / "checkpoint.safetensors").tensors
    words = [t for n, t in after.items() if n.endswith(".words")]
    assert all(not w[0].any() and w[1].any() for w in words)
    assert maskcl("export", run, "--task", 0, "--out", run / "x.pt2") == 2
    assert "task 0" in capsys.readouterr().err
    assert maskcl("export", run, "--task", 1, "--out", run / "x.safetensors") == 0


def test_both_tasks_may_go_and_again_changes_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / "hat"
    assert maskcl("forget", run, "--task", 1) == 0
    assert maskcl("forget", run, "--task", 0) == 0
    assert result_of(run)["forgotten"] == [0, 1]
    assert result_of(run)["free"]["units"][0] == 32
    before = content(run)
    capsys.readouterr()
    assert maskcl("forget", run, "--task", 0) == 0
    assert "was forgotten before" in capsys.readouterr().out
    assert content(run) == before


def test_what_an_interrupted_call_left_out_the_next_one_writes(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, twin = runs / "hat", runs / "twin"
    shutil.copytree(run, twin)
    assert maskcl("forget", twin, "--task", 1) == 0

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    before = content(run)
    with monkeypatch.context() as patch:
        patch.setattr(forget, "save_checkpoint", killed)
        assert maskcl("forget", run, "--task", 1) == 130
    assert content(run) == before
    with monkeypatch.context() as patch:
        patch.setattr(forget, "write_json", killed)
        assert maskcl("forget", run, "--task", 1) == 130
    changed = {n for n, c in content(run).items() if before.get(n) != c}
    assert changed == {"checkpoint.safetensors"}
    assert maskcl("forget", run, "--task", 1, "--seed", 9) == 0
    assert content(run).keys() == content(twin).keys()
    for name in ("forgotten-1.json", "result.json", "report.html"):
        assert (run / name).read_bytes() == (twin / name).read_bytes()
    one, other = (load_checkpoint(r / "checkpoint.safetensors").tensors for r in (run, twin))
    assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(
    ("run", "arguments", "sentence"),
    [
        ("hat", ["--task", "2"], "has tasks 0 to 1, got 2"),
        ("hat", ["--task", "-1"], "has tasks 0 to 1, got -1"),
        ("hat", ["--task", "0", "--seed", "-1"], "seed"),
        ("mas", ["--task", "0"], "a run of mas, whose tasks all move the same weights"),
        ("none", ["--task", "0"], "holds no run"),
        ("open", ["--task", "0"], "is not finished: `maskcl train hat --out"),
        ("bare", ["--task", "0"], "does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    runs: Path,
    capsys: pytest.CaptureFixture[str],
    run: str,
    arguments: list[str],
    sentence: str,
) -> None:
    for name, gone in (("open", "result.json"), ("bare", "checkpoint.safetensors")):
        shutil.copytree(runs / "hat", runs / name)
        (runs / name / gone).unlink()
    before = content(runs)
    capsys.readouterr()
    assert maskcl("forget", runs / run, *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert len(said.splitlines()) == 1
    assert content(runs) == before


def test_a_run_with_a_forgotten_task_is_not_resumed(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs / "hat"
    assert maskcl("forget", run, "--task", 0) == 0
    before = content(run)
    assert maskcl("train", "hat", *SMALL, "--out", run, "--resume") == 2
    assert "task 0 of" in capsys.readouterr().err
    assert content(run) == before


@pytest.mark.parametrize("name", ["hat", "piggyback"])
def test_a_run_with_a_forgotten_task_gains_no_tasks_nor_masks(
    runs: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, file = runs / name, tmp_path / "masks"
    if name == "piggyback":
        assert maskcl("masks", "export", run, "--task", 1, "--out", file) == 0
    assert maskcl("forget", run, "--task", 0) == 0
    before = content(run)
    capsys.readouterr()
    calls = [("train", name, "--out", run, "--add-tasks", 1)]
    if name == "piggyback":
        calls.append(("masks", "import", file, run, "--replace"))
        other = ("--scenario", "split-digits", "--groups", "6,7/8,9", "--out", tmp_path / "new")
        calls.append(("train", name, "--from", run, *other))
    for call in calls:
        assert maskcl(*call) == 2
        said = capsys.readouterr().err
        assert f"task 0 of {run} is forgotten: " in said
        assert len(said.splitlines()) == 1
        assert content(run) == before


def test_the_network_of_a_run_with_a_forgotten_task_goes_on(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, run = runs / "hat", runs / "after"
    assert maskcl("forget", first, "--task", 0) == 0
    more = ["--scenario", "split-digits", "--groups", "6,7/8,9", "--out", run]
    assert maskcl("train", "hat", "--from", first, *more) == 0
    before, x = content(run), load_checkpoint(run / "checkpoint.safetensors").tensors
    assert x["network.finished"].tolist() == [False, True, True, True]
    capsys.readouterr()
    assert maskcl("forget", run, "--task", 0) == 2
    assert "was forgotten before the run began" in capsys.readouterr().err
    assert content(run) == before
    assert maskcl("forget", run, "--task", 2) == 0
    after = load_checkpoint(run / "checkpoint.safetensors").tensors
    assert after["network.finished"].tolist() == [False, True, False, True]
    assert result_of(run)["forgotten"] == [0, 2]
    assert not (run / "forgotten-0.json").exists()


def test_a_report_of_a_run_with_nothing_left_shows_no_unit_in_use(runs: Path) -> None:
    from maskcl.report.hat import units_used

    for task in (0, 1):
        assert maskcl("forget", runs / "hat", "--task", task) == 0
    result = result_of(runs / "hat")
    assert units_used(result) == result["protected_share"] == 0.0
