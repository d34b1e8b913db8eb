"""The table of inferred tasks: its rows, its file, and what it says beside every score."""

from __future__ import annotations

import pytest

from maskcl.reproduce import class_incremental as table
from maskcl.reproduce.class_incremental_runs import run
from maskcl.reproduce.runs import ReproduceError

CELLS = [cell for cell in table.CELLS if cell.scenario == "split-digits"]
SEEDS = range(table.FIRST_SEED, table.FIRST_SEED + 2)


def figures(cell: table.Cell, seed: int) -> table.Figures:
    inferred = (0.99, 0.98, 0.97) if cell.infer != "none" else (None, None, None)
    return table.Figures(0.5 + 0.01 * (seed - table.FIRST_SEED), *inferred, 1.0)


def made(tmp_path, train=figures, options=None) -> str:
    known = {cell.key: {} for cell in CELLS} if options is None else options
    return run(
        CELLS, SEEDS, train, directory=tmp_path / "out", options=known, made="By hand.", say=print
    )


def test_every_score_stands_beside_what_inference_got_right(tmp_path):
    shown = made(tmp_path)
    assert (tmp_path / "out" / "results.md").read_text() == shown
    assert (
        "| HAT, shared | 50.50 ± 0.71 | 99.00 ± 0.00 | 98.00 ± 0.00 | 97.00 ± 0.00 | 1 |" in shown
    )
    assert "| MAS | 50.50 ± 0.71 |  |  |  | 1 |" in shown
    for row in table.PUBLISHED:
        assert f"| {row.method} | {row.score} | {row.source} | {row.backbone} |" in shown


def test_what_is_there_is_not_run_again_and_other_options_are_refused(tmp_path):
    shown = made(tmp_path)

    def never(cell, seed):
        raise AssertionError(cell)

    assert made(tmp_path, never) == shown
    with pytest.raises(ReproduceError, match="with other options; choose a new folder"):
        made(tmp_path, never, {CELLS[0].key: {"epochs": 1}})
    (tmp_path / "out" / "results.json").write_text("{}")
    with pytest.raises(ReproduceError, match=r"results\.json has no runs"):
        made(tmp_path, never)


def test_rows_are_commands_that_a_person_could_type():
    for cell in table.CELLS:
        given = cell.options(100, "DIR")
        assert given["setting"] == "class"
        assert ("data" in given) == ("mnist" in cell.scenario)
        assert given["infer"] == cell.infer
